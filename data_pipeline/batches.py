"""Batches of clips, and the plain way to make them: in this process, one after the other."""

from collections.abc import Iterator
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from data_pipeline.clips import ClipSource, load_clip

SURPLUS = -1
"""In place of a sample: a slot that the workers do not divide the batch into. Nothing is read."""

Samples = NDArray[np.int64]


class RejectedVideo(TypedDict):
    """A video that could not be used; one line of the quarantine."""

    video: str
    """Path as in the annotation."""

    reason: str
    """What is wrong with it."""


class Batch(TypedDict):
    """The clips of one worker for one training step."""

    frames: NDArray[np.uint8]
    """[N, T, C, H, W] in [0, 255], C-contiguous, maybe read-only; zeros in surplus slots."""

    sample: Samples
    """[N], the global index of each clip; -1 in surplus slots."""

    video: list[str]
    """The path of each clip's video as in the annotation; empty in surplus slots."""

    rejected: list[RejectedVideo]
    """The videos that were tried for this batch and could not be used."""


def load_batch(source: ClipSource, samples: Samples) -> Batch:
    """The clips of `samples`, int64 [N], where -1 stands for a surplus slot.

    Raises DataError where a clip cannot be made from any video that was tried.
    """
    config = source.config
    shape = (len(samples), config.num_frames, 3, config.height, config.width)
    frames = np.zeros(shape, np.uint8)
    videos: list[str] = []
    rejected: list[RejectedVideo] = []
    for slot, sample in enumerate(samples.tolist()):
        if sample == SURPLUS:
            videos.append("")
            continue
        clip = load_clip(source, sample)
        frames[slot] = clip.frames
        videos.append(clip.video)
        rejected += [RejectedVideo(video=r.video, reason=r.reason) for r in clip.rejected]
    return Batch(frames=frames, sample=samples.astype(np.int64), video=videos, rejected=rejected)


def iter_batches(source: ClipSource, schedule: Iterator[Samples]) -> Iterator[Batch]:
    """A batch per entry of `schedule`: the samples, int64 [N], that a step needs.

    The same batches as `streaming.stream_batches`, with no Ray and no parallelism.
    """
    for samples in schedule:
        yield load_batch(source, samples)
