"""Encoding and decoding of frames that arrive live, one at a time.

Each side keeps one past activation per memory layer and gives exactly the numbers of a whole clip.
Both run without gradients. With `graphs`, a step on a GPU is a CUDA graph from its third time on,
since a frame is little work in many kernels.
"""

from functools import partial

import torch
from torch import Tensor, nn

from taehv.model.network import TAEHV
from taehv.model.timesteps import TimeStepper
from taehv.ops import cuda_graphs


class _Stream:
    """A stack that takes one time step after the other.

    Args:
        layers: the stack.
        period: steps after which the same computations repeat.
        name: for the log.
        graphs: whether a phase becomes a CUDA graph, if there is a GPU.
    """

    def __init__(self, layers: nn.Sequential, period: int, name: str, graphs: bool) -> None:
        self._graphs = graphs
        self.stepper = TimeStepper(layers)
        self._taken = 0
        self._after: list[list[nn.Module]] = [[] for _ in range(period)]
        """What is remembered after a step of each phase."""
        self._runs = [
            cuda_graphs.GraphedCallable(partial(self._run, phase), name) for phase in range(period)
        ]

    def push(self, x: Tensor, trim: int = 0) -> Tensor | None:
        """`TimeStepper.push` of the next step, [N, 1, C, H, W]."""
        cycle, phase = divmod(self._taken, len(self._runs))
        self._taken += 1
        # Until all layers have a past, the steps of a phase are not alike.
        if not self._graphs or cycle == 0 or trim or not cuda_graphs.can_capture([x]):
            return self.stepper.push(x, trim)
        memory = self.stepper.memory
        self._before = list(memory)
        out, *remembered = self._runs[phase](x, *memory.values())
        self.stepper.memory = dict(zip(self._after[phase], remembered, strict=True))
        # The next replay overwrites it.
        return None if out is None else out.clone()

    def _run(self, phase: int, x: Tensor, *remembered: Tensor) -> tuple[Tensor | None, ...]:
        """A step as a function of all that it depends on."""
        self.stepper.memory = dict(zip(self._before, remembered, strict=True))
        out = self.stepper.push(x)
        memory = self.stepper.memory
        self._after[phase] = list(memory)
        return out, *memory.values()


class StreamingEncoder:
    """Turns a live stream of frames into latents, one per time_downscale frames."""

    def __init__(self, model: TAEHV, graphs: bool = False) -> None:
        self._model = model
        period = model.time_downscale
        self._stream = _Stream(model.encoder, period, "streaming encoder", graphs)
        self._last: Tensor | None = None
        self._num_frames = 0
        self._flushed = False

    @torch.no_grad()
    def encode(self, frame: Tensor) -> Tensor | None:
        """Take one frame [N, 3, H, W] in [0, 1]; return a latent [N, C, H / d, W / d] or None.

        Raises ValueError for a shape that does not fit, and RuntimeError after `flush`.
        """
        if self._flushed:
            raise RuntimeError("the stream has been flushed; a new one needs a new encoder")
        self._model.check_frames(frame[:, None])
        if self._last is not None and frame.shape != self._last.shape:
            raise ValueError(
                f"the stream began with frames of shape {tuple(self._last.shape)}, but this one "
                f"has {tuple(frame.shape)}"
            )
        self._last = frame
        self._num_frames += 1
        return self._push(frame)

    @torch.no_grad()
    def flush(self) -> Tensor | None:
        """End the stream: repeat the last frame until a begun latent is whole, and return it.

        None where no latent had been begun. No frame may follow.
        """
        self._flushed = True
        latent: Tensor | None = None
        if self._last is not None:
            for _ in range(-self._num_frames % self._model.time_downscale):
                latent = self._push(self._last)
        return latent

    def _push(self, frame: Tensor) -> Tensor | None:
        latent = self._stream.push(self._model.fold(frame[:, None]))
        return None if latent is None else latent[:, 0]


class StreamingDecoder:
    """Turns a live stream of latents into frames, the leading ones trimmed.

    How many are trimmed depends, for taecvx, on the number of latents being even or odd, which a
    stream cannot know: such a model needs num_latents, or frames_to_trim outright. Raises
    ValueError where it has neither, or both.
    """

    def __init__(
        self,
        model: TAEHV,
        num_latents: int | None = None,
        frames_to_trim: int | None = None,
        graphs: bool = False,
    ) -> None:
        if num_latents is not None and frames_to_trim is not None:
            raise ValueError("pass num_latents or frames_to_trim, not both")
        if frames_to_trim is None:
            if num_latents is None and not model.alignment.trims_even:
                raise ValueError(
                    f"how many leading frames {model.config.variant} drops depends on the number "
                    f"of latents; tell the decoder num_latents or frames_to_trim"
                )
            frames_to_trim = model.alignment.frames_to_trim(num_latents or 1)
        self._model = model
        self._stream = _Stream(model.decoder, 1, "streaming decoder", graphs)
        self._left_to_trim = frames_to_trim
        self._left_to_come = num_latents

    @torch.no_grad()
    def decode(self, latent: Tensor) -> list[Tensor]:
        """Take one latent [N, C, H_lat, W_lat]; return its frames [N, 3, H, W] in [0, 1].

        There are time_upscale of them, fewer for the first latent. Raises ValueError for a shape
        that does not fit, and RuntimeError for more latents than were announced.
        """
        self._model.check_latents(latent[:, None])
        if self._left_to_come is not None:
            if self._left_to_come == 0:
                raise RuntimeError("more latents have come than the decoder was told of")
            self._left_to_come -= 1
        trimmed = min(self._left_to_trim, self._model.time_upscale)
        self._left_to_trim -= trimmed
        frames = self._stream.push(latent[:, None], trimmed)
        return [] if frames is None else list(self._model.unfold(frames).clamp_(0, 1).unbind(1))
