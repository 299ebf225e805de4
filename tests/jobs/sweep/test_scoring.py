"""What is scored when all trials have ended is checked before the first begins."""

from pathlib import Path

import pytest
import torch

from jobs.tune import main
from tests.helpers.sweep_run import write_sweep
from tests.taehv.evaluation.test_frames import lpips_state


def test_clips_too_small_for_lpips_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(lpips_state(), tmp_path / "lpips.pth")
    space = "space:\n  loss.seraena: [0.1, 1.0]\nsearch: {algorithm: grid}\n"
    sweep = write_sweep(tmp_path, space + f"lpips: {tmp_path}/lpips.pth\n")
    (tmp_path / "videos.txt").write_text("a.mp4\n")
    line = (
        f"{sweep} --sweep-dir {tmp_path}/sweep --data.annotations {tmp_path}/videos.txt"
        " --data.height 24 --data.width 24"
    )
    assert main(line.split()) == 2
    assert "validation clips are 24x24, and LPIPS needs 32" in capfd.readouterr().err
    assert not (tmp_path / "sweep").exists()
