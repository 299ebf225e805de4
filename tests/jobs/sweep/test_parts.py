"""Parts of a sweep, each by itself: its progress, the reference VAE's scores, the searcher."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray._private.state import state as ray_state
from rich.console import Console

from jobs.cli.config import ClusterConfig
from jobs.cluster.capacity import Allocation
from jobs.sweep import scoring, search
from jobs.sweep.ledger import Record
from jobs.sweep.progress import TrialProgress
from jobs.sweep.trial import TrialCapacity
from taehv.evaluation.metrics import score_clips
from taehv.losses.teacher import Teacher, TeacherConfig
from taehv.training.validation import ValidationSet
from tests.helpers.moving_data import MovingData
from tests.helpers.small_teacher import save_small_teacher
from tests.helpers.sweep_records import made_plan


def record(number: int, **changes: Any) -> Record:
    return Record(number, "search", {}, {"loss.seraena": 0.25, "train.seed": 3}, 3, **changes)


def test_lines_of_a_log_tell_of_every_trial(caplog: pytest.LogCaptureFixture) -> None:
    progress = TrialProgress("val_ema/psnr", max_steps=50, trials=2)
    with caplog.at_level(logging.INFO, "jobs"):
        progress.update(record(1, attempts=1))
        progress.row(1, {"step": 20, "val_ema/psnr": 24.125})
        progress.step(1, 20)
        progress.update(record(1, status="finished", step=50, seconds=12.0))
        progress.update(record(2, attempts=2))
        progress.update(record(2, status="failed", step=10, error="no such file"))
    progress.close()
    assert [entry.getMessage() for entry in caplog.records] == [
        "trial 001 begins: seraena 0.25, seed 3",
        "trial 001 finished at step 50, 12 s, val_ema/psnr 24.12",
        "trial 002 goes on: seraena 0.25, seed 3",
        "trial 002 failed at step 10, 0 s (no such file)",
    ]


def test_the_table_of_a_terminal_shows_every_trial() -> None:
    progress = TrialProgress("val_ema/psnr", max_steps=50, trials=4)
    progress.update(record(1, status="pruned", step=30))
    progress.update(record(2))
    progress.step(2, 17)
    progress.row(2, {"step": 10, "val_ema/psnr": 21.5})
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(progress._table())
    shown = console.export_text()
    assert "1 of 4 trials done" in shown
    first, second = (line for line in shown.splitlines() if "seraena" in line)
    assert ["pruned" in first, "30 / 50" in first] == [True, True]
    assert ["running" in second, "17 / 50" in second, "21.5" in second] == [True, True, True]


def test_the_reference_vae_is_scored_as_it_reconstructs(tmp_path: Path) -> None:
    config = TeacherConfig(path=str(save_small_teacher(tmp_path)))
    teacher = Teacher.load(config, "cpu")
    clips = ValidationSet(MovingData(), clips=3, clips_per_pass=1)
    network: Any = scoring._AsNetwork(teacher)
    scores = clips.score(network, dtype=None)
    expected = []
    for _, stacked in clips.native:
        frames = torch.from_numpy(stacked).float() / 255
        expected.append(score_clips(frames, teacher.reconstruct(frames)))
    for name, measured in (("mse", "mse"), ("psnr_mean", "psnr"), ("ssim", "ssim")):
        mean = np.mean([float(part[measured]) for part in expected])
        assert scores[name] == pytest.approx(mean, rel=1e-5)
    assert scores["encode_seconds"] > 0


def test_a_search_comes_to_the_same_suggestions_again(tmp_path: Path) -> None:
    """Trials of an earlier session come first, in their order; then the sampler goes on."""
    plan = made_plan(
        tmp_path,
        "space:\n  loss.seraena: {log: [0.001, 1], ratio_to: loss.reconstruction}\n"
        "  seraena.frames_per_group: [1, 3]\n"
        "search: {algorithm: tpe, trials: 6, startup_trials: 2}\nconcurrent: 9\n",
    )

    def drawn(known: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
        searcher = search.make_searcher(plan, known, lambda values: dict(values))
        return [searcher.suggest(str(k)) for k in range(count)]

    first = drawn([], 4)
    assert all(0.001 <= point["loss.seraena"] <= 1 for point in first)
    assert len({point["loss.seraena"] for point in first}) == 4
    assert drawn(first[:3], 4)[:3] == first[:3]


def test_listed_points_come_in_their_order(tmp_path: Path) -> None:
    plan = made_plan(
        tmp_path,
        "rows:\n  a: {loss.seraena: 0}\n  b: {optim.betas: [0.5, 0.9]}\nseeds: [0, 1]\n"
        "concurrent: 9\n",
    )
    points = plan.points()
    assert points is not None
    searcher = search.list_searcher(plan, points, lambda values: dict(values))
    assert [searcher.suggest(str(k)) for k in range(4)] == points


class FakeWorkers:
    def __init__(self, size: int) -> None:
        self._size = size

    def size(self) -> int:
        return self._size


@pytest.mark.parametrize(
    ("workers", "trials", "held", "free", "room", "most"),
    [
        # Two trials of a machine of 4 GPUs: two each, and no more when there is room.
        ("", 2, 0, 4, 4, 2),
        ("1-4", 2, 0, 4, 4, 2),
        ("1-4", 2, 2, 0, 2, 2),
        # The workers of the slot hold what its next trial is to have.
        ("4", 1, 4, 0, 4, 4),
        # The other trial has it all.
        ("4", 2, 0, 0, 0, 4),
    ],
)
def test_trials_share_the_gpus(
    monkeypatch: pytest.MonkeyPatch,
    workers: str,
    trials: int,
    held: int,
    free: int,
    room: int,
    most: int,
) -> None:
    gpus = {"CPU": 8.0, "GPU": 4.0}
    node = {"NodeID": "n", "Alive": True, "Resources": gpus, "Labels": {}}
    available = {"n": gpus | {"GPU": float(free)}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(ray_state, "available_resources_per_node", lambda: available)
    monkeypatch.setattr("jobs.cluster.capacity.draining_nodes", set)
    capacity = object.__new__(TrialCapacity)
    capacity._trials, capacity._worker_pool = trials, FakeWorkers(held)  # type: ignore[assignment]
    capacity._config, capacity._nodes_may_join = ClusterConfig(workers=workers, gpu="yes"), True
    capacity._unresponsive, capacity._unresponsive_until = set(), 0.0
    assert (capacity._startable_workers(), capacity._max_workers()) == (room, most)
    assert not capacity.could_add_workers(most)


def test_trials_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Allocation(1, False, 1.0, 3.0)
    monkeypatch.setattr(
        "jobs.cluster.capacity.ClusterCapacity.wait_for_allocation", lambda self, cancelled: whole
    )
    capacity = object.__new__(TrialCapacity)
    capacity._trials, capacity._decode_cpus = 2, 0.5
    allocation = capacity.wait_for_allocation(lambda: False)
    assert allocation is not None
    assert 2 * (allocation.cpus_per_worker + allocation.decode_cpus_per_worker) == pytest.approx(
        4.0
    )
    assert allocation.decode_cpus_per_worker >= 0.5
