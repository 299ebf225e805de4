"""How much of the bare training step's speed the whole job keeps, and how soon it begins.

    python benchmarks/job.py --config configs/small.yaml --train.max-steps 100
    python benchmarks/job.py --data.height 128 --data.width 128 --train.global-batch-size 2 \
        --train.max-steps 24 --train.log-every 1

The options are those of jobs/train.py. The job runs as its users run it, with decoding, validation,
checkpoints and tracking, in a folder that is thrown away. Its rate is that of all steps after the
first row of metrics.jsonl, with what stands between them; what comes before is told as the time to
the first step.

The bare step, on clips in memory, is timed in between: every so often the job's processes are
stopped where they are, and go on when it has been timed; the row of that moment does not count. A
machine whose speed drifts by a third within minutes, as rented ones do, is as fast to the one as to
the other that way.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bare import bare_step
from benchmarks.machine import machine_name, seconds
from jobs.cli.config import parse
from taehv import distributed

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT = 0.88
"""The job's steps per second, of the bare step's."""
FIRST_STEP_LIMIT = 30.0
"""Seconds from the command to the first step made, where the machine has run it before."""
BARE_EVERY = 10.0
"""Seconds of the job between two looks at the bare step."""
BARE_ROWS = 3
"""Rows of the job, at the least, between two looks: all but one of them count."""
BARE_STEPS = 2
"""Timed at each look, at the least, after one that is not."""
BARE_SECONDS = 4.0
"""Of bare steps at each look, at the least: single ones differ by a fifth."""


@dataclass(frozen=True)
class _Run:
    """What a job and the bare steps in between have shown."""

    rows: list[dict[str, Any]]
    """Of metrics.jsonl, those of training."""
    first_row_after: float
    """Seconds from the command."""
    stopped: set[int]
    """The rows in which the job stood still."""
    bare: list[float]
    """Seconds of each bare step."""


def main() -> int:
    arguments = sys.argv[1:]
    config = parse(arguments, __doc__ or "")
    _, step = bare_step(config)
    with tempfile.TemporaryDirectory() as folder:
        run = _run(arguments, Path(folder), step, config.train.max_steps)
    rows, batch = run.rows, config.train.global_batch_size
    # Means: what the job takes is a sum over slow and fast minutes, too.
    bare = statistics.mean(run.bare)
    steps = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *rows], rows, strict=False)]
    spent = [n * batch / r["train/clips_per_second"] for n, r in zip(steps, rows, strict=True)]
    # What had to wait comes all at once afterwards, so that such a row does not count.
    kept = [k for k in range(1, len(rows)) if k not in run.stopped]
    rate = sum(steps[k] for k in kept) / sum(spent[k] for k in kept)
    first_step = run.first_row_after - (steps[0] - 1) * bare
    share = rate * bare
    print(machine_name(distributed.device()))
    print(f"batch {batch} of {config.data.num_frames} x {config.data.height} x {config.data.width}")
    print(
        f"bare step                 {1 / bare:9.3f} steps/s, mean of {len(run.bare)} in between "
        f"({1 / max(run.bare):.3f} to {1 / min(run.bare):.3f})"
    )
    print(f"whole job                 {rate:9.3f} steps/s, {sum(steps[k] for k in kept)} steps")
    verdict = "pass" if share >= LIMIT else "FAIL"
    print(f"job / bare                 {share:8.2f}      limit {LIMIT}   {verdict}")
    soon = "pass" if first_step <= FIRST_STEP_LIMIT else "FAIL"
    print(
        f"first step after           {first_step:8.1f} s    limit {FIRST_STEP_LIMIT:g}     {soon}"
    )
    return 0 if share >= LIMIT and first_step <= FIRST_STEP_LIMIT else 1


def _run(arguments: list[str], folder: Path, step: Callable[[], None], max_steps: int) -> _Run:
    metrics = folder / "run" / "metrics.jsonl"
    command = [sys.executable, str(REPOSITORY / "jobs" / "train.py"), *arguments]
    started = time.perf_counter()
    with (folder / "log").open("w") as log:
        job = psutil.Popen(
            [*command, "--train.run-dir", str(folder / "run")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
        )
        first, seen, looked, size = 0.0, 0, started, 0
        stopped: set[int] = set()
        bare: list[float] = []
        while job.poll() is None:
            time.sleep(0.1)
            # Whoever watches takes as little as may be of what is measured.
            before, size = size, metrics.stat().st_size if metrics.exists() else 0
            if size == before:
                continue
            rows = _training_rows(metrics)
            if len(rows) == seen:
                continue
            seen, now = len(rows), time.perf_counter()
            first = first or now - started
            due = now - looked >= BARE_EVERY and seen - max(stopped, default=0) >= BARE_ROWS
            if rows[-1]["step"] < max_steps and (not bare or due):
                stopped.add(seen)
                bare += _in_between(job, step)
                looked = time.perf_counter()
    if job.returncode or not bare:
        raise SystemExit(f"the job failed, or was too short:\n{(folder / 'log').read_text()}")
    return _Run(_training_rows(metrics), first, stopped, bare)


def _in_between(job: psutil.Process, step: Callable[[], None]) -> list[float]:
    """Seconds of bare steps, while nothing of the job runs."""
    processes = [job, *job.children(recursive=True)]
    _send(signal.SIGSTOP, processes)
    try:
        step()
        taken: list[float] = []
        while len(taken) < BARE_STEPS or sum(taken) < BARE_SECONDS:
            taken.append(seconds(step, distributed.device()))
        return taken
    finally:
        _send(signal.SIGCONT, processes)


def _send(number: signal.Signals, processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _training_rows(metrics: Path) -> list[dict[str, Any]]:
    lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
    return [row for row in map(json.loads, lines) if "train/clips_per_second" in row]


if __name__ == "__main__":
    sys.exit(main())
