"""Clips made on the fly, so that the training loop can be tested without files or Ray."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from taehv.interfaces import Batch, TransientFailure


def moving_clip(sample: int, num_frames: int = 9, size: int = 32) -> np.ndarray:
    """uint8 [T, 3, size, size]: coloured waves that drift; a pure function of `sample`."""
    random = np.random.default_rng(sample + 1)
    y, x = np.mgrid[:size, :size] / size
    t = np.arange(num_frames)[:, None, None, None] / num_frames
    phase, speed, fx, fy = random.uniform(0.5, 3, (4, 3, 1, 1))
    wave = np.sin(2 * np.pi * (fx * x + fy * y + 0.3 * speed * t) + phase)
    frames: np.ndarray = (127.5 + 100 * wave).astype(np.uint8)
    return frames


class MovingData:
    """Implements `taehv.interfaces.Data`."""

    def __init__(
        self, num_frames: int = 9, size: int = 32, stages: Sequence[tuple[int, int]] = ()
    ) -> None:
        """stages: frames and size of the training clips in each stage, where they differ."""
        self.num_frames, self.size = num_frames, size
        self._stages = stages

    def training(
        self,
        schedule: Iterator[np.ndarray],
        transient_failures: Sequence[TransientFailure],
        stage: int = 0,
    ) -> Iterable[Batch]:
        shape = self._stages[stage] if self._stages else (self.num_frames, self.size)
        return (self._batch(samples, 0, *shape) for samples in schedule)

    def validation(self, schedule: Iterator[np.ndarray]) -> Iterable[Batch]:
        return (self._batch(samples, 10**6, self.num_frames, self.size) for samples in schedule)

    def _batch(self, samples: np.ndarray, offset: int, num_frames: int, size: int) -> Batch:
        clips = [moving_clip(int(s) + offset, num_frames, size) * (s >= 0) for s in samples]
        return {
            "frames": np.stack(clips).astype(np.uint8),
            "sample": samples,
            "video": [f"moving_{s}" for s in samples],
            "rejected": [],
            "transient_failures": [],
            "decoded": len(samples) * num_frames,
        }
