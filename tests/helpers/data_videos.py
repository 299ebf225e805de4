"""Small real videos for the tests of the data pipeline, encoded on the spot."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from data_pipeline.decoding.augment import ClipMaker
from data_pipeline.plan import ClipPlan

Frames = NDArray[np.uint8]

FAST_START = {"movflags": "faststart"}


def moving_frames(count: int, height: int = 48, width: int = 64, seed: int = 0) -> Frames:
    """Smooth random colours that drift to the right: uint8 [T, H, W, C], no two frames alike."""
    rng = np.random.default_rng(seed)
    x = np.arange(width)[None, None, :, None]
    y = np.arange(height)[None, :, None, None]
    t = np.arange(count)[:, None, None, None]
    phase, rate = rng.uniform(0, 6, 3), rng.uniform(0.05, 0.15, 3)
    waves = np.sin(rate * (x - 2 * t) + phase) + np.cos(rate[::-1] * y + 0.2 * t)
    return (127 + 60 * waves).astype(np.uint8)


def write_video(
    path: Path,
    frames: Frames,
    *,
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 2,
    stamps: list[int] | None = None,
    lossless: bool = False,
    x264_params: str = "",
) -> Path:
    """Encode uint8 [T, H, W, C]. `stamps` are the presentation times in 1/24 s."""
    settings = {"bf": str(b_frames)}
    if x264_params:
        settings["x264-params"] = x264_params
    if lossless:
        settings["qp"] = "0"
    # The header first, so that a file that is cut short can still be opened.
    with av.open(str(path), "w", container_options=FAST_START) as container:
        stream = container.add_stream(codec, rate=24, options=settings)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p" if lossless else "yuv420p"
        stream.gop_size = gop
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sequential_frames(path: Path) -> list[Frames]:
    """Every frame as a decode from the start gives it: uint8 [H, W, C]."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def make_clip(
    frames: list[av.VideoFrame],
    plan: ClipPlan,
    clip_size: tuple[int, int],
    pixel_aspect: float = 1.0,
) -> Frames:
    """Decoded frames as a clip: uint8 [T, C, H, W]; `clip_size` is (H, W)."""
    clip = np.empty((len(frames), 3, *clip_size), np.uint8)
    maker = ClipMaker(plan, clip, pixel_aspect)
    # Any order will do.
    for place in reversed(range(len(frames))):
        maker.put(place, frames[place])
    maker.finish()
    return clip


def write_annotations(folder: Path, names: list[str], **extra: Any) -> Path:
    """A MiniDataset file that lists `names`."""
    content = {"total": len(names), "list": [{"path": name} for name in names], **extra}
    file = folder / "annotations.json"
    file.write_text(json.dumps(content))
    return file


def write_dataset(folder: Path, count: int, frames: int = 20) -> Path:
    """`count` videos and their annotation file."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"video_{index}.mp4" for index in range(count)]
    for index, name in enumerate(names):
        write_video(folder / name, moving_frames(frames, seed=index))
    return write_annotations(folder, names)
