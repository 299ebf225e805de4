"""Changes to the program, inside a process of a test: a save that waits, a loss that is no number,
more digits."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taehv import distributed
from taehv.errors import DivergedError
from taehv.losses.reconstruction import squared_error
from taehv.losses.teacher import Teacher
from taehv.training import loop
from taehv.training import step as one_step
from taehv.training.state import TrainState
from taehv.training.step import StepOutcome, train_step


def hold_save(patch: pytest.MonkeyPatch, name: str, wait: Callable[[], None]) -> None:
    """Each worker waits after every tensor file of the checkpoint `name` that it has written."""

    def held(tensors: dict[str, Tensor], path: Path) -> None:
        save_file(tensors, path)
        if path.parent.name == Path(name).name:
            wait()

    patch.setattr("taehv.run.checkpoint.save_file", held)


def poison(patch: pytest.MonkeyPatch, step: int, rank: int, notes: Path) -> None:
    """Once, at `step`, the loss of worker `rank` is no number.

    Every worker writes down whether its weights moved all the same.
    """
    armed = True
    state_of_step: list[int] = []

    def poisoned(output: Tensor, target: Tensor) -> Tensor:
        nonlocal armed
        bad = armed and state_of_step == [step] and distributed.rank() == rank
        armed = armed and not bad
        return squared_error(output, target) * (math.nan if bad else 1.0)

    def watched(state: TrainState, *arguments: Any) -> StepOutcome:
        state_of_step[:] = [state.step]
        before = weights(state)
        try:
            return train_step(state, *arguments)
        except DivergedError:
            unmoved = all(torch.equal(before[k], v) for k, v in weights(state).items())
            told = "unmoved" if unmoved else "moved"
            (notes / f"weights_{distributed.rank()}.txt").write_text(told)
            raise

    patch.setattr(one_step, "squared_error", poisoned)
    patch.setattr(loop, "train_step", watched)


def weights(state: TrainState) -> Mapping[str, Tensor]:
    """Copies of all that a step moves."""
    networks: dict[str, nn.Module] = {"generator": state.generator, "ema": state.ema.network}
    if state.adversary:
        networks["discriminator"] = state.adversary.network
    return {
        f"{name}.{key}": value.clone()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


def compute_in_double(patch: pytest.MonkeyPatch) -> None:
    """float64 in the place of float32, by renaming: what is left of a difference between two ways
    to add up the same numbers is then far below what a wrong number would make. For runs without
    ZeRO and clipping: DeepSpeed's partitions and its norm are float32 whatever the network is."""
    from deepspeed import get_accelerator
    from deepspeed.runtime.engine import DeepSpeedEngine

    torch.set_default_dtype(torch.float64)
    patch.setattr(torch.Tensor, "float", torch.Tensor.double)
    patch.setattr(torch.nn.Module, "float", torch.nn.Module.double)
    # DeepSpeed insists on float32 where neither half precision is on, and sends gradients as such.
    patch.setattr(DeepSpeedEngine, "_DeepSpeedEngine__check_params", lambda *_: None)
    patch.setattr(DeepSpeedEngine, "communication_data_type", torch.float64)
    patch.setattr(get_accelerator(), "supported_dtypes", lambda: [torch.float64])

    make = Teacher.__init__

    def made_in_double(self: Teacher, vae: Any, *others: Any) -> None:
        make(self, vae.double(), *others)

    patch.setattr(Teacher, "__init__", made_in_double)
