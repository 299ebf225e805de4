"""`jobs/export.py`: programs that give the network's numbers without this project."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs import export
from taehv.model import build_model
from tests.helpers.evaluate_run import SMALL, export_small


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("weights"))


def run(weights: Path, output: Path, *more: str) -> int:
    words = f"--checkpoint {weights} --output-dir {output} --height 16 --width 24 --num-frames 5"
    return export.main([*words.split(), *more])


ELSEWHERE = """
import sys, torch
assert not any(name.split(".")[0] in ("taehv", "jobs") for name in sys.modules)
frames = torch.load("frames.pt", weights_only=True)
latents = torch.export.load("encoder.pt2").module()(frames)
torch.save((latents, torch.export.load("decoder.pt2").module()(latents)), "found.pt")
"""


def test_the_programs_need_nothing_of_this_project(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(weights, tmp_path) == 0
    captured = capsys.readouterr()
    assert "5 frames are an even number of latents" in captured.err
    assert "Take --num-frames 9" in captured.err
    lines = captured.out.splitlines()
    # Two latents of taecvx: nothing is trimmed.
    assert "encoder.pt2  1x5x3x16x24 -> 1x2x16x2x3" in lines[0]
    assert "decoder.pt2  1x2x16x2x3 -> 1x8x3x16x24" in lines[1]
    frames = torch.rand(1, 5, 3, 16, 24, generator=torch.Generator().manual_seed(5))
    torch.save(frames, tmp_path / "frames.pt")
    subprocess.run([sys.executable, "-I", "-c", ELSEWHERE], cwd=tmp_path, check=True)
    latents, decoded = torch.load(tmp_path / "found.pt", weights_only=True)
    model = build_model(replace(SMALL, pretrained=str(weights))).eval()
    with torch.no_grad():
        torch.testing.assert_close(latents, model.encode_video(frames))
        torch.testing.assert_close(decoded, model.decode_video(latents))


def refused(capsys: pytest.CaptureFixture[str], code: int, expected_code: int = 1) -> str:
    """The one line that was said."""
    assert code == expected_code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    return error[0]


def test_a_program_that_differs_is_not_written(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, run(weights, tmp_path / "out", "--tolerance", "-1"))
    assert "differs from the network by" in line
    assert not [*(tmp_path / "out").iterdir()]


def test_what_is_there_is_kept(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "decoder.pt2").write_text("precious")
    assert "holds decoder.pt2 already" in refused(capsys, run(weights, tmp_path))
    assert (tmp_path / "decoder.pt2").read_text() == "precious"


def test_bad_input_is_one_line(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(weights, tmp_path, "--height", "20")
    assert "must be multiples of 8" in refused(capsys, code, 2)
    assert "no such weights file" in refused(capsys, run(tmp_path / "no.pth", tmp_path))
    assert "--checkpoint is missing" in refused(capsys, export.main([]), 2)
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused(capsys, run(weights, tmp_path / "file" / "out"))
