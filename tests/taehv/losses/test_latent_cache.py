"""Teacher latents that are remembered: the same run, and the teacher is asked once."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from taehv.losses.latent_cache import LatentCache, process_cache
from taehv.losses.teacher import Teacher, TeacherConfig
from taehv.run import journal
from tests.helpers.small_run import run, small_config
from tests.helpers.small_teacher import save_small_teacher

CPU = torch.device("cpu")


class Counted:
    """Stands for a teacher, and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def answers(self, value: float, size: int = 4) -> Callable[[], Tensor]:
        def compute() -> Tensor:
            self.calls += 1
            return torch.full((size,), value)

        return compute


def clips(seed: int, shape: tuple[int, ...] = (2, 3, 3, 8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_the_same_clips_are_not_computed_again() -> None:
    cache, teacher = LatentCache(1000), Counted()
    first = cache.get(clips(0), CPU, teacher.answers(1.0))
    again = cache.get(clips(0), CPU, teacher.answers(2.0))
    assert teacher.calls == 1
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    "other",
    [
        clips(1),
        clips(0)[:1],
        clips(0)[::-1].copy(),
        clips(0).reshape(1, 6, 3, 8, 8),
    ],
    ids=["another", "a part", "another order", "another shape"],
)
def test_other_clips_are(other: np.ndarray) -> None:
    cache, teacher = LatentCache(1000), Counted()
    cache.get(clips(0), CPU, teacher.answers(1.0))
    assert cache.get(other, CPU, teacher.answers(2.0))[0] == 2.0


def test_what_is_remembered_is_bounded_and_the_first_stay() -> None:
    """Four float32 are 16 bytes; there is room for two of them."""
    cache, teacher = LatentCache(40), Counted()
    for seed in range(5):
        cache.get(clips(seed), CPU, teacher.answers(float(seed)))
    assert len(cache) == 2
    for seed in range(5):
        assert cache.get(clips(seed), CPU, teacher.answers(float(seed)))[0] == seed
    assert teacher.calls == 5 + 3


def test_what_it_gave_is_not_what_it_holds() -> None:
    cache, teacher = LatentCache(1000), Counted()
    cache.get(clips(0), CPU, teacher.answers(1.0)).zero_()
    assert cache.get(clips(0), CPU, teacher.answers(1.0))[0] == 1.0


def test_a_run_is_the_same_and_the_next_one_asks_no_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_small_teacher(tmp_path / "teacher")
    asked: list[int] = []
    encode = Teacher.encode

    def counted(self: Teacher, frames: Tensor) -> Tensor:
        asked.append(len(frames))
        return encode(self, frames)

    monkeypatch.setattr(Teacher, "encode", counted)
    config = dataclasses.replace(small_config(max_steps=3), teacher=TeacherConfig(str(folder)))
    remembering = dataclasses.replace(config, teacher=TeacherConfig(str(folder), 1.0, 0.01))
    process_cache.cache_clear()
    runs = {"plain": config, "first": remembering, "second": remembering}
    counts, rows = {}, {}
    for name, settings in runs.items():
        asked.clear()
        run(settings, tmp_path / name)
        counts[name] = len(asked)
        read = journal.read(tmp_path / name / "metrics.jsonl")
        rows[name] = [
            {key: value for key, value in row.items() if key.endswith("loss")} for row in read
        ]
    # Once a run more: for the slope of the student's latents on the teacher's.
    assert counts == {"plain": 4, "first": 4, "second": 1}
    assert any(row["train/encoder_loss"] > 0 for row in rows["plain"] if row)
    assert rows["first"] == rows["plain"]
    assert rows["second"] == rows["plain"]


def test_another_teacher_or_scale_remembers_nothing(tmp_path: Path) -> None:
    process_cache.cache_clear()
    folder = save_small_teacher(tmp_path / "teacher")
    frames = torch.from_numpy(clips(0, (1, 9, 3, 32, 32)))
    found = []
    for scale in (1.0, 2.0, 1.0):
        teacher = Teacher.load(TeacherConfig(str(folder), scale, 0.01), CPU)
        found.append(teacher.targets(frames.numpy(), frames.float() / 255))
    assert torch.allclose(found[1], 2 * found[0])
    assert torch.equal(found[2], found[0])


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher\.cache_gigabytes is -1"):
        TeacherConfig(cache_gigabytes=-1)
