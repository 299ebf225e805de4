"""An estimate of a worker's memory that needs neither a GPU nor the memory itself.

The networks run on fake tensors, which have a shape but no data, and every storage that would be
allocated is counted while it lives. What a GPU's libraries allocate, such as cuDNN's workspaces,
and fragmentation are not counted: `memory.USABLE` leaves room for them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from taehv.model.blocks import IMAGE_CHANNELS
from taehv.slots import SlotLayout
from taehv.training.config import TrainingConfig
from taehv.training.engines import trainable
from taehv.training.soap import bases_bytes

BUCKETS = 2 * 20_000_000 * 4
"""Bytes of the two buckets of an engine's collectives, which are there from ZeRO 1 on."""


@dataclass(frozen=True)
class Footprint:
    """Memory of one worker, in bytes."""

    between_passes: int
    """Weights, averaged weights, gradients, optimizer states and replay memory."""
    one_pass: int
    """Allocated on top of that at the peak of a pass."""
    gradients: int
    """Gradients that the workers exchange in a step."""

    @property
    def total(self) -> int:
        return self.between_passes + self.one_pass


def footprint(
    config: TrainingConfig, layout: SlotLayout, clip_shape: Sequence[int], bf16: bool
) -> Footprint:
    """Estimate the memory of a run, without a teacher's, for clips of [T, C, H, W]; the networks
    compute in bf16 or in float32."""
    with FakeTensorMode():
        generator = TAEHV(config.model)
        generator.encoder.requires_grad_(not config.train.freeze_encoder)
        generator.gradient_checkpointing = config.train.gradient_checkpointing
        adversary = None
        if config.loss.seraena > 0:
            adversary = Discriminator(
                IMAGE_CHANNELS * config.seraena.frames_per_group,
                generator.latent_channels,
                config.seraena.widths,
            )
        networks = [network for network in (generator, adversary) if network is not None]
        weights = sum(_weight_bytes(network.parameters()) for network in networks)
        trained = sum(_weight_bytes(trainable(network)) for network in networks)
        with _AllocationCounter() as counter:
            _one_pass(config, layout, generator, adversary, clip_shape, bf16)
            peak = counter.peak
    optimizers = 2 * trained  # Two moments of each.
    if config.optim.zero_stage:
        # ZeRO keeps a float32 copy of the weights too, and partitions all three over the workers.
        optimizers = 3 * trained // layout.workers + BUCKETS * len(networks)
    if config.optim.optimizer == "soap":
        optimizers += sum(map(bases_bytes, trainable(generator)))
    replay = int(config.seraena.replay_gigabytes * 1e9) // layout.workers if adversary else 0
    between_passes = (
        weights
        + trained  # Gradients.
        + _weight_bytes(generator.parameters())  # The averaged weights.
        + optimizers
        + replay
    )
    # The pass made the gradients, which are counted above.
    return Footprint(between_passes, max(0, peak - trained), trained)


def _weight_bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() * 4 for parameter in parameters)


def _one_pass(
    config: TrainingConfig,
    layout: SlotLayout,
    generator: TAEHV,
    adversary: Discriminator | None,
    clip_shape: Sequence[int],
    bf16: bool,
) -> None:
    """Allocate what one pass of `step.train_step` allocates."""
    clips = layout.slots_per_pass
    frames = torch.rand(clips, *clip_shape)
    # Fake tensors pretend to be on a CPU.
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, bf16)
    with autocast():
        encoded, decoded = generator(frames)
    frames, decoded = generator.alignment.pair(frames, decoded)
    loss = squared_error(decoded, frames).sum()
    if adversary:
        groups = clips // layout.slots_per_group
        with autocast():
            target = corrected_targets(adversary, frames, decoded, encoded, config.seraena, groups)
        loss = loss + squared_error(decoded, target).sum()
    torch.autograd.backward(loss)
    if adversary:
        images = group_frames(decoded.detach().float(), config.seraena.frames_per_group)
        context = clip_context(encoded).repeat_interleave(len(images) // clips, 0)
        with autocast():
            scores = adversary(images, context)
        torch.autograd.backward(scores.square().mean())


class _AllocationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocated = self.peak = 0
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
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._subtract, size).atexit = False

    def _subtract(self, size: int) -> None:
        self.allocated -= size
