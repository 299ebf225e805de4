"""The account of the clips: what is shared, what is listed, and what only training keeps."""

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from taehv import distributed
from taehv.interfaces import Batch, Hooks, RejectedVideo, TransientFailure
from taehv.run.run_folder import RunFolder
from taehv.slots import SlotLayout
from taehv.training.supply import Supply
from tests.helpers.moving_data import MovingData


class FaultyData(MovingData):
    """Each batch comes with a video that could not be used just now."""

    def training(
        self,
        schedule: Iterator[np.ndarray],
        transient_failures: Sequence[TransientFailure],
        stage: int = 0,
    ) -> Iterable[Batch]:
        for number, batch in enumerate(super().training(schedule, transient_failures)):
            yield with_fault(batch, f"training_{number}.mp4", (0, number, 0))

    def validation(self, schedule: Iterator[np.ndarray]) -> Iterable[Batch]:
        for number, batch in enumerate(super().validation(schedule)):
            yield with_fault(batch, f"validation_{number}.mp4", (0, 100 + number, 0))


def with_fault(batch: Batch, video: str, failure: TransientFailure) -> Batch:
    rejected: list[RejectedVideo] = [{"video": video, "reason": "slow"}]
    return {**batch, "rejected": rejected, "transient_failures": [failure]}


class Told(Hooks):
    def __init__(self) -> None:
        self.quarantined: list[tuple[list[RejectedVideo], int]] = []

    def on_quarantined(self, rejected: Sequence[RejectedVideo], total: int) -> None:
        self.quarantined.append((list(rejected), total))


def test_validation_lists_its_videos_and_leaves_no_transient_failures(tmp_path: Path) -> None:
    distributed.initialise()
    layout = SlotLayout(global_batch_size=2, slots_per_group=2, workers=1)
    data, told, failures = FaultyData(), Told(), set[TransientFailure]()
    supply = Supply(data, layout, 0, range(3), failures, RunFolder(str(tmp_path)), told)
    for batch in data.validation(iter([np.array([0, 1])])):
        supply.add_rejected(batch)
    supply.next()
    row = supply.row()
    assert failures == {(0, 0, 0)}
    assert row["train/skipped_videos"] == 2
    assert row["train/decoded_frames_per_used_frame"] == 1.0
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    listed = [json.loads(line)["video"] for line in lines]
    assert listed == ["validation_0.mp4", "training_0.mp4"]
    supply.next()
    supply.gather_rejected()
    assert failures == {(0, 0, 0), (0, 1, 0)}
    assert [total for _, total in told.quarantined] == [2, 3]


class Asked(MovingData):
    """Says when its first training batch was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first = threading.Event()
        self.closed = False

    def training(
        self,
        schedule: Iterator[np.ndarray],
        transient_failures: Sequence[TransientFailure],
        stage: int = 0,
    ) -> Iterable[Batch]:
        self.first.set()
        try:
            yield from super().training(schedule, transient_failures)
        finally:
            self.closed = True


@pytest.mark.parametrize("steps", [0, 3])
def test_decoding_begins_before_a_batch_is_wanted(tmp_path: Path, steps: int) -> None:
    """And ends where none was."""
    distributed.initialise()
    layout = SlotLayout(global_batch_size=2, slots_per_group=2, workers=1)
    data = Asked()
    supply = Supply(data, layout, 0, range(steps), set(), RunFolder(str(tmp_path)), Told())
    assert data.first.wait(60)
    samples = [supply.next()["sample"].tolist() for _ in range(steps)]
    assert samples == [[2 * step, 2 * step + 1] for step in range(steps)]
    supply.close()
    assert data.closed


class FakeEvent:
    """Stands for a GPU's: the GPU had nothing to do for 0.25 s between each two."""

    def __init__(self, enable_timing: bool) -> None:
        self.recorded = self.reached = False

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        self.reached = True

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert self.recorded
        # As PyTorch has it, of an event that the GPU has yet to reach. Events are reached in the
        # order in which they were recorded.
        if not (end.recorded and end.reached):
            raise RuntimeError("Both events must be completed before calculating elapsed time")
        return 250.0


def test_on_a_gpu_the_next_batch_is_taken_while_it_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed.initialise()
    layout = SlotLayout(global_batch_size=2, slots_per_group=2, workers=1)
    failures = set[TransientFailure]()
    supply = Supply(FaultyData(), layout, 0, range(3), failures, RunFolder(str(tmp_path)), Hooks())
    pinned: list[np.ndarray] = []

    def pin(frames: np.ndarray) -> np.ndarray:
        pinned.append(frames)
        return frames

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(distributed, "pinned", pin)
    batches = []
    for _ in range(3):
        batches.append(supply.next())
        # A batch that is not used yet has no say in what a checkpoint keeps.
        supply.gather_rejected()
        assert len(failures) == len(batches)
        supply.prefetch()
    supply.close()
    # After the last there is none.
    assert len(pinned) == 2
    assert [batch["sample"].tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]
    monkeypatch.undo()
    assert supply._waited >= 0.5
