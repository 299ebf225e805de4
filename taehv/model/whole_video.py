"""Videos of any length through a network, one frame at a time, in constant memory.

The end is extended, by repeating the last frame, to a length that comes back whole, and cut off
again; so frame t of the result reconstructs frame t of the video (see `taehv.model.alignment`), and
the numbers are those of `TAEHV.reconstruct_video`.

Shape letters: N videos, C channels, H height, W width, h and w latent size.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat

import torch
from torch import Tensor

from taehv.model.network import TAEHV
from taehv.model.streaming import StreamingDecoder, StreamingEncoder
from taehv.precision import autocast


def num_latents(model: TAEHV, num_frames: int) -> int:
    """How many latents a video of so many frames is encoded to."""
    return model.alignment.num_latents(model.alignment.padded_length(num_frames))


@torch.no_grad()
def stream_latents(
    model: TAEHV, frames: Iterable[Tensor], dtype: torch.dtype | None = None
) -> Iterator[Tensor]:
    """Frames [N, 3, H, W] in [0, 1], at least one -> latents [N, C, h, w] float32.

    dtype: of autocast; None for float32.
    """
    encoder = StreamingEncoder(model)
    for frame in _extended(frames, model.alignment.padded_length):
        with autocast(dtype):
            latent = encoder.encode(frame)
        if latent is not None:
            yield latent.float()
    with autocast(dtype):
        latent = encoder.flush()
    if latent is not None:
        yield latent.float()


@torch.no_grad()
def stream_frames(
    model: TAEHV, latents: Iterable[Tensor], num_frames: int, dtype: torch.dtype | None = None
) -> Iterator[Tensor]:
    """The latents of a video of num_frames frames -> its frames, [N, 3, H, W] in [0, 1] float32."""
    decoder = StreamingDecoder(model, num_latents(model, num_frames))
    left = num_frames
    for latent in latents:
        with autocast(dtype):
            decoded = decoder.decode(latent)
        for frame in decoded[:left]:
            yield frame.float()
        left -= min(left, len(decoded))


def _extended(frames: Iterable[Tensor], padded_length: Callable[[int], int]) -> Iterator[Tensor]:
    """The frames, the last one repeated up to the padded length of as many."""
    last: Tensor | None = None
    count = 0
    for last in frames:
        count += 1
        yield last
    if last is not None:
        yield from repeat(last, padded_length(count) - count)
