"""Pictures read back: the grid pixel by pixel, the video as far as H.264 lets it."""

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.media.pictures import DIFFERENCE_GAIN, comparison_mp4, side_by_side_png

Array = NDArray[np.uint8]


def clips(
    num_clips: int = 2, num_frames: int = 9, height: int = 48, width: int = 64
) -> tuple[Array, Array]:
    """Smooth pictures, and copies that are brighter by 20 of 255. NTCHW."""
    n, t, c, y, x = np.indices((num_clips, num_frames, 3, height, width))
    wave = np.sin((x + 2 * t) / (8 + n) + c) + np.cos(y / 9 + c)
    original = (110 + 45 * wave).astype(np.uint8)
    return original, original + np.uint8(20)


def appears(picture: Array, cell: Array) -> bool:
    """Whether the enlarged cell stands somewhere in the picture, pixel by pixel."""
    height, width = cell.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(picture, (1, 1, 3))[..., 0, 0, :]
    tops, lefts = np.nonzero((windows[:, :, 0] == cell[0, 0]).all(axis=-1))
    return any(
        np.array_equal(picture[top : top + height, left : left + width], cell)
        for top, left in zip(tops, lefts, strict=True)
    )


def enlarged(frame: Array, factor: int) -> Array:
    return frame.transpose(1, 2, 0).repeat(factor, axis=0).repeat(factor, axis=1)


def read(path: Path) -> Array:
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_grid_holds_first_middle_and_last_frame(tmp_path: Path) -> None:
    original, reconstructed = clips()
    side_by_side_png(original, reconstructed, tmp_path / "new" / "grid.png")
    picture = read(tmp_path / "new" / "grid.png")

    difference = np.full((3, 48, 64), 20 * DIFFERENCE_GAIN, dtype=np.uint8)
    for n in range(2):
        for t in range(9):
            shown = t in (0, 4, 8)
            assert appears(picture, enlarged(original[n, t], 3)) == shown
            assert appears(picture, enlarged(reconstructed[n, t], 3)) == shown
    assert appears(picture, enlarged(difference, 3))


def test_a_large_difference_does_not_wrap_around(tmp_path: Path) -> None:
    black = np.zeros((1, 1, 3, 160, 160), dtype=np.uint8)
    side_by_side_png(black, black + np.uint8(200), tmp_path / "grid.png")
    assert appears(read(tmp_path / "grid.png"), np.full((160, 160, 3), 255, dtype=np.uint8))


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_short_clips_show_no_frame_twice(tmp_path: Path, num_frames: int) -> None:
    widths = []
    for frames in (1, num_frames):
        side_by_side_png(*clips(1, frames), tmp_path / "grid.png")
        widths.append(read(tmp_path / "grid.png").shape[1])
    # Every frame adds its three cells (192 pixels each) and the gaps about them.
    step = 3 * 192 + 2 * 4 + 12
    assert widths[1] - widths[0] == (num_frames - 1) * step


def test_titles_are_drawn_above_the_pictures(tmp_path: Path) -> None:
    side_by_side_png(*clips(1), tmp_path / "grid.png")
    header = read(tmp_path / "grid.png")[8:48]
    bright = (header.max(axis=(0, 2)) > 150).nonzero()[0]
    # One title above each of nine columns: nine stretches of text with space between them.
    assert sum(b - a > 30 for a, b in pairwise(bright)) == 8


def test_tensors_and_arrays_give_the_same_grid(tmp_path: Path) -> None:
    original, reconstructed = clips()
    side_by_side_png(original, reconstructed, tmp_path / "a.png")
    tensors = torch.from_numpy(original), torch.from_numpy(reconstructed)
    side_by_side_png(*tensors, tmp_path / "b.png")
    assert np.array_equal(read(tmp_path / "a.png"), read(tmp_path / "b.png"))


def test_the_video_is_what_browsers_play(tmp_path: Path) -> None:
    comparison_mp4(*clips(), tmp_path / "new" / "clip.mp4", fps=7.5)
    with av.open(str(tmp_path / "new" / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 7.5
        assert stream.frames == 9
        # 48x64 six times enlarged; two rows, three columns, gaps of 4.
        assert (stream.height, stream.width) == (2 * 288 + 4, 3 * 384 + 8)
    # The index before the pictures, so that playing starts before the file has arrived.
    data = (tmp_path / "new" / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_the_video_shows_the_frames_in_order_and_in_their_colours(tmp_path: Path) -> None:
    original, reconstructed = clips(num_clips=1)
    comparison_mp4(original, reconstructed, tmp_path / "clip.mp4", fps=10)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]

    assert len(frames) == 9
    for t, frame in enumerate(frames):
        parts = (
            (0, enlarged(original[0, t], 6)),
            (388, enlarged(reconstructed[0, t], 6)),
            (776, np.full((288, 384, 3), 20 * DIFFERENCE_GAIN)),
        )
        for left, expected in parts:
            shown = frame[:, left : left + 384].astype(float)
            assert np.abs(shown - expected).mean() < 3


def test_odd_sizes_are_made_even(tmp_path: Path) -> None:
    comparison_mp4(*clips(1, 2, height=257, width=33), tmp_path / "clip.mp4", fps=30)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (258, 108)
        assert len(list(container.decode(video=0))) == 2


def test_what_is_no_pair_of_clips_is_refused(tmp_path: Path) -> None:
    original, reconstructed = clips()
    with pytest.raises(ValueError, match="differ in shape"):
        side_by_side_png(original, reconstructed[:1], tmp_path / "x.png")
    with pytest.raises(ValueError, match="NTCHW RGB"):
        side_by_side_png(original[0], reconstructed[0], tmp_path / "x.png")
    with pytest.raises(ValueError, match="uint8"):
        side_by_side_png(original, torch.rand(original.shape), tmp_path / "x.png")
    with pytest.raises(ValueError, match="fps"):
        comparison_mp4(original, reconstructed, tmp_path / "x.mp4", fps=0)
