"""Scores on held-out clips: the same clips each time, shared out among the workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from taehv import distributed
from taehv.evaluation import baselines
from taehv.evaluation.clip_artifacts import clip_figures, clip_parts
from taehv.evaluation.frames import Perceptual
from taehv.evaluation.linear import LinearLimit
from taehv.evaluation.metrics import pool, score_clips
from taehv.evaluation.probes import flat_errors, flat_figures
from taehv.interfaces import Batch, Data
from taehv.model import TAEHV
from taehv.precision import autocast

Scores = dict[str, float]

Pass = tuple[list[int], np.ndarray]
"""Numbers of some clips, and their frames, uint8 [N, T, 3, H, W]; N may be larger."""


class SampleClips:
    """The first `count` clips that this worker scores, and their reconstructions: to look at."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, original: Tensor, reconstructed: Tensor) -> None:
        """Frames in [0, 1], [N, T, 3, H, W] each; those that are not wanted any more are left."""
        missing = self.count - sum(len(pair[0]) for pair in self._pairs)
        if missing > 0:
            first, second = (
                (video[:missing] * 255).round().byte().cpu().numpy()
                for video in (original, reconstructed)
            )
            self._pairs.append((first, second))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Both as uint8 [N, T, 3, H, W], N at most `count`."""
        originals, reconstructions = zip(*self._pairs, strict=True)
        return np.concatenate(originals), np.concatenate(reconstructions)


class ValidationSet:
    """This worker's part of the validation clips, decoded once and kept as uint8.

    Window v of the held-out videos belongs to worker v mod workers. It gives two clips: sample 2v
    is a crop of the video's own pixels, sample 2v + 1 the whole picture scaled down. Every score is
    gathered by clip and taken in the clips' order, so it does not depend on how many workers there
    are.
    """

    def __init__(
        self, data: Data, clips: int, clips_per_pass: int, perceptual: Perceptual | None = None
    ) -> None:
        """clips: of each kind. clips_per_pass: see `set_clips_per_pass`. perceptual: gives `lpips`,
        the mean over a clip's frames."""
        self.clips, self._perceptual = clips, perceptual
        windows = range(distributed.rank(), clips, distributed.world_size())
        schedule = (np.array([2 * window, 2 * window + 1], dtype=np.int64) for window in windows)
        self.batches: list[Batch] = list(data.validation(schedule))
        self.set_clips_per_pass(clips_per_pass)

    def set_clips_per_pass(self, number: int) -> None:
        """How many clips are scored at once: as many as a pass of training has."""
        self.native = _passes(self.batches, 0, number)
        self.shrunk = _passes(self.batches, 1, number)

    @torch.no_grad()
    def score(
        self,
        model: TAEHV,
        dtype: torch.dtype | None,
        samples: SampleClips | None = None,
        artifacts: Scores | None = None,
    ) -> Scores:
        """The scores of the native clips (see `taehv.evaluation.metrics.pool`), and the seconds it
        takes per clip to encode and to decode on this device. A collective.

        samples, artifacts: are added to. Artifacts are those of these clips and of clips of one
        colour, by the names of `taehv.evaluation.artifact_verdict.ARTIFACTS`.
        """
        scores = self._score(model, dtype, self.native, samples, artifacts)
        if artifacts is not None:
            with _evaluating(model), autocast(dtype):
                flat = flat_errors(
                    lambda clip: model.reconstruct_video(clip).float(),
                    distributed.device(),
                    model.space_downscale,
                )
            artifacts |= flat_figures(flat)
        return scores

    @torch.no_grad()
    def score_shrunk(self, model: TAEHV, dtype: torch.dtype | None) -> Scores:
        """The same of the pictures scaled down. A collective."""
        return self._score(model, dtype, self.shrunk)

    def score_baselines(self, limit: LinearLimit | None) -> dict[str, Scores]:
        """What needs no network, on the native clips: `mean_colour`, `down_and_up`, and, where
        there is one, `linear`. A collective."""
        methods = {"mean_colour": baselines.mean_colour, "down_and_up": baselines.down_and_up}
        if limit is not None:
            methods["linear"] = limit.reconstruct

        def score_of(method: Callable[[Tensor], Tensor]) -> Scores:
            clips = self._of_clips(
                lambda frames, _: self._measure(frames, method(frames)), self.native
            )
            return pool(clips)

        return {name: score_of(method) for name, method in methods.items()}

    def _score(
        self,
        model: TAEHV,
        dtype: torch.dtype | None,
        passes: list[Pass],
        samples: SampleClips | None = None,
        artifacts: Scores | None = None,
    ) -> Scores:
        parts: set[str] = set()

        def scores(frames: Tensor, real: int) -> dict[str, Tensor]:
            with autocast(dtype):
                latents, encode_seconds = _timed(lambda: model.encode_video(frames))
                decoded, decode_seconds = _timed(lambda: model.decode_video(latents))
            original, reconstructed = model.alignment.pair(frames, decoded.float())
            if samples is not None:
                samples.add(original[:real], reconstructed[:real])
            per_clip = self._measure(original, reconstructed)
            if artifacts is not None:
                trim = model.alignment.frames_to_trim(latents.shape[1])
                found = clip_parts(original, reconstructed, model.alignment, trim)
                parts.update(found)
                per_clip |= found
            per_clip["encode_seconds"] = torch.full((len(frames),), encode_seconds / len(frames))
            per_clip["decode_seconds"] = torch.full((len(frames),), decode_seconds / len(frames))
            return per_clip

        with _evaluating(model):
            clips = self._of_clips(scores, passes)
        if artifacts is not None:
            artifacts |= clip_figures(clips)
        return pool([{k: v for k, v in clip.items() if k not in parts} for clip in clips])

    def _measure(self, original: Tensor, reconstructed: Tensor) -> dict[str, Tensor]:
        """Scores of each clip."""
        per_clip = score_clips(original, reconstructed)
        if self._perceptual is not None:
            distance = self._perceptual(original.flatten(0, 1), reconstructed.flatten(0, 1))
            per_clip["lpips"] = distance.reshape(original.shape[:2]).mean(1)
        return per_clip

    def _of_clips(
        self, score: Callable[[Tensor, int], dict[str, Tensor]], passes: list[Pass]
    ) -> list[dict[str, float]]:
        """What `score` says of each clip of all workers, given frames in [0, 1] [N, T, 3, H, W], of
        which the first so many are no surplus."""
        own: dict[int, dict[str, float]] = {}
        for clips, stacked in passes:
            frames = torch.from_numpy(stacked).to(distributed.device()).float() / 255
            columns = {name: v.tolist() for name, v in score(frames, len(clips)).items()}
            for position, clip in enumerate(clips):
                own[clip] = {name: values[position] for name, values in columns.items()}
        by_clip = {k: v for part in distributed.gather_objects(own) for k, v in part.items()}
        return [by_clip[clip] for clip in sorted(by_clip)]


@contextmanager
def _evaluating(model: TAEHV) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _passes(batches: list[Batch], kind: int, length: int) -> list[Pass]:
    """The clips of one kind, `length` at once; the last pass is filled up with black."""
    clips = [
        (int(sample), frames)
        for batch in batches
        for sample, frames in zip(batch["sample"], batch["frames"], strict=True)
        if sample % 2 == kind
    ]
    passes = []
    for first in range(0, len(clips), length):
        numbers, frames = zip(*clips[first : first + length], strict=True)
        fill = [np.zeros_like(frames[0])] * (length - len(frames))
        passes.append((list(numbers), np.stack([*frames, *fill])))
    return passes


def _timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """A result and the seconds it took, the device being idle before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start
