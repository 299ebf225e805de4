"""A cache of the teacher's latents, for clips that recur.

Within a run every clip is another crop, but the trials of a sweep and the steps after a rollback
use the same clips. The key is a hash of a pass's bytes, so that an entry can never be the latents
of another clip. It covers the whole pass, since a network's last bits may differ with the number of
clips in a batch, and a run must not depend on what the cache holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


class LatentCache:
    """Latents in host memory, at most `max_bytes` of them.

    A full cache evicts nothing: trials go through the same clips in the same order, so evicting the
    oldest would drop each entry just before the next trial needs it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: dict[bytes, Tensor] = {}
        self._bytes = 0

    def get(self, clips: np.ndarray, device: torch.device, compute: Callable[[], Tensor]) -> Tensor:
        """The latents of a pass on `device`: from the cache, or else from `compute`.

        Args:
            clips: uint8 [N, T, 3, H, W], contiguous.
            device: where the latents are wanted.
            compute: the teacher's latents of exactly these clips, on `device`.
        """
        shape = np.asarray(clips.shape, np.int64)
        key = hashlib.blake2b(clips.data, digest_size=16, key=shape.tobytes()).digest()
        if key in self._entries:
            return self._entries[key].to(device, non_blocking=True)
        latents = compute()
        if self._bytes + latents.nbytes <= self.max_bytes:
            self._bytes += latents.nbytes
            # A GPU copies from and to pinned memory asynchronously.
            pinned = device.type == "cuda"
            entry = torch.empty(latents.shape, dtype=latents.dtype, pin_memory=pinned)
            self._entries[key] = entry.copy_(latents, non_blocking=True)
        return latents

    def __len__(self) -> int:
        """Cached passes."""
        return len(self._entries)


@lru_cache(maxsize=1)
def process_cache(teacher: str, max_bytes: int) -> LatentCache:
    """The cache of all runs of this process with the same teacher, identified by a text of
    everything that its latents depend on."""
    return LatentCache(max_bytes)
