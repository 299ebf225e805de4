"""One video through a network: the reconstruction, a video beside the original, and the scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_pipeline.decoding.damage import LostFramesError
from data_pipeline.decoding.whole_video import VideoFacts, WholeRequest
from data_pipeline.videos.storage import without_options
from jobs.cli.progress import FrameProgress
from jobs.evaluation.reading import VideoReader
from jobs.evaluation.streaming import sound_parts, stream_video
from jobs.media.mp4 import Mp4Writer, Picture
from jobs.media.pictures import picture_of, side_by_side
from taehv.atomic import replacing
from taehv.evaluation.frames import FrameScorer, Perceptual
from taehv.evaluation.methods import Method, NetworkMethod
from taehv.evaluation.metrics import psnr_of
from taehv.evaluation.scores import Scores, clip_scores

log = logging.getLogger(__name__)

RECONSTRUCTION, SIDE_BY_SIDE = "reconstruction.mp4", "side_by_side.mp4"


@dataclass(frozen=True)
class ReconstructedVideo:
    """What came of a video."""

    facts: VideoFacts
    height: int
    width: int
    """Of what was reconstructed: a crop about the middle, where the network needs one."""
    frames: int
    """That were reconstructed: fewer than were asked for, where it was stopped or some are lost."""
    scores: dict[str, Scores]
    """By method, of these frames as one video."""
    psnr: list[float]
    """Of the network, frame by frame, dB."""
    lost: list[str]
    """Which frames cannot be decoded, and why."""


def reconstruct(
    request: WholeRequest,
    network: NetworkMethod,
    others: Sequence[Method],
    read: VideoReader,
    device: torch.device,
    folder: Path,
    *,
    lpips: Perceptual | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> ReconstructedVideo:
    """Write `RECONSTRUCTION` and `SIDE_BY_SIDE` into the folder, in constant memory.

    Of a damaged video the frames that decode are taken, each stretch by itself.

    others: are scored beside it, and not written.
    is_stopped: asked after each frame; where it is true, what is done by then is the result.
    Raises UnusableVideoError where no frame can be read, OSError where nothing can be written, and
    KeyboardInterrupt where it is stopped while it looks for what decodes.
    """
    work = _Work(network, others, read, device, folder, lpips, is_stopped)
    try:
        return work.do([request], lost=[])
    except LostFramesError as error:
        log.warning("%s; starting again with the frames that decode", error)
        parts, lost = sound_parts(request, read, is_stopped)
        return work.do(parts, [str(frames) for frames in lost])


@dataclass(frozen=True)
class _Work:
    network: NetworkMethod
    others: Sequence[Method]
    read: VideoReader
    device: torch.device
    folder: Path
    lpips: Perceptual | None
    is_stopped: Callable[[], bool]

    def do(self, parts: Sequence[WholeRequest], lost: list[str]) -> ReconstructedVideo:
        """The parts of a video, one after the other, into the same two files."""
        scorer, frames = FrameScorer(self.lpips), 0
        with ExitStack() as stack:
            writers: list[Mp4Writer] = []
            for part in parts:
                methods = [self.network, *self.others]
                whole, pairs = stream_video(part, methods, self.read, self.device)
                if not writers:
                    for name in (RECONSTRUCTION, SIDE_BY_SIDE):
                        path = stack.enter_context(replacing(self.folder / name))
                        writers.append(stack.enter_context(Mp4Writer(path, whole.facts.fps, 1)))
                name = Path(without_options(part.location)).name
                with closing(FrameProgress(name, whole.frames)) as progress:
                    for original, made in pairs:
                        scorer.add(original, made)
                        first, second = picture_of(original), picture_of(made[self.network.key])
                        writers[0].add(second)
                        writers[1].add(_side_by_side(first, second))
                        frames += 1
                        progress.add(1)
                        if self.is_stopped():
                            break
                if self.is_stopped():
                    break
        tables = scorer.tables()
        return ReconstructedVideo(
            whole.facts,
            whole.height,
            whole.width,
            frames,
            {key: clip_scores(table) for key, table in tables.items()},
            psnr_of(tables[self.network.key]["mse"]).tolist(),
            lost,
        )


def _side_by_side(original: Picture, reconstructed: Picture) -> Picture:
    """Original, reconstruction and difference, beside or above each other, whichever is nearer to a
    square, since few decoders of hardware take more than 4096 pixels a side."""
    height, width = original.shape[:2]
    if width <= height:
        return side_by_side(original, reconstructed)
    turned = side_by_side(np.swapaxes(original, 0, 1), np.swapaxes(reconstructed, 0, 1))
    return np.swapaxes(turned, 0, 1)
