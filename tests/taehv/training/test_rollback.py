"""A diverging run: back to the last good checkpoint with half the learning rate, or a clear end."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from taehv import distributed
from taehv.errors import TrainingError
from taehv.interfaces import Hooks
from taehv.losses.reconstruction import squared_error
from taehv.run import checkpoint, journal
from taehv.run.run_folder import RunFolder
from taehv.training import step as one_step
from taehv.training import train
from taehv.training.config import TrainingConfig
from tests.helpers.moving_data import MovingData
from tests.helpers.small_run import latest, small_config
from tests.helpers.workers import run_workers


@contextmanager
def poison(calls_with_nan: set[int]) -> Iterator[None]:
    """On the main worker, the loss is no number at these calls; two are made at every step."""
    calls = 0

    def poisoned(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        bad = calls in calls_with_nan and distributed.is_main()
        return squared_error(output, target) * (math.nan if bad else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_step, "squared_error", poisoned)
        yield


def rolled_back(folder: Path, config: TrainingConfig) -> None:
    torch.set_num_threads(1)
    with poison({9}):  # Step 4, the first time.
        summary = train(config, MovingData(), Hooks(), RunFolder(str(folder)))
    assert summary.finished


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rollback_goes_on_from_the_last_checkpoint(tmp_path: Path, workers: int) -> None:
    config = small_config(checkpoint_every=2, on_divergence="rollback", max_steps=7)
    if workers == 1:
        rolled_back(tmp_path, config)
    else:
        run_workers(workers, rolled_back, tmp_path, config)
    rows = journal.read(tmp_path / "metrics.jsonl")
    rates = {row["step"]: row["train/learning_rate"] for row in rows if "train/loss" in row}
    assert sorted(rates) == [1, 2, 3, 4, 5, 6, 7]
    for step, rate in rates.items():
        share = 1.0 if step <= 4 else 0.5
        assert rate == pytest.approx(share * config.optim.learning_rate_at(step - 1, 7))
    assert [row["train/rollbacks"] for row in rows if "train/rollbacks" in row] == [1]
    info = checkpoint.read_info(checkpoint.step_folder(tmp_path, 7))
    assert info["rollbacks"] == 1
    assert info["learning_rate_scale"] == 0.5


def test_rollbacks_are_bounded(tmp_path: Path) -> None:
    config = small_config(checkpoint_every=2, on_divergence="rollback", max_rollbacks=2)
    with (
        poison({9, 10, 11, 12, 13}),
        pytest.raises(TrainingError, match="after 2 rollbacks") as caught,
    ):
        train(config, MovingData(), Hooks(), RunFolder(str(tmp_path)))
    assert "not finite at step 4" in str(caught.value)
    assert "the last good checkpoint is" in str(caught.value)
    assert latest(tmp_path) == checkpoint.step_folder(tmp_path, 4)


def test_without_a_checkpoint_there_is_nothing_to_roll_back_to(tmp_path: Path) -> None:
    config = small_config(on_divergence="rollback")
    with poison({3}), pytest.raises(TrainingError, match="there is no checkpoint yet"):
        train(config, MovingData(), Hooks(), RunFolder(str(tmp_path)))


def test_a_gradient_that_is_no_number_moves_no_weight(tmp_path: Path) -> None:
    """Though the loss is finite: a square root that is 0 has none."""
    calls = 0

    def rooted(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        error = squared_error(output, target)
        if calls == 9:
            error = error + (output - output.detach()).square().flatten(1).sum(1).sqrt()
        return error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_step, "squared_error", rooted)
        with pytest.raises(
            TrainingError, match="gradient is not finite at step 4, though the loss"
        ):
            train(small_config(checkpoint_every=2), MovingData(), Hooks(), RunFolder(str(tmp_path)))
    assert latest(tmp_path) == checkpoint.step_folder(tmp_path, 4)


def test_an_exploding_loss_is_a_divergence(tmp_path: Path) -> None:
    """Finite, but far above its own level: found by the health checks, met by a rollback."""
    config = small_config(checkpoint_every=10, max_steps=90, on_divergence="stop")
    calls = 0

    def exploding(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return squared_error(output, target) * (1e4 if calls > 90 else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_step, "squared_error", exploding)
        with pytest.raises(TrainingError, match="the last good checkpoint is"):
            train(config, MovingData(), Hooks(), RunFolder(str(tmp_path)))
    rows = journal.read(tmp_path / "metrics.jsonl")
    assert "health/exploding-loss" in rows[-1]
    assert 45 + 20 <= rows[-1]["step"] < 45 + 25
