"""The methods that are scored, behind one interface: networks, the teacher, and baselines.

Each returns as many frames as it is given, frame t for frame t, so that all methods are scored on
the same frames of the same clips.

Shape letters: N clips, T frames, C channels, H height, W width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat, tee
from typing import Protocol

import torch
from torch import Tensor

from taehv.errors import TrainingError
from taehv.evaluation import baselines
from taehv.evaluation.linear import LinearLimit
from taehv.losses.teacher import Teacher
from taehv.model import TAEHV
from taehv.model.whole_video import num_latents, stream_frames, stream_latents
from taehv.precision import autocast

TEACHER_STRETCH = 49
"""Frames of a long video that the teacher is given at once: 8k + 1, and what its pipeline makes."""


def identity(latents: Tensor) -> Tensor:
    return latents


class Method(Protocol):
    """Something that reconstructs video."""

    key: str
    """In metrics.json."""
    label: str
    """For people."""

    def clip(self, frames: Tensor) -> Tensor:
        """A clip at once. [N, T, 3, H, W] in [0, 1] -> the same shape, clamped."""
        ...

    def stream(self, frames: Iterable[Tensor], num_frames: int) -> Iterator[Tensor]:
        """A video of any length, frame by frame in constant memory: [1, 3, H, W] each."""
        ...


class NetworkMethod:
    """A TAEHV, with a transform of its latents between the encoder and the decoder."""

    def __init__(
        self,
        model: TAEHV,
        key: str,
        label: str,
        dtype: torch.dtype | None = None,
        transform: Callable[[Tensor], Tensor] = identity,
    ) -> None:
        """dtype: of autocast, None for float32. transform: NtChw latents -> NtChw latents.

        Raises TrainingError for a decoder that does not return each frame at its size.
        """
        if model.alignment.frame_step != 1 or model.space_upscale != model.space_downscale:
            raise TrainingError(
                f"{label}: its decoder gives back fewer or smaller frames than went in, so it "
                "cannot be scored frame by frame; choose weights with full upscaling"
            )
        self.model, self.key, self.label, self.dtype = model.eval(), key, label, dtype
        self.transform = transform

    def with_transform(self, transform: Callable[[Tensor], Tensor]) -> "NetworkMethod":
        """The same network with another transform of its latents."""
        return NetworkMethod(self.model, self.key, self.label, self.dtype, transform)

    @torch.no_grad()
    def clip(self, frames: Tensor) -> Tensor:
        """See `Method.clip`. The alignment is that of `TAEHV.reconstruct_video`."""
        num_frames = frames.shape[1]
        decoded = self.decode(self.transform(self.encode(frames)))
        return self.model.alignment.pair(frames, decoded.float())[1][:, :num_frames]

    def encode(self, frames: Tensor) -> Tensor:
        """[N, T, 3, H, W] -> NtChw, the end extended to a length that comes back whole."""
        missing = self.model.alignment.padded_length(frames.shape[1]) - frames.shape[1]
        extended = torch.cat([frames, *repeat(frames[:, -1:], missing)], dim=1)
        with autocast(self.dtype):
            return self.model.encode_video(extended).float()

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t, C, h, w) of the latents that `encode` gives."""
        factor = self.model.space_downscale
        return (
            num_latents(self.model, num_frames),
            self.model.latent_channels,
            height // factor,
            width // factor,
        )

    def decode(self, latents: Tensor) -> Tensor:
        """NtChw -> NTCHW, clamped."""
        with autocast(self.dtype):
            return self.model.decode_video(latents).float()

    def stream(self, frames: Iterable[Tensor], num_frames: int) -> Iterator[Tensor]:
        """See `Method.stream`."""
        latents = stream_latents(self.model, frames, self.dtype)
        transformed = (self.transform(latent[:, None])[:, 0] for latent in latents)
        return stream_frames(self.model, transformed, num_frames, self.dtype)


class TeacherMethod:
    """The reference VAE."""

    key = "teacher"
    label = "teacher (reference VAE)"

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def clip(self, frames: Tensor) -> Tensor:
        """See `Method.clip`."""
        return self.teacher.reconstruct(frames).to(frames.device)

    def stream(self, frames: Iterable[Tensor], num_frames: int) -> Iterator[Tensor]:
        """See `Method.stream`. The teacher gets one stretch of the video after the other."""
        source = iter(frames)
        while stretch := list(islice(source, TEACHER_STRETCH)):
            yield from self.clip(torch.stack(stretch, dim=1)).unbind(1)


class FrameMethod:
    """A baseline that treats each frame by itself, without a network."""

    def __init__(self, key: str, label: str, work: Callable[[Tensor], Tensor]) -> None:
        self.key, self.label = key, label
        self._work = work

    def clip(self, frames: Tensor) -> Tensor:
        """See `Method.clip`."""
        return self._work(frames)

    def stream(self, frames: Iterable[Tensor], num_frames: int) -> Iterator[Tensor]:
        """See `Method.stream`."""
        for frame in frames:
            yield self._work(frame[:, None])[:, 0]


class LinearMethod:
    """The linear limit of the run that made the weights."""

    key = "linear"

    def __init__(self, limit: LinearLimit) -> None:
        self.limit = limit
        self.label = limit.label

    def clip(self, frames: Tensor) -> Tensor:
        """See `Method.clip`. H and W are multiples of `limit.block.pixels`."""
        return self.limit.reconstruct(frames)

    def stream(self, frames: Iterable[Tensor], num_frames: int) -> Iterator[Tensor]:
        """See `Method.stream`. A block's frames are gathered; those of the last are repeated."""
        source = iter(frames)
        while gathered := list(islice(source, self.limit.block.frames)):
            yield from self.clip(torch.stack(gathered, dim=1)).unbind(1)


def stream_together(
    methods: Sequence[Method], frames: Iterable[Tensor], num_frames: int
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Each frame of a video, read once, with every method's reconstruction of it under its key.

    frames: uint8 [1, 3, H, W], num_frames of them; they wait as such until the method that answers
    latest has taken them. Gives [1, 3, H, W] in [0, 1].
    """
    own, *copies = tee(frames, len(methods) + 1)
    answers = [
        method.stream((frame.float() / 255 for frame in copy), num_frames)
        for method, copy in zip(methods, copies, strict=True)
    ]
    for frame, *reconstructed in zip(own, *answers, strict=True):
        keyed = zip(methods, reconstructed, strict=True)
        yield frame.float() / 255, {method.key: made for method, made in keyed}


def baseline_methods() -> list[FrameMethod]:
    """The baselines that every network is compared with."""
    return [
        FrameMethod("down_and_up", "8x down and up, bicubic", baselines.down_and_up),
        FrameMethod("mean_colour", "mean colour of each frame", baselines.mean_colour),
    ]
