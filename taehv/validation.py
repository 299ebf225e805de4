"""Scores on held-out clips: the same clips each time, shared out among the workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from taehv import baselines, distributed
from taehv.engines import autocast
from taehv.interfaces import Batch, Data
from taehv.metrics import score_clips
from taehv.model import TAEHV
from taehv.slots import SURPLUS

Scores = dict[str, float]


class ValidationSet:
    """This worker's part of the validation clips, decoded once and kept as uint8.

    Clip i belongs to worker i mod workers. Every score is gathered by clip and averaged in the
    clips' order, so it does not depend on how many workers there are.
    """

    def __init__(self, data: Data, clips: int, clips_per_pass: int) -> None:
        self.clips = clips
        self.batches: list[Batch] = list(data.validation(_schedule(clips, clips_per_pass)))

    def score(self, model: TAEHV, dtype: torch.dtype | None) -> Scores:
        """The mean of every metric over all clips, and the seconds it takes per clip to encode
        and to decode on this device. A collective."""
        model_was_training = model.training
        model.eval()
        pair = model.alignment.pair

        @torch.no_grad()
        def scores(frames: Tensor) -> dict[str, Tensor]:
            with autocast(dtype):
                latents, encode_seconds = _timed(lambda: model.encode_video(frames))
                decoded, decode_seconds = _timed(lambda: model.decode_video(latents))
            original, reconstructed = pair(frames, decoded.float())
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
            "mean_colour": self._mean(lambda f: score_clips(f, baselines.mean_colour(f))),
            "down_and_up": self._mean(lambda f: score_clips(f, baselines.down_and_up(f))),
        }

    @torch.no_grad()
    def samples(
        self, model: TAEHV, dtype: torch.dtype | None, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Up to `count` of this worker's clips and their reconstructions, uint8 [N, T, 3, H, W]."""
        originals: list[np.ndarray] = []
        reconstructions: list[np.ndarray] = []
        for frames, mask in self._device_batches():
            if sum(len(part) for part in originals) >= count:
                break
            with autocast(dtype):
                decoded = model.decode_video(model.encode_video(frames))
            for kept, video in zip(
                (originals, reconstructions),
                model.alignment.pair(frames, decoded.float()),
                strict=True,
            ):
                kept.append((video[mask] * 255).round().byte().cpu().numpy())
        return np.concatenate(originals)[:count], np.concatenate(reconstructions)[:count]

    def _mean(self, score: Callable[[Tensor], dict[str, Tensor]]) -> Scores:
        own: dict[int, dict[str, float]] = {}
        for (frames, _), batch in zip(self._device_batches(), self.batches, strict=True):
            columns = {name: values.tolist() for name, values in score(frames).items()}
            for position, clip in enumerate(batch["sample"].tolist()):
                if clip != SURPLUS:
                    own[clip] = {name: values[position] for name, values in columns.items()}
        by_clip = {k: v for part in distributed.gather_objects(own) for k, v in part.items()}
        ordered = [by_clip[clip] for clip in sorted(by_clip)]
        return {name: float(np.mean([clip[name] for clip in ordered])) for name in ordered[0]}

    def _device_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Frames in [0, 1] [N, T, 3, H, W], and which of the N are not surplus."""
        for batch in self.batches:
            frames = torch.from_numpy(batch["frames"]).to(distributed.device())
            yield frames.float() / 255, torch.from_numpy(batch["sample"] != SURPLUS)


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
