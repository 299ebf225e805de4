"""Replay buffer: past reconstructions on which the discriminator trains again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from taehv.errors import TrainingError
from taehv.slots import Purpose, keyed_generator

log = logging.getLogger(__name__)


class ReplayBuffer:
    """For each slot of this worker, a memory of past reconstructions with their contexts.

    The slots of the GLOBAL batch share `max_bytes` equally, so a slot's memory is the same for any
    number of workers. Values are kept as float16: half of float32, exact to 2^-11, and, unlike
    bytes, without a quantisation that would tell fakes from real frames.

    All entries of a slot have one shape, since they are batched together: a clip of another shape,
    as after a resume with other `data.*`, replaces everything in its slot.

    Args:
        max_bytes: limit over all workers.
        slots: slots of the global batch.
        seed: key of the random draws.
    """

    def __init__(self, max_bytes: int, slots: int, seed: int) -> None:
        self.max_bytes_per_slot = max_bytes // slots
        self.seed = seed
        self.memory: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._has_warned = False

    def insert(self, step: int, slot: int, images: Tensor, context: Tensor) -> None:
        """Store one clip; once the slot's memory is full, it replaces a random one.

        Raises TrainingError if the slot's memory is too small for a single clip.

        Args:
            step, slot: the clip's, which key the random choice.
            images: [groups, channels, H, W], the clip's grouped frames.
            context: [channels, h, w].
        """
        entry = (images.detach().half(), context.detach().half())
        memory = self.memory.setdefault(slot, [])
        if memory and [x.shape for x in memory[0]] != [x.shape for x in entry]:
            if not self._has_warned:
                log.warning(
                    "the replay buffer holds clips of %s, but the run now trains on %s: the old "
                    "clips are dropped, and the buffer fills again",
                    _format_shape(memory[0][0]),
                    _format_shape(images),
                )
            self._has_warned = True
            memory.clear()
        capacity = self._capacity(entry)
        if capacity == 0:
            raise TrainingError(
                f"the replay buffer has {self.max_bytes_per_slot:,} bytes per slot, but one clip "
                f"takes {_size(entry):,}: raise --seraena.replay-gigabytes"
            )
        if len(memory) < capacity:
            memory.append(entry)
        else:
            random = keyed_generator(self.seed, step, slot, Purpose.REPLAY_INSERT)
            memory[int(random.integers(len(memory)))] = entry

    def sample(self, step: int, slot: int, group: int) -> tuple[Tensor, Tensor]:
        """Group `group` of a random stored clip of `slot`, and its context, in float16."""
        memory = self.memory[slot]
        random = keyed_generator(self.seed, step, slot, Purpose.REPLAY_SAMPLE)
        choice = int(random.integers(len(memory), size=group + 1)[group])
        images, context = memory[choice]
        return images[group], context

    def snapshot(self) -> Callable[[], dict[str, Tensor]]:
        """A function that stacks every slot's present memory on the CPU, by the keys
        `slot.3.images` and `slot.3.context`. It may be called later, by another thread: entries are
        never written to, so none has to be copied first."""
        memories = {slot: list(memory) for slot, memory in self.memory.items()}

        def stack() -> dict[str, Tensor]:
            state = {}
            for slot, memory in memories.items():
                state[f"slot.{slot}.images"] = _stack([images for images, _ in memory])
                state[f"slot.{slot}.context"] = _stack([context for _, context in memory])
            return state

        return stack

    def load(self, slot: int, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Restore one slot's memory from `state`, as much of it as fits."""
        images = state[f"slot.{slot}.images"].to(device)
        context = state[f"slot.{slot}.context"].to(device)
        entries = [(i.clone(), c.clone()) for i, c in zip(images, context, strict=True)]
        self.memory[slot] = entries[: self._capacity(entries[0])]

    def _capacity(self, entry: tuple[Tensor, Tensor]) -> int:
        """Entries of this size that fit into a slot's memory."""
        return self.max_bytes_per_slot // _size(entry)


def clip_bytes(
    clip: tuple[int, int, int, int], frames_per_group: int, latent_channels: int, downscale: int
) -> int:
    """What a clip of [T, C, H, W] takes, with its context."""
    num_frames, channels, height, width = clip
    groups = -(-num_frames // frames_per_group)
    images = groups * frames_per_group * channels * height * width
    context = latent_channels * (height // downscale) * (width // downscale)
    return 2 * (images + context)


def _size(entry: tuple[Tensor, Tensor]) -> int:
    """In bytes."""
    return sum(tensor.nbytes for tensor in entry)


def _format_shape(images: Tensor) -> str:
    groups, _, height, width = images.shape
    return f"{groups} groups of {height}x{width}"


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stacked on the CPU, one by one, since a GPU may lack the memory for a second copy of all.

    NumPy does it, because torch in a second thread would start OpenMP threads of its own. libgomp,
    which then counts more threads than cores, lets the training threads sleep between operations
    instead of spinning, and a step takes up to a fifth longer while the second thread lives.
    """
    return torch.from_numpy(np.stack([tensor.cpu().numpy() for tensor in tensors]))
