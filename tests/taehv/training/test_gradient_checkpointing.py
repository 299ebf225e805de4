"""Activations computed again in the backward pass: the same numbers from less memory."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from taehv.model import TAEHV, ModelConfig, timesteps
from taehv.run import checkpoint as checkpoint_folder
from taehv.training.config import TrainingConfig
from tests.helpers.jobs_run import REPOSITORY
from tests.helpers.small_run import run, small_config
from tests.helpers.workers import run_workers
from tests.taehv.model.test_time import SMALL, random_model
from tests.taehv.training.test_loop import assert_close, assert_same_tensors, losses

HALF_WIDTH = ModelConfig(encoder_width=32, decoder_widths=(128, 64, 32, 32))

PEAK = """
import sys
import torch
from taehv.model import TAEHV, ModelConfig

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

torch.set_num_threads(1)
model = TAEHV(ModelConfig(encoder_width=32, decoder_widths=(128, 64, 32, 32)))
model.gradient_checkpointing = sys.argv[1] == "True"
model(torch.rand(1, 1, 3, 16, 16))[1].mean().backward()
before = peak()
model(torch.rand(2, 9, 3, 64, 64))[1].square().mean().backward()
print(peak() - before)
"""


def gradients(
    model: TAEHV, frames: Tensor, latents: Tensor | None, bf16: bool
) -> dict[str, Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        encoded, decoded = model(frames, latents)
    (decoded.float().square().mean() + encoded.float().square().mean()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_equal_to_the_bit(name: str, bf16: bool) -> None:
    model = random_model(SMALL[name]).train()
    side = model.space_downscale
    frames = torch.rand(2, 9, 3, side, 2 * side)
    latents = torch.randn_like(model.encode_video(frames)).detach()
    for fed in (None, latents):
        model.gradient_checkpointing = False
        expected = gradients(model, frames, fed, bf16)
        model.gradient_checkpointing = True
        found = gradients(model, frames, fed, bf16)
        assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


def test_nothing_is_computed_again_outside_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> Tensor:
        raise AssertionError("checkpointing")

    monkeypatch.setattr(timesteps, "checkpoint", refused)
    model = random_model(SMALL["taehv"])
    model.gradient_checkpointing = True
    frames = torch.rand(1, 5, 3, 8, 8)
    model(frames)
    model.train()
    model(frames, parallel=False)
    with torch.no_grad():
        model(frames)
    with pytest.raises(AssertionError, match="checkpointing"):
        model(frames)


def bytes_kept(checkpointing: bool) -> int:
    """What a forward pass keeps for the backward pass, besides the weights; each storage once."""
    model = TAEHV(HALF_WIDTH)
    model.gradient_checkpointing = checkpointing
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Holding on to it keeps its address from being given out again.
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.rand(1, 9, 3, 64, 64))
    return sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in weights)


def test_a_seventh_is_kept_for_the_backward_pass() -> None:
    """Measured: 36.5 MB without, 4.6 MB with."""
    assert bytes_kept(checkpointing=False) > 7 * bytes_kept(checkpointing=True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_the_peak_is_lower() -> None:
    """Of forward and backward together: one segment at full resolution sets the lower bound.

    Measured: 155 MB without, 79 MB with.
    """
    # Otherwise the allocator keeps what is freed, and the peak is that of its own habits.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "PYTHONPATH": str(REPOSITORY),
    }
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", PEAK, str(checkpointing)],
                env=environment,
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )
        for checkpointing in (False, True)
    ]
    assert peaks[0] > 1.6 * peaks[1]


def config_of(stage: Literal[0, 1, 2], **settings: Any) -> TrainingConfig:
    config = small_config(max_steps=3, **settings)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, zero_stage=stage))


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        (0, {}),
        (1, {"max_clips_per_pass": 2}),
        pytest.param(2, {"precision": "bf16"}, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_equal_to_the_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: Literal[0, 1, 2],
    settings: dict[str, Any],
) -> None:
    segments: list[object] = []

    def counted(run_segment: Any, layers: object, *inputs: Any, **options: Any) -> Any:
        segments.append(layers)
        return checkpoint(run_segment, layers, *inputs, **options)

    monkeypatch.setattr(timesteps, "checkpoint", counted)
    run(config_of(stage, **settings), tmp_path / "without")
    assert segments == []
    config = config_of(stage, gradient_checkpointing=True, **settings)
    run(config, tmp_path / "with")
    # Three stages and what is around them, in encoder and decoder, in each pass of each step.
    assert len(segments) == 3 * config.train.layout(1).passes * 2 * 7
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    last = checkpoint_folder.name_of(3)
    assert_same_tensors(tmp_path / "with" / last, tmp_path / "without" / last)


def test_two_workers_that_share_gradients(tmp_path: Path) -> None:
    run(config_of(2), tmp_path / "without")
    config = config_of(2, gradient_checkpointing=True, max_clips_per_pass=2)
    run_workers(2, run, config, tmp_path / "with")
    assert_close(tmp_path / "with", tmp_path / "without", 1e-3)
