"""TAEHV: a tiny causal autoencoder for video, in the public checkpoints' own keys.

Shapes throughout: N clips, T time steps, C channels, H height, W width. Frames are RGB in [0, 1];
latents are roughly Gaussian, and no scale or shift is applied to them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taehv.model.alignment import FrameAlignment, repeat_last_frame
from taehv.model.blocks import IMAGE_CHANNELS, build_decoder, build_encoder
from taehv.model.timesteps import TimeStepper, run_parallel
from taehv.model.variants import ModelConfig


class TAEHV(nn.Module):
    """The autoencoder: frames in [0, 1] to latents and back.

    A fresh instance has PyTorch's own initialisation; `build_model` gives one to train or to use.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        self.architecture = a = self.config.architecture
        self.encoder = build_encoder(a)
        self.decoder = build_decoder(a)
        # Input frames per latent, and raw decoded frames per latent.
        self.time_downscale, self.time_upscale = a.time_downscale, a.time_upscale
        # Pixels per latent position, along height and along width: input ones, and decoded ones.
        self.space_downscale, self.space_upscale = a.space_downscale, a.space_upscale
        self.latent_channels, self.patch_size = a.latent_channels, a.patch_size
        self.alignment = FrameAlignment(a.time_downscale, a.time_upscale, a.trims_even)
        """Which decoded frame belongs to which input frame."""
        self.gradient_checkpointing = False
        """Whether training computes activations again in the backward pass, to keep fewer."""

    def forward(
        self, frames: Tensor, latents: Tensor | None = None, parallel: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Encode frames and decode their latents, or `latents` where given, for the losses.

        Args:
            frames: [N, T, 3, H, W] in [0, 1].
            latents: what to decode instead of the encoder's own, [N, T_lat, C, H_lat, W_lat].

        Returns:
            The encoded latents, and the decoded frames, trimmed but NOT clamped: a clamped value
            has no gradient.
        """
        encoded = self.encode_video(frames, parallel)
        decoded = self.decode_video(encoded if latents is None else latents, parallel, clamp=False)
        return encoded, decoded

    def encode_video(self, frames: Tensor, parallel: bool = True, chunk: int = 0) -> Tensor:
        """Encode [N, T, 3, H, W] in [0, 1] to [N, ceil(T / time_downscale), C, H / d, W / d].

        The end is padded to a whole latent by repeating the last frame; d is space_downscale.
        Raises ValueError for a shape that does not fit.

        Args:
            frames: the video.
            parallel: all frames at once; otherwise one by one and, outside autograd, the memory for
                activations does not depend on T.
            chunk: with `parallel`, latents to make at once, so that memory depends on it instead of
                T, at nearly the same speed; 0: all of them. The numbers are the same.
        """
        self.check_frames(frames)
        _check_chunk(chunk)
        whole = self.alignment.num_latents(frames.shape[1]) * self.time_downscale
        if parallel and not chunk:
            folded = self.fold(repeat_last_frame(frames, whole))
            return run_parallel(self.encoder, folded, self._recomputes())
        stepper = TimeStepper(self.encoder)
        step = chunk * self.time_downscale if parallel else 1
        last = frames.shape[1] - 1
        latents = []
        for start in range(0, whole, step):
            stop = min(start + step, whole)
            part = repeat_last_frame(frames[:, min(start, last) : stop], stop - start)
            latents.append(stepper.push(self.fold(part)))
        return torch.cat([latent for latent in latents if latent is not None], 1)

    def decode_video(
        self, latents: Tensor, parallel: bool = True, clamp: bool = True, chunk: int = 0
    ) -> Tensor:
        """Decode [N, T_lat, C, H_lat, W_lat] to frames [N, T, 3, H, W].

        The leading frames are trimmed by the alignment rule: decoded frame k reconstructs input
        frame k. Raises ValueError for a shape that does not fit.

        Args:
            latents: the encoded video.
            parallel: all latents at once; otherwise one by one and, outside autograd, the memory
                for activations does not depend on T.
            clamp: to [0, 1]; losses need the values as they are.
            chunk: with `parallel`, latents to decode at once, as in `encode_video`; 0: all of them.
        """
        self.check_latents(latents)
        _check_chunk(chunk)
        trim = self.alignment.frames_to_trim(latents.shape[1])
        if parallel and not chunk:
            frames = self.unfold(run_parallel(self.decoder, latents, self._recomputes(), trim))
        else:
            stepper = TimeStepper(self.decoder)
            parts = []
            for part in torch.split(latents, chunk if parallel else 1, 1):
                decoded = stepper.push(part, trim)
                trim = 0  # it is less than what a single latent gives
                if decoded is not None:
                    parts.append(self.unfold(decoded))
            frames = torch.cat(parts, 1)
        return frames.clamp_(0, 1) if clamp else frames

    def reconstruct_video(self, frames: Tensor, parallel: bool = True) -> Tensor:
        """Encode and decode a whole video [N, T, 3, H, W] in [0, 1], clamped, without loss of T.

        The end is extended by repeating the last frame to a length that comes back whole, and cut
        off again, so each input frame has its reconstruction. (A decoder with less time upscaling
        gives each `alignment.frame_step`-th frame.)
        """
        self.check_frames(frames)
        extended = repeat_last_frame(frames, self.alignment.padded_length(frames.shape[1]))
        decoded = self.decode_video(self.encode_video(extended, parallel), parallel)
        return self.alignment.pair(frames, decoded)[1]

    def fold(self, frames: Tensor) -> Tensor:
        """Fold blocks of patch_size x patch_size pixels into channels; any leading dimensions."""
        return F.pixel_unshuffle(frames, self.patch_size) if self.patch_size > 1 else frames

    def unfold(self, decoded: Tensor) -> Tensor:
        """Undo `fold`."""
        return F.pixel_shuffle(decoded, self.patch_size) if self.patch_size > 1 else decoded

    def _recomputes(self) -> bool:
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def check_frames(self, frames: Tensor) -> None:
        """Raise ValueError, naming what is off, unless frames can be encoded."""
        shape = tuple(frames.shape)
        if frames.ndim != 5:
            raise ValueError(f"frames must be NTCHW, five dimensions, but their shape is {shape}")
        if not frames.is_floating_point():
            raise ValueError(f"frames must be floating point in [0, 1], but are {frames.dtype}")
        n, t, c, h, w = shape
        if c != IMAGE_CHANNELS:
            raise ValueError(f"frames must have 3 channels (NTCHW), but their shape is {shape}")
        if n < 1 or t < 1:
            raise ValueError(f"frames hold no frame: their shape is {shape}")
        d = self.space_downscale
        if h < d or w < d or h % d or w % d:
            raise ValueError(
                f"height and width of frames must be multiples of {d}, but their shape is {shape}"
            )

    def check_latents(self, latents: Tensor) -> None:
        """Raise ValueError, naming what is off, unless latents can be decoded."""
        shape = tuple(latents.shape)
        if latents.ndim != 5:
            raise ValueError(f"latents must be NTCHW, five dimensions, but their shape is {shape}")
        if shape[2] != self.latent_channels:
            raise ValueError(
                f"latents must have {self.latent_channels} channels (NTCHW) for "
                f"{self.config.variant}, but their shape is {shape}"
            )
        if latents.numel() == 0:
            raise ValueError(f"latents hold nothing: their shape is {shape}")


def _check_chunk(chunk: int) -> None:
    if chunk < 0:
        raise ValueError(f"chunk is {chunk}: a number of latents, or 0 for all of them")
