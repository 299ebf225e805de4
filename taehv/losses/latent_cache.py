"""The teacher's latents of clips that come again, so that they are computed once.

Within a run every clip is another crop, but the trials of a sweep and the steps after a rollback
meet the same ones. What is remembered belongs to the bytes of a pass, so it can never be the
latents of another clip; and to a whole pass, since a network's last bits may differ with the number
of clips it is given at once, and a run must not depend on what was remembered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


class LatentCache:
    """Latents in the host's memory, up to a bound.

    Once full it keeps what it has: trials go through the same clips in the same order, and whoever
    made room for the newest would have none left of the first when the next trial begins.

    Args:
        max_bytes: of latents.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: dict[bytes, Tensor] = {}
        self._bytes = 0

    def get(self, clips: np.ndarray, device: torch.device, compute: Callable[[], Tensor]) -> Tensor:
        """The latents of a pass on `device`: those of an earlier call, or else `compute`'s.

        Args:
            clips: uint8 [N, T, 3, H, W], contiguous.
            compute: gives what the teacher makes of exactly these clips, on `device`.
        """
        shape = np.asarray(clips.shape, np.int64)
        key = hashlib.blake2b(clips.data, digest_size=16, key=shape.tobytes()).digest()
        if key in self._held:
            return self._held[key].to(device, non_blocking=True)
        latents = compute()
        if self._bytes + latents.nbytes <= self.max_bytes:
            self._bytes += latents.nbytes
            # Pinned, a GPU copies from and to it in its own order, and nobody waits.
            held = torch.empty(latents.shape, dtype=latents.dtype, pin_memory=device.type == "cuda")
            self._held[key] = held.copy_(latents, non_blocking=True)
        return latents

    def __len__(self) -> int:
        """Passes that are remembered."""
        return len(self._held)


@lru_cache(maxsize=1)
def process_cache(teacher: str, max_bytes: int) -> LatentCache:
    """One for all runs of this process with the same teacher.

    Args:
        teacher: whatever its latents depend on.
        max_bytes: see `LatentCache`.
    """
    return LatentCache(max_bytes)
