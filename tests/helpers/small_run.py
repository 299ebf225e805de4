"""A training run small enough for a test, over clips made on the fly."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from taehv import distributed
from taehv.interfaces import Hooks
from taehv.losses.seraena import SeraenaConfig
from taehv.model import ModelConfig
from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder
from taehv.training import Summary, train
from taehv.training.config import TrainConfig, TrainingConfig
from taehv.training.optimizer import OptimConfig
from tests.helpers.moving_data import MovingData

SMALL_MODEL = ModelConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8))


def small_config(**train_settings: Any) -> TrainingConfig:
    settings = {
        "max_steps": 6,
        "log_every": 1,
        "validation_every": 1000,
        "validation_clips": 3,
        "checkpoint_every": 1000,
        # Solved starts have tests of their own, in test_start.py.
        "start": "near_identity",
        **train_settings,
    }
    return TrainingConfig(
        model=SMALL_MODEL,
        seraena=SeraenaConfig(widths=(4, 8, 8, 8, 8, 8), replay_gigabytes=0.01),
        # Soap, which ZeRO does not share out, has tests of its own.
        optim=OptimConfig(optimizer="adamw", learning_rate=3e-4),
        train=TrainConfig(**settings),
    )


class SampleLog(Hooks):
    """Writes each worker's samples, step by step, to a file of its own; may ask to stop."""

    def __init__(self, folder: Path, stop_at: int = 0) -> None:
        self.file = folder / f"samples_{distributed.rank()}.jsonl"
        self.step = 0
        self.stop_at = stop_at

    def on_step(self, step: int, samples: Sequence[int]) -> None:
        self.step = step
        with self.file.open("a") as file:
            file.write(json.dumps([step, [s for s in samples if s >= 0]]) + "\n")

    def should_stop(self) -> bool:
        return bool(self.stop_at) and self.step + 1 >= self.stop_at


def run(
    config: TrainingConfig,
    run_dir: Path,
    stop_at: int = 0,
    resume_from: Path | None = None,
    threads: int = 1,
) -> Summary:
    """Train in this process (or as this worker of a group)."""
    torch.set_num_threads(threads)
    run_dir.mkdir(exist_ok=True, parents=True)
    hooks = SampleLog(run_dir, stop_at)
    return train(config, MovingData(), hooks, RunFolder(str(run_dir)), resume_from)


def latest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint."""
    name = checkpoint.latest_valid(RunFolder(str(run_dir)))
    return None if name is None else run_dir / name


def samples_by_step(run_dir: Path) -> dict[int, list[int]]:
    """All workers' samples of each step, sorted."""
    steps: dict[int, list[int]] = {}
    for file in run_dir.glob("samples_*.jsonl"):
        for line in file.read_text().splitlines():
            step, samples = json.loads(line)
            steps.setdefault(step, []).extend(samples)
    return {step: sorted(samples) for step, samples in steps.items()}


def with_train(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
