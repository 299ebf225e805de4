"""What a pass is reckoned to take, against what PyTorch's own profiler sees it allocate."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from taehv.losses.discriminator import Discriminator
from taehv.model import TAEHV
from taehv.training import footprint as module
from taehv.training.config import TrainingConfig
from taehv.training.footprint import BUCKETS, footprint
from taehv.training.soap import Soap
from tests.helpers.small_run import small_config

SHAPE = (5, 3, 32, 32)


def reckoned(config: TrainingConfig, workers: int = 1, bf16: bool = False) -> module.Footprint:
    return footprint(config, config.train.layout(workers), SHAPE, bf16)


def allocated_at_most(config: TrainingConfig) -> int:
    """Bytes, by the profiler's record of every allocation, of one real pass."""
    layout = config.train.layout(1)
    generator = TAEHV(config.model)
    adversary = Discriminator(
        3 * config.seraena.frames_per_group, generator.latent_channels, config.seraena.widths
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module._one_pass(config, layout, generator, adversary, SHAPE, bf16=False)
    now = most = 0
    for event in sorted(_memory_events(profiler), key=lambda event: event.start_time_ns):
        now += event.typed[1].alloc_size
        most = max(most, now)
    return most


def _memory_events(profiler: Any) -> list[Any]:
    tree = profiler.profiler.kineto_results.experimental_event_tree()
    found, waiting = [], list(tree)
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag.name == "Allocation":
            found.append(event)
    return found


def test_a_pass_takes_what_the_profiler_sees() -> None:
    config = small_config(global_batch_size=4)
    gradients = reckoned(config).gradients
    expected = allocated_at_most(config)
    # Operations may allocate for themselves, which is not seen from outside.
    assert reckoned(config).one_pass + gradients == pytest.approx(expected, rel=0.15)


def test_a_pass_grows_with_its_clips_and_shrinks_by_checkpointing() -> None:
    few, many = (reckoned(small_config(global_batch_size=n)).one_pass for n in (4, 8))
    assert many == pytest.approx(2 * few, rel=0.25)
    less = reckoned(small_config(global_batch_size=8, gradient_checkpointing=True)).one_pass
    assert less < many
    assert reckoned(small_config(global_batch_size=8), bf16=True).one_pass < many


def test_what_is_there_between_passes() -> None:
    config = small_config(global_batch_size=4)
    generator = TAEHV(config.model)
    adversary = Discriminator(
        3 * config.seraena.frames_per_group, generator.latent_channels, config.seraena.widths
    )
    own = 4 * sum(p.numel() for p in generator.parameters())
    both = own + 4 * sum(p.numel() for p in adversary.parameters())
    replay = int(config.seraena.replay_gigabytes * 1e9)
    # Weights, gradients and two moments; the average of one.
    assert reckoned(config).between_passes == 4 * both + own + replay
    assert reckoned(config).gradients == both
    soap = dataclasses.replace(config, optim=dataclasses.replace(config.optim, optimizer="soap"))
    kept = [Soap.empty_state(parameter) for parameter in generator.parameters()]
    bases = [v for state in kept for name, v in state.items() if name[-1].isdigit()]
    assert len(bases) > 100
    grown = reckoned(soap).between_passes - reckoned(config).between_passes
    assert grown == 4 * sum(map(torch.numel, bases))
    # A float32 copy besides, and buckets.
    sharing = dataclasses.replace(config, optim=dataclasses.replace(config.optim, zero_stage=1))
    assert reckoned(sharing).between_passes == 5 * both + own + 2 * BUCKETS + replay
    two = reckoned(sharing, workers=2)
    assert two.between_passes == 2 * both + own + 3 * both // 2 + 2 * BUCKETS + replay // 2
