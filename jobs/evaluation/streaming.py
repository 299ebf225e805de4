"""Whole videos in constant memory: each frame with its reconstructions, and what of a damaged video
decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from data_pipeline.decoding.damage import LostFrames
from data_pipeline.decoding.whole_video import WholeRequest, WholeVideo, stretches
from data_pipeline.errors import UnusableVideoError
from jobs.evaluation.reading import VideoReader
from taehv.evaluation.methods import Method, stream_together
from taehv.evaluation.structure import SSIM_WINDOW


def stream_video(
    request: WholeRequest, methods: Sequence[Method], read: VideoReader, device: torch.device
) -> tuple[WholeVideo, Iterator[tuple[Tensor, dict[str, Tensor]]]]:
    """What is read, and each frame, [1, 3, H, W] in [0, 1], with its reconstructions by method.

    Raises UnusableVideoError, also from the iteration: LostFramesError where the video is damaged.
    """
    whole, pieces = read.whole(request)
    if min(whole.height, whole.width) < SSIM_WINDOW:
        pieces.close()
        raise UnusableVideoError(
            f"has frames of {whole.height}x{whole.width} pixels, too small for SSIM"
        )
    frames = (frame for piece in pieces for frame in torch.from_numpy(piece[:, None]).to(device))
    return whole, stream_together(methods, frames, whole.frames)


def sound_parts(
    request: WholeRequest, read: VideoReader, is_stopped: Callable[[], bool] = lambda: False
) -> tuple[list[WholeRequest], list[LostFrames]]:
    """A request for each stretch of a damaged video, and what is lost of it.

    The video is decoded once to find them, and once more for each: few videos are damaged, and a
    network has to know how long a stretch is before it begins.

    is_stopped: asked after each piece of a few megabytes.
    Raises UnusableVideoError, and KeyboardInterrupt where it was stopped.
    """
    whole, items = read.kept(request)
    lost: list[LostFrames] = []
    ranges: list[tuple[int, int]] = []
    with closing(items):
        for stretch in stretches(whole, items, lost):
            end = first = stretch.first_frame
            for piece in stretch.pieces:
                end += len(piece)
                if is_stopped():
                    raise KeyboardInterrupt
            ranges.append((first, end))
    count = whole.facts.frames
    return [
        replace(request, span=(first / count, end / count), limit=0) for first, end in ranges
    ], lost
