"""`seraena.start_step`: until then the generator is trained as without an adversary."""

import dataclasses
from pathlib import Path

import pytest
import torch

from taehv.losses.seraena import SeraenaConfig
from taehv.model.weights import read_weights
from tests.helpers.small_run import latest, run, small_config, with_train

STEPS = 4


def _generator(folder: Path, start_step: int, weight: float) -> dict[str, torch.Tensor]:
    config = with_train(small_config(), max_steps=STEPS, checkpoint_every=STEPS)
    config = dataclasses.replace(
        config,
        loss=dataclasses.replace(config.loss, seraena=weight),
        seraena=dataclasses.replace(config.seraena, start_step=start_step),
    )
    run(config, folder)
    newest = latest(folder)
    assert newest is not None
    return read_weights(newest / "generator.safetensors")


def test_before_its_start_the_adversary_moves_nothing(tmp_path: Path) -> None:
    without = _generator(tmp_path / "without", 0, weight=0.0)
    later = _generator(tmp_path / "later", STEPS, weight=5.0)
    in_time = _generator(tmp_path / "in_time", STEPS - 1, weight=5.0)
    assert all(torch.equal(without[key], later[key]) for key in without)
    assert not all(torch.equal(without[key], in_time[key]) for key in without)


def test_it_cannot_be_negative() -> None:
    with pytest.raises(ValueError, match=r"seraena.start_step is -1"):
        SeraenaConfig(start_step=-1)
