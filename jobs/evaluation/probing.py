"""The network probed with frames of some of the videos."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from data_pipeline.errors import UnusableVideoError
from data_pipeline.held_out import HeldOutVideo
from jobs.evaluation.measure import Sampling, whole_request
from jobs.evaluation.methods import Methods
from jobs.evaluation.reading import VideoReader
from jobs.evaluation.streaming import stream_video
from taehv.evaluation.methods import NetworkMethod
from taehv.evaluation.probes import (
    SIZE_FRAMES,
    Codec,
    Probes,
    errors_by_size,
    flat_errors,
    shimmer,
    still_part,
)

log = logging.getLogger(__name__)


def probe_network(
    videos: Sequence[HeldOutVideo], sampling: Sampling, methods: Methods, read: VideoReader
) -> Probes:
    """All probes. A video whose first frames do not decode is left out, with a line."""
    codec, multiple = methods.network.clip, sampling.multiple
    shimmers, sizes = {}, {}
    for video in videos:
        try:
            frames = first_frames(video, sampling, methods, read)
        except UnusableVideoError as error:
            log.warning("video %s is not probed: %s", video.name, error)
            continue
        shimmers[video.name] = shimmer(codec, still_part(frames[0], multiple))
        sizes[video.name] = errors_by_size(in_constant_memory(methods.network), frames, multiple)
    return Probes(flat_errors(codec, methods.device, multiple), shimmers, sizes)


def in_constant_memory(network: NetworkMethod) -> Codec:
    """The network, frame by frame: a large frame has the pixels of many windows."""

    def codec(clip: Tensor) -> Tensor:
        return torch.stack([*network.stream(clip.unbind(1), clip.shape[1])], 1)

    return codec


def first_frames(
    video: HeldOutVideo, sampling: Sampling, methods: Methods, read: VideoReader
) -> Tensor:
    """[T, 3, H, W] in [0, 1]: those of a video, or of its held-out part, in its own size.

    Raises UnusableVideoError.
    """
    request = whole_request(video, sampling, SIZE_FRAMES)
    frames = stream_video(request, [], read, methods.device)[1]
    return torch.cat([original for original, _ in frames])
