"""What a trial of a sweep costs beside its training.

    python benchmarks/sweep.py

A sweep of `--trials` equal trials, one at a time, against the same training by the bare loop:
`taehv.training.train` in one process that has everything imported, over clips that are decoded
already. A trial's time is from the end of the one before it to its own end, so it holds all that
Ray Tune, Ray Train, Ray Data, MLflow and the records take. The first trial, which starts the
workers, is told by itself. Sweep and bare loop take turns, so that both meet the same machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from data_pipeline.batches import iter_batches
from data_pipeline.clips import ClipSource, open_sources
from jobs.cli.config import Config, read_yaml
from jobs.cli.places import with_places
from jobs.sweep.ledger import Ledger
from taehv.interfaces import Batch, Hooks, TransientFailure
from taehv.run.run_folder import RunFolder
from taehv.training import train

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT = 8.0
MOST_BATCHES = 1000
SWEEP = """\
config: {config}
settings:
  train: {{max_steps: {steps}, validation_every: {steps}, checkpoint_every: {steps},
          sample_clips: 0}}
space:
  # Weights that cost nothing to change: every trial is the same work.
  loss.seraena: {choices}
search: {{algorithm: grid}}
"""


class Decoded:
    """`taehv.interfaces.Data` over clips that are in memory."""

    def __init__(self, training: ClipSource, validation: ClipSource) -> None:
        self._sources = {"training": training, "validation": validation}
        self._kept: dict[str, list[Batch]] = {}

    def training(
        self,
        schedule: Iterator[np.ndarray],
        transient_failures: Sequence[TransientFailure],
        stage: int = 0,
    ) -> Iterator[Batch]:
        return self._batches("training", schedule)

    def validation(self, schedule: Iterator[np.ndarray]) -> Iterator[Batch]:
        return self._batches("validation", schedule)

    def _batches(self, split: str, schedule: Iterator[np.ndarray]) -> Iterator[Batch]:
        # The schedule is the same every time.
        if split not in self._kept:
            source: Any = iter_batches(self._sources[split], schedule)
            self._kept[split] = list(islice(source, MOST_BATCHES))
        return iter(self._kept[split])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare = [bare_run(folder, options.steps)]
        trials, first, whole = sweep(folder, options.trials, options.steps)
        bare.append(bare_run(folder, options.steps))
    training = statistics.median(seconds for pair in bare for seconds in pair)
    overheads = [seconds - training for seconds in trials]
    overhead = statistics.median(overheads)
    print(f"{options.steps} steps of configs/small.yaml, {os.cpu_count()} cores")
    print(f"bare training loop                {training:6.1f} s   median of {2 * len(bare)}")
    print(
        f"a trial after the first           {statistics.median(trials):6.1f} s   "
        f"median of {len(trials)}"
    )
    print(f"the first trial                   {first:6.1f} s")
    print(f"the whole sweep                   {whole:6.1f} s")
    verdict = "pass" if overhead < LIMIT else "FAIL"
    print(f"overhead of a trial               {overhead:6.1f} s   limit {LIMIT:g}   {verdict}")
    return 0 if overhead < LIMIT else 1


def sweep(folder: Path, trials: int, steps: int) -> tuple[list[float], float, float]:
    """Seconds of each trial but the first; of the first, from the start of the program; and of the
    whole."""
    choices = [round(1.0 + 0.001 * k, 4) for k in range(trials)]
    config = REPOSITORY / "configs" / "small.yaml"
    path = folder / "overhead.yaml"
    path.write_text(SWEEP.format(config=config, steps=steps, choices=choices))
    sweep_dir = folder / "sweeps" / "overhead"
    begun = time.time()
    subprocess.run(
        [sys.executable, "jobs/tune.py", str(path), "--sweep-dir", str(sweep_dir)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    whole = time.time() - begun
    ledger = Ledger(RunFolder(str(sweep_dir)))
    ends = [
        (sweep_dir / "trials" / ledger.records[n].name / "trial.json").stat().st_mtime
        for n in sorted(ledger.records)
    ]
    between = [later - earlier for earlier, later in pairwise(ends)]
    return between, ends[0] - begun, whole


def bare_run(folder: Path, steps: int) -> tuple[float, float]:
    """Seconds of two runs of the training loop alone, in a process of its own."""
    script = (
        "import sys; from benchmarks.sweep import time_bare; "
        "print(*time_bare(sys.argv[1], int(sys.argv[2])))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(steps)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"DS_ACCELERATOR": "cpu"} if not torch.cuda.is_available() else None,
    )
    first, second = result.stdout.splitlines()[-1].split()
    return float(first), float(second)


def time_bare(folder: str, steps: int) -> tuple[float, float]:
    """Seconds of two runs, after one whose time does not count: imports, decoding, warming up."""
    config = bare_config(steps)
    data = Decoded(*open_sources(config.data, config.train.seed, config.train.global_batch_size))
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory(dir=folder) as run_dir:
            start = time.perf_counter()
            train(config, data, Hooks(), RunFolder(run_dir))
            seconds.append(time.perf_counter() - start)
    return seconds[1], seconds[2]


def bare_config(steps: int) -> Config:
    """What the sweep's trials are told."""
    config = read_yaml(REPOSITORY / "configs" / "small.yaml")
    every = {"max_steps": steps, "validation_every": steps, "checkpoint_every": steps}
    config = replace(config, train=replace(config.train, **every, sample_clips=0))
    placed = with_places(config)
    return replace(placed, data=replace(placed.data, split_seed=0))


if __name__ == "__main__":
    sys.exit(main())
