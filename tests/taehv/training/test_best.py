"""The best validation of a run: what counts as one, and that it is the run's own."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from taehv.interfaces import Hooks
from taehv.run import checkpoint, journal
from taehv.run.run_folder import RunFolder
from taehv.training import train
from taehv.training.config import TrainingConfig
from taehv.training.state import TrainState
from taehv.training.validation import ValidationSet
from tests.helpers.moving_data import MovingData
from tests.helpers.small_run import small_config
from tests.taehv.training.test_rollback import poison


@contextmanager
def validations(*psnr: float) -> Iterator[None]:
    """The averaged weights' PSNR at one validation after the other; later ones are as they are."""
    score, left = ValidationSet.score, list(psnr)

    def scored(self: ValidationSet, model: Any, *arguments: Any) -> dict[str, float]:
        scores = score(self, model, *arguments)
        # The averaged weights are scored first, and they alone need gradients of nothing.
        if left and not any(p.requires_grad for p in model.parameters()):
            scores["psnr"] = left.pop(0)
        return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ValidationSet, "score", scored)
        yield


def trained(folder: Path, config: TrainingConfig, resume_from: Path | None = None) -> RunFolder:
    torch.set_num_threads(1)
    run = RunFolder(str(folder))
    train(config, MovingData(), Hooks(), run, resume_from)
    return run


def best_of(run: RunFolder, step: int) -> Any:
    return checkpoint.read_info(run.local / checkpoint.name_of(step))["best"]


def test_a_validation_that_is_no_number_is_no_improvement(tmp_path: Path) -> None:
    config = small_config(validation_every=2, checkpoint_every=2, max_steps=6)
    with validations(math.nan, 12.0, math.nan, 11.0):
        run = trained(tmp_path, config)
    assert best_of(run, 4) == best_of(run, 6) == [12.0, 2]
    averaged = load_file(run.local / checkpoint.name_of(2) / "ema.safetensors")
    torch.testing.assert_close(
        load_file(run.local / "best_model.safetensors"), averaged, rtol=0, atol=0
    )


def test_where_no_validation_is_a_number_there_is_no_best(tmp_path: Path) -> None:
    config = small_config(validation_every=2, checkpoint_every=2, max_steps=4)
    with validations(*[math.nan] * 3):
        run = trained(tmp_path, config)
    assert best_of(run, 4) is None
    assert not run.exists("best_model.safetensors")


def test_a_run_from_anothers_checkpoint_has_a_best_of_its_own(tmp_path: Path) -> None:
    """The other's best, here out of reach, is not its own, nor are the other's rollbacks."""
    config = small_config(
        validation_every=2, checkpoint_every=2, on_divergence="rollback", max_steps=6
    )
    with validations(99.0), poison({9}):  # Step 4, the first time.
        first = trained(tmp_path / "first", config)
    assert best_of(first, 6) == [99.0, 0]
    info = checkpoint.read_info(first.local / checkpoint.name_of(6))
    assert (info["rollbacks"], info["learning_rate_scale"]) == (1, 0.5)

    config = small_config(
        validation_every=2, checkpoint_every=2, early_stopping_validations=1, max_steps=10
    )
    start = first.local / checkpoint.name_of(6)
    with validations(12.0, 13.0):
        second = trained(tmp_path / "second", config, start)
    rows = journal.read(second.local / "metrics.jsonl")
    rates = {row["step"]: row["train/learning_rate"] for row in rows if "train/loss" in row}
    for step, rate in rates.items():
        assert rate == pytest.approx(config.optim.learning_rate_at(step - 1, 10))
    # It improved at every validation, so nothing ended it early.
    assert sorted(rates) == [7, 8, 9, 10]
    assert best_of(second, 10) == [13.0, 10]
    assert not [row for row in rows if "train/rollbacks" in row]
    averaged = load_file(second.local / checkpoint.name_of(10) / "ema.safetensors")
    torch.testing.assert_close(
        load_file(second.local / "best_model.safetensors"), averaged, rtol=0, atol=0
    )


def test_a_run_that_goes_on_keeps_its_best(tmp_path: Path) -> None:
    config = small_config(validation_every=2, checkpoint_every=2, max_steps=4)
    with validations(12.0, 99.0):
        run = trained(tmp_path, config)
    config = small_config(validation_every=2, checkpoint_every=2, max_steps=6)
    run = trained(tmp_path, config, run.local / checkpoint.name_of(4))
    assert best_of(run, 6) == [99.0, 2]


def test_a_best_validation_of_other_clips_is_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint of the version that scored whole pictures scaled down names no score."""
    config = small_config(validation_every=2, checkpoint_every=2, max_steps=4)
    with validations(12.0, 99.0):
        run = trained(tmp_path, config)
    folder = run.local / checkpoint.name_of(4)
    info = checkpoint.read_info(folder)
    assert info.pop("best_by") == "the pooled PSNR of native clips"
    state = TrainState(config, 1, folder)
    assert state.best == (99.0, 2)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(checkpoint, "read_info", lambda _: info)
        state = TrainState(config, 1, folder)
    assert state.best is None
    assert "the best one is looked for anew from here" in caplog.text
