"""Scores on held-out clips: the same clips each time, shared out among the workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from taehv import distributed
from taehv.evaluation import baselines
from taehv.evaluation.metrics import score_clips
from taehv.interfaces import Batch, Data
from taehv.model import TAEHV
from taehv.precision import autocast
from taehv.slots import SURPLUS

Scores = dict[str, float]


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

    Clip i belongs to worker i mod workers. Every score is gathered by clip and averaged in the
    clips' order, so it does not depend on how many workers there are.
    """

    def __init__(self, data: Data, clips: int, clips_per_pass: int) -> None:
        self.clips = clips
        self.batches: list[Batch] = list(data.validation(_schedule(clips, clips_per_pass)))

    @torch.no_grad()
    def score(
        self, model: TAEHV, dtype: torch.dtype | None, samples: SampleClips | None = None
    ) -> Scores:
        """The mean of every metric over all clips, and the seconds it takes per clip to encode
        and to decode on this device. A collective; `samples` are added to."""
        model_was_training = model.training
        model.eval()

        def scores(frames: Tensor, real: Tensor) -> dict[str, Tensor]:
            with autocast(dtype):
                latents, encode_seconds = _timed(lambda: model.encode_video(frames))
                decoded, decode_seconds = _timed(lambda: model.decode_video(latents))
            original, reconstructed = model.alignment.pair(frames, decoded.float())
            if samples is not None:
                samples.add(original[real], reconstructed[real])
            per_clip = score_clips(original, reconstructed)
            per_clip["encode_seconds"] = torch.full((len(frames),), encode_seconds / len(frames))
            per_clip["decode_seconds"] = torch.full((len(frames),), decode_seconds / len(frames))
            return per_clip

        result = self._mean(scores)
        model.train(model_was_training)
        return result

    def score_baselines(self) -> dict[str, Scores]:
        """What needs no network, on the same clips: `mean_colour` and `down_and_up`."""
        return {
            "mean_colour": self._mean(lambda f, _: score_clips(f, baselines.mean_colour(f))),
            "down_and_up": self._mean(lambda f, _: score_clips(f, baselines.down_and_up(f))),
        }

    def _mean(self, score: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> Scores:
        """Of what `score` says of each clip, given frames in [0, 1] [N, T, 3, H, W], and which of
        the N are not surplus."""
        own: dict[int, dict[str, float]] = {}
        for batch in self.batches:
            frames = torch.from_numpy(batch["frames"]).to(distributed.device()).float() / 255
            real = torch.from_numpy(batch["sample"] != SURPLUS)
            columns = {name: values.tolist() for name, values in score(frames, real).items()}
            for position, clip in enumerate(batch["sample"].tolist()):
                if clip != SURPLUS:
                    own[clip] = {name: values[position] for name, values in columns.items()}
        by_clip = {k: v for part in distributed.gather_objects(own) for k, v in part.items()}
        ordered = [by_clip[clip] for clip in sorted(by_clip)]
        return {name: float(np.mean([clip[name] for clip in ordered])) for name in ordered[0]}


def _schedule(clips: int, clips_per_pass: int) -> Iterator[np.ndarray]:
    """This worker's clips in arrays of `clips_per_pass`, the last filled up with `SURPLUS`."""
    own = np.arange(distributed.rank(), clips, distributed.world_size(), dtype=np.int64)
    for first in range(0, len(own), clips_per_pass):
        part = own[first : first + clips_per_pass]
        fill = np.full(clips_per_pass - len(part), SURPLUS, dtype=np.int64)
        yield np.concatenate([part, fill])


def _timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """A result and the seconds it took, the device being idle before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start
