"""The linear limit in a run's folder: fitted once, kept, and never a reason to stop a run."""

import logging
from pathlib import Path

import pytest
import torch

from taehv.evaluation.linear import FILE, LinearLimit
from taehv.interfaces import Hooks
from taehv.run.run_folder import RunFolder
from taehv.training import train
from tests.helpers.moving_data import MovingData
from tests.helpers.small_run import small_config

STEPS = 8
"""Of so many clips that there are enough blocks."""


def test_it_is_fitted_once_and_kept(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = small_config(max_steps=STEPS)
    run = RunFolder(str(tmp_path))
    summary = train(config, MovingData(), Hooks(), run)
    assert summary.baselines["linear"]["psnr"] > summary.baselines["mean_colour"]["psnr"]
    kept = (run.local / FILE).read_bytes()
    assert len(LinearLimit.load(run.local / FILE).basis) == 16
    (run.local / FILE).rename(tmp_path / "kept")
    other = RunFolder(str(tmp_path / "other"))
    other.local.mkdir()
    (tmp_path / "kept").rename(other.local / FILE)
    train(config, MovingData(), Hooks(), other)
    assert (other.local / FILE).read_bytes() == kept


def test_a_damaged_file_is_fitted_anew_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(1)
    run = RunFolder(str(tmp_path))
    (run.local / FILE).write_bytes(b"half of a file")
    with caplog.at_level(logging.WARNING):
        summary = train(small_config(max_steps=STEPS), MovingData(), Hooks(), run)
    assert f"{FILE} is fitted anew: it cannot be read" in caplog.text
    assert "linear" in summary.baselines
    LinearLimit.load(run.local / FILE)
