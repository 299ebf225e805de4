"""Replay buffer: past reconstructions that the discriminator is shown again."""

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

    The bound in bytes is shared equally by the slots of the GLOBAL batch, so that what a slot
    remembers is the same for any number of workers. Values are kept as float16: half of float32,
    exact to 2^-11, and, unlike bytes, free of a quantisation that would give a fake away.

    All that a slot remembers has one shape, since it is shown together: a clip of another shape,
    as after a resume with other `data.*`, takes the place of everything that was there.

    Args:
        max_bytes: bound over all workers.
        slots: slots of the global batch.
        seed: of the draws.
    """

    def __init__(self, max_bytes: int, slots: int, seed: int) -> None:
        self.max_bytes_per_slot = max_bytes // slots
        self.seed = seed
        self.memory: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._has_warned = False

    def insert(self, step: int, slot: int, images: Tensor, context: Tensor) -> None:
        """Remember one clip; once the slot's memory is full, in place of a random one.

        Args:
            images: [groups, channels, H, W], the clip's grouped frames.
            context: [channels, h, w].

        Raises:
            TrainingError: where the memory does not hold a single clip.
        """
        entry = (images.detach().half(), context.detach().half())
        memory = self.memory.setdefault(slot, [])
        if memory and _shapes(memory[0]) != _shapes(entry):
            self._warn_of_another_shape(memory[0][0], images)
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

    def show(self, step: int, slot: int, group: int) -> tuple[Tensor, Tensor]:
        """Group `group` of a random remembered clip of `slot`, and its context, in float16."""
        memory = self.memory[slot]
        random = keyed_generator(self.seed, step, slot, Purpose.REPLAY_SHOW)
        choice = int(random.integers(len(memory), size=group + 1)[group])
        images, context = memory[choice]
        return images[group], context

    def snapshot(self) -> Callable[[], dict[str, Tensor]]:
        """Every slot's memory as it is now, to be stacked on the CPU later, maybe by another
        thread: `slot.3.images` and `slot.3.context`. Entries are never written to, so none is
        copied before."""
        memories = {slot: list(memory) for slot, memory in self.memory.items()}

        def stacked() -> dict[str, Tensor]:
            state = {}
            for slot, memory in memories.items():
                state[f"slot.{slot}.images"] = _stacked([images for images, _ in memory])
                state[f"slot.{slot}.context"] = _stacked([context for _, context in memory])
            return state

        return stacked

    def load(self, slot: int, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take over one slot's memory from `state`, as far as this buffer's bound allows."""
        images = state[f"slot.{slot}.images"].to(device)
        context = state[f"slot.{slot}.context"].to(device)
        entries = [(i.clone(), c.clone()) for i, c in zip(images, context, strict=True)]
        self.memory[slot] = entries[: self._capacity(entries[0])]

    def _capacity(self, entry: tuple[Tensor, Tensor]) -> int:
        """How many entries of this size a slot's memory holds."""
        return self.max_bytes_per_slot // _size(entry)

    def _warn_of_another_shape(self, old: Tensor, new: Tensor) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "the replay buffer's clips of %s do not go with today's of %s: they are dropped, "
                "and the buffer fills anew",
                _described(old),
                _described(new),
            )


def _size(entry: tuple[Tensor, Tensor]) -> int:
    """In bytes."""
    return sum(tensor.nbytes for tensor in entry)


def _shapes(entry: tuple[Tensor, Tensor]) -> tuple[torch.Size, torch.Size]:
    images, context = entry
    return images.shape, context.shape


def _described(images: Tensor) -> str:
    groups, _, height, width = images.shape
    return f"{groups} groups of {height}x{width}"


def _stacked(tensors: list[Tensor]) -> Tensor:
    """On the CPU; one by one, since a GPU may have no room for all of them a second time.

    By numpy: with torch, a second thread would have OpenMP threads of its own, and libgomp, which
    then counts more threads than cores, lets those of training sleep between two operations
    instead of wait: a step takes up to a fifth longer, for as long as the second thread lives.
    """
    return torch.from_numpy(np.stack([tensor.cpu().numpy() for tensor in tensors]))
