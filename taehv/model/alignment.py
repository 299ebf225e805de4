"""Which decoded frame belongs to which input frame: the one owner of that rule.

The first time_upscale - 1 raw frames out of the decoder are dropped, and then decoded frame k
reconstructs INPUT frame k. So a clip is compared on its first min(T, decoded) frames, and never
against frames[:, 3:]. With 4 frames to a latent, T = 4k + 1 comes back whole and T = 4k loses its
last three frames.

CogVideoX (trims_even False) is the exception: of an even number of latents nothing is dropped, so
more frames may come back than went in (5 -> 8, 13 -> 16). A decoder does not know how many latents
are to come, and makes the same raw frames of both numbers. So one that learned of an odd number
gives back an even one three frames late, and three frames of nothing first: whole videos are
extended to an odd number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def frames_to_trim(num_latents: int, time_upscale: int, trims_even: bool = True) -> int:
    """Number of raw decoded frames to drop from the start of a clip of num_latents latents."""
    return time_upscale - 1 if trims_even or num_latents % 2 == 1 else 0


def pair(frames: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
    """Cut frames and decoded, both [N, T, C, H, W], to the frames they have in common.

    Holds where the decoder gives back as many frames a second as the encoder took; a model that
    gives fewer pairs by its own `alignment.pair`.
    """
    n = min(frames.shape[1], decoded.shape[1])
    return frames[:, :n], decoded[:, :n]


def repeat_last_frame(frames: Tensor, length: int) -> Tensor:
    """Extend [N, T, C, H, W] to `length` frames by repeating the last; never shortens."""
    missing = length - frames.shape[1]
    if missing <= 0:
        return frames
    return torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], 1)


@dataclass(frozen=True)
class FrameAlignment:
    """The rule for one model: how many latents and frames a clip gives, and how to compare them."""

    time_downscale: int = 4
    """Input frames per latent."""
    time_upscale: int = 4
    """Raw decoded frames per latent."""
    trims_even: bool = True
    """Whether frames are dropped also where the number of latents is even."""

    def num_latents(self, num_frames: int) -> int:
        """Latents that num_frames input frames give, the end being padded to a whole latent."""
        return -(-num_frames // self.time_downscale)

    def frames_to_trim(self, num_latents: int) -> int:
        """Raw decoded frames to drop from the start of a clip of num_latents latents."""
        return frames_to_trim(num_latents, self.time_upscale, self.trims_even)

    def num_decoded(self, num_frames: int) -> int:
        """Frames that come back, after the trim, for num_frames input frames."""
        latents = self.num_latents(num_frames)
        return latents * self.time_upscale - self.frames_to_trim(latents)

    def padded_length(self, num_frames: int) -> int:
        """The next length at which a video comes back whole: time_downscale * k + 1, of an odd
        number of latents where an even one is not trimmed (9, 17, 25 for taecvx)."""
        block = self.time_downscale * (1 if self.trims_even else 2)
        return -(-(num_frames - 1) // block) * block + 1

    def learns_another_rule(self, num_frames: int) -> bool:
        """Whether clips of so many frames teach a decoder to show its frames earlier than whole
        videos need them (see above)."""
        return not self.trims_even and self.num_latents(num_frames) % 2 == 0

    @property
    def frame_step(self) -> int:
        """Input frames per decoded frame; 1 but for a decoder with less time upscaling.

        Raises ValueError where the decoder makes more frames than the encoder took: those in
        between have no input frame to be compared with.
        """
        if self.time_upscale > self.time_downscale:
            raise ValueError(
                f"a decoder that makes {self.time_upscale} frames per latent cannot be compared "
                f"with input of {self.time_downscale} frames per latent"
            )
        return self.time_downscale // self.time_upscale

    def pair(self, frames: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Input frames and the decoded frames that reconstruct them, both [N, n, C, H, W]."""
        return pair(frames[:, :: self.frame_step], decoded)
