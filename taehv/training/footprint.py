"""What a pass takes of a worker's memory, reckoned without one.

The networks are run on tensors that have a shape but no content, and every storage that would be
allocated is counted for as long as it lives. What a GPU's libraries take besides, such as cuDNN's
workspaces and what is lost between blocks, is not seen: `memory.USABLE` leaves room for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taehv.losses.discriminator import Discriminator
from taehv.losses.reconstruction import squared_error
from taehv.losses.seraena import clip_context, corrected_targets, group_frames
from taehv.model import TAEHV
from taehv.slots import SlotLayout
from taehv.training.config import TrainingConfig
from taehv.training.state import IMAGE_CHANNELS

BUCKETS = 2 * 20_000_000 * 4
"""Bytes of the two buckets that an engine exchanges gradients and weights in, from ZeRO 1 on."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one worker."""

    at_rest: int
    """Weights, averages, gradients, optimizer states, replay memory: between passes."""
    one_pass: int
    """What is alive besides at the worst moment of a pass."""
    gradients: int
    """What workers exchange in a step."""

    @property
    def total(self) -> int:
        return self.at_rest + self.one_pass


def footprint(
    config: TrainingConfig, layout: SlotLayout, clip_shape: Sequence[int], bf16: bool
) -> Footprint:
    """Of the run that `config` describes; a teacher is not part of it.

    Args:
        config: the run's configuration.
        layout: how the slots are shared out.
        clip_shape: [T, C, H, W] of a clip.
        bf16: whether the networks compute in bf16 rather than in float32.
    """
    with FakeTensorMode():
        generator = TAEHV(config.model)
        generator.gradient_checkpointing = config.train.gradient_checkpointing
        adversary = None
        if config.loss.seraena > 0:
            adversary = Discriminator(
                IMAGE_CHANNELS * config.seraena.frames_per_group,
                generator.latent_channels,
                config.seraena.widths,
            )
        networks = [network for network in (generator, adversary) if network is not None]
        weights = sum(_weight_bytes(network) for network in networks)
        with _Live() as live:
            _one_pass(config, layout, generator, adversary, clip_shape, bf16)
            peak = live.peak
    optimizers = 2 * weights  # Two moments of each.
    if config.optim.zero_stage:
        # With a float32 copy of the weights, all shared out among the workers.
        optimizers = 3 * weights // layout.workers + BUCKETS * len(networks)
    replay = int(config.seraena.replay_gigabytes * 1e9) // layout.workers if adversary else 0
    at_rest = (
        2 * weights  # The weights, and their gradients.
        + _weight_bytes(generator)  # The averaged weights.
        + optimizers
        + replay
    )
    # The pass made the gradients, which are counted above.
    return Footprint(at_rest, max(0, peak - weights), weights)


def _weight_bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * 4 for parameter in network.parameters())


def _one_pass(
    config: TrainingConfig,
    layout: SlotLayout,
    generator: TAEHV,
    adversary: Discriminator | None,
    clip_shape: Sequence[int],
    bf16: bool,
) -> None:
    """The tensors of one round of `step.train_step`."""
    clips = layout.slots_per_pass
    frames = torch.rand(clips, *clip_shape)
    with _autocast(bf16):
        encoded, decoded = generator(frames)
    frames, decoded = generator.alignment.pair(frames, decoded)
    loss = squared_error(decoded, frames).sum()
    if adversary:
        groups = clips // layout.slots_per_group
        with _autocast(bf16):
            target = corrected_targets(adversary, frames, decoded, encoded, config.seraena, groups)
        loss = loss + squared_error(decoded, target).sum()
    torch.autograd.backward(loss)
    if adversary:
        images = group_frames(decoded.detach().float(), config.seraena.frames_per_group)
        context = clip_context(encoded).repeat_interleave(len(images) // clips, 0)
        with _autocast(bf16):
            scores = adversary(images, context)
        torch.autograd.backward(scores.square().mean())


@contextmanager
def _autocast(bf16: bool) -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        yield


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages from the operation that makes them to their end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, size).atexit = False

    def _forget(self, size: int) -> None:
        self.now -= size
