"""A start from scratch that is already a codec: weights by linear algebra, from a few clips.

Principal components of blocks of pixels, as many as a latent has channels, are the best linear code
of that size, and need no training. `solve_start` writes them into the real network, as far as its
layers allow, so that training begins there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taehv.model.alignment import repeat_last_frame
from taehv.model.network import TAEHV
from taehv.model.start.blocks_of_pixels import Picture
from taehv.model.start.decoder import solve_decoder
from taehv.model.start.encoder import solve_encoder
from taehv.model.start.layers import CLIPS_PER_CHUNK, colour_corners
from taehv.model.start.super_decoder import solve_super_decoder

__all__ = [
    "CLIPS",
    "CLIPS_PER_CHUNK",
    "LATENTS_PER_SIDE",
    "StartError",
    "check_start",
    "solve_start",
]

CLIPS = 8 * CLIPS_PER_CHUNK
"""That a start is solved from, where a run has so many."""

LATENTS_PER_SIDE, LATENTS_IN_TIME = 8, 3
"""Clips are cut to so many; more would cost time and memory, and change little. Where an even
number of latents has another rule of frames than an odd one, to one more if theirs is even."""

NARROWEST = 3
"""Channels of a stage: a feature, the same of the step before, and the constant."""


class StartError(ValueError):
    """A start cannot be solved for such a network, or from such clips."""


def check_start(model: TAEHV, num_frames: int) -> None:
    """Raise StartError unless a start can be solved from clips of so many frames."""
    a = model.architecture
    narrowest = min(a.encoder_width, *a.decoder_widths)
    if narrowest < NARROWEST:
        raise StartError(f"a stage has {narrowest} channels, and a solved start needs {NARROWEST}")
    if a.space_upscale != a.space_downscale:
        raise StartError("decoded frames have another size than the input's")
    trim = model.alignment.frames_to_trim(model.alignment.num_latents(num_frames))
    # The first latent whose raw frames all lie in the clip.
    end = -(-trim // a.time_upscale) * a.time_upscale - trim + a.time_upscale
    needed = (end - 1) * model.alignment.frame_step + 1
    if num_frames < needed:
        raise StartError(f"clips have {num_frames} frames, and a solved start needs {needed}")


@torch.no_grad()
def solve_start(
    model: TAEHV, clips: Tensor, latents: Tensor | None = None, decodes_latents: bool = False
) -> None:
    """Write weights into a network that has been initialised, in place.

    Args:
        clips: float [N, T, 3, H, W] in [0, 1], N a multiple of CLIPS_PER_CHUNK; CLIPS are enough.
        latents: what the encoder should make of them, [N, T_lat, C, H_lat, W_lat], whose scale
            is then kept; None: as it likes, centred on 0, of one spread.
        decodes_latents: whether the decoder is given these, and not the encoder's own.

    Raises StartError where `check_start` does.
    """
    check_start(model, clips.shape[1])
    a = model.architecture
    latents_in_time = LATENTS_IN_TIME + model.alignment.learns_another_rule(clips.shape[1])
    clips = clips[
        :,
        : latents_in_time * a.time_downscale,
        :,
        : LATENTS_PER_SIDE * a.space_downscale,
        : LATENTS_PER_SIDE * a.space_downscale,
    ]
    count = model.alignment.num_latents(clips.shape[1])
    whole = repeat_last_frame(clips, count * a.time_downscale)
    wanted = None
    if latents is not None:
        latents = latents[:, :count, :, :LATENTS_PER_SIDE, :LATENTS_PER_SIDE]
        wanted = [_time_outermost(part) for part in torch.split(latents, CLIPS_PER_CHUNK)]
    parts = [*torch.split(whole, CLIPS_PER_CHUNK), colour_corners(whole)]
    frames = [_time_outermost(model.fold(part)) for part in parts]
    encoded = solve_encoder(model.encoder, frames, wanted)
    paired = clips[:, :: model.alignment.frame_step]
    picture = Picture(
        [model.fold(part) for part in torch.split(paired, CLIPS_PER_CHUNK)],
        model.alignment.frames_to_trim(count),
    )
    block = a.time_upscale, a.space_upscale // a.patch_size
    solve = solve_super_decoder if a.super_decoder else solve_decoder
    given = [*wanted, encoded[-1]] if wanted and decodes_latents else encoded
    solve(model.decoder, given, picture, block)


def _time_outermost(video: Tensor) -> Tensor:
    """[N, T, C, H, W] -> [T * N, C, H, W]."""
    return video.transpose(0, 1).flatten(0, 1)
