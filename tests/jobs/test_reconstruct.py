"""`jobs/reconstruct.py`: one video, its reconstruction, and what is refused."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.decoding.whole_video import WholeRequest, plan_whole, whole_frames
from jobs import reconstruct
from jobs.cli.progress import FrameProgress
from jobs.evaluation.one_video import RECONSTRUCTION, SIDE_BY_SIDE
from taehv.model import TAEHV
from tests.helpers.data_videos import moving_frames, sequential_frames, write_video
from tests.helpers.evaluate_run import SMALL, export_pytorch_start
from tests.helpers.video_kinds import remux, spoil_headers

FRAMES = 14
"""Not 4k + 1: the last latent is begun."""

FILES = {RECONSTRUCTION, SIDE_BY_SIDE, reconstruct.FIGURES}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_pytorch_start(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Of 50x68 pixels, which is no multiple of 8."""
    write_video(tmp_path / "drive.mp4", moving_frames(FRAMES, 50, 68))
    return tmp_path / "drive.mp4"


def figures_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / reconstruct.FIGURES).read_text())
    return found


def test_the_frames_and_the_figures_are_those_of_the_network(
    weights: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reconstruct.main([str(video), "--checkpoint", str(weights)]) == 0
    folder = video.parent / "drive_reconstructed"
    assert {file.name for file in folder.iterdir()} == FILES

    request = WholeRequest(str(video), 8)
    frames = np.concatenate([*whole_frames(request, plan_whole(request))])
    model = TAEHV(SMALL)
    model.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        original = torch.from_numpy(frames)[None].float() / 255
        # The end is repeated up to a length that comes back whole.
        extended = torch.cat([original, *[original[:, -1:]] * 3], 1)
        made = model.eval().reconstruct_video(extended)[:, :FRAMES]
    psnr = -10 * (made - original).double().square().mean((2, 3, 4))[0].log10()
    found = figures_of(folder)
    assert found["psnr"] == pytest.approx(psnr.tolist(), abs=1e-3)
    pooled = -10 * (10 ** (-psnr / 10)).mean().log10()
    assert found["scores"]["network"]["psnr"] == pytest.approx(float(pooled), abs=1e-3)

    written = np.stack(sequential_frames(folder / RECONSTRUCTION))
    expected = (made[0] * 255).permute(0, 2, 3, 1).numpy()
    assert written.shape == expected.shape == (FRAMES, 48, 64, 3)
    # H.264 halves the colours' resolution, so that grey alone comes back closely.
    assert np.abs(written.mean(-1) - expected.mean(-1)).mean() < 4
    # Wider than high: original, reconstruction and difference one above the other.
    above = np.stack(sequential_frames(folder / SIDE_BY_SIDE))
    assert above.shape == (FRAMES, 3 * 48 + 2 * 4, 64, 3)
    shown = frames.transpose(0, 2, 3, 1).mean(-1)
    assert np.abs(above[:, :48].mean(-1) - shown).mean() < 4

    output = capsys.readouterr().out
    assert "14 frames of 48x64, cut from 50x68" in output
    worst = int(psnr.argmin())
    assert f"worst frame: {worst} of the reconstruction, {psnr[worst]:.2f} dB" in output
    assert "8x down and up" in output


def test_of_a_damaged_video_the_frames_that_decode_are_taken(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "sound.mp4", moving_frames(40, 48, 64), gop=10, b_frames=0)
    remux(tmp_path / "sound.mp4", tmp_path / "damaged.mp4", change=spoil_headers(14))
    arguments = [str(tmp_path / "damaged.mp4"), "--checkpoint", str(weights)]
    assert reconstruct.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 0
    found = figures_of(tmp_path / "out")
    assert found["frames"] == len(found["psnr"]) == 34
    assert len(found["lost"]) == 1
    assert found["lost"][0].startswith("frames 14 to 19 are lost")
    assert found["lost"][0] in capsys.readouterr().out
    assert len(sequential_frames(tmp_path / "out" / SIDE_BY_SIDE)) == 34


def test_a_second_ctrl_c_ends_it_at_once(
    weights: Path,
    video: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(FrameProgress, "add", interrupt)
    out = tmp_path / "out"
    arguments = [str(video), "--checkpoint", str(weights), "--output-dir", str(out)]
    assert reconstruct.main(arguments) == 130
    assert "stopped before there was a result" in capsys.readouterr().err
    assert not [*out.iterdir()]


def test_ctrl_c_keeps_what_is_done(
    weights: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, count = FrameProgress.add, 0

    def interrupt(self: FrameProgress, frames: int) -> None:
        nonlocal count
        add(self, frames)
        count += frames
        if count == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(FrameProgress, "add", interrupt)
    out = tmp_path / "out"
    arguments = [str(video), "--checkpoint", str(weights), "--output-dir", str(out)]
    assert reconstruct.main(arguments) == 130
    assert figures_of(out)["frames"] == 3
    assert len(sequential_frames(out / RECONSTRUCTION)) == 3


def test_no_more_frames_than_asked_for_and_no_results_are_replaced(
    weights: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [str(video), "--checkpoint", str(weights), "--output-dir", str(out)]
    assert reconstruct.main([*arguments, "--frames", "5"]) == 0
    assert figures_of(out)["frames"] == 5
    capsys.readouterr()
    assert reconstruct.main(arguments) == 1
    assert "holds reconstruction.mp4 already" in capsys.readouterr().err
    assert reconstruct.main([*arguments, "--overwrite"]) == 0
    assert figures_of(out)["frames"] == FRAMES


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--checkpoint", "WEIGHTS"], 2, "the video is missing"),
        (["VIDEO"], 2, "--checkpoint is missing"),
        (["nowhere.mp4", "--checkpoint", "WEIGHTS"], 1, "nowhere.mp4: there is no such video"),
        (["VIDEO", "--checkpoint", "nowhere.pth"], 1, "nowhere.pth: there is no such weights"),
        (["WEIGHTS", "--checkpoint", "WEIGHTS"], 1, "w.pth: "),
        (["VIDEO", "--checkpoint", "WEIGHTS", "--frames", "-1"], 2, "--frames is -1"),
        (["VIDEO", "--checkpoint", "WEIGHTS", "--stream", "3"], 1, "stream"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    weights: Path,
    video: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    named = {"VIDEO": str(video), "WEIGHTS": str(weights)}
    words = [named.get(word, word) for word in arguments]
    assert reconstruct.main([*words, "--output-dir", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert says in error
    assert not (tmp_path / "out").exists()
