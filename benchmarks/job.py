"""How much of the bare training step's speed the whole job keeps, and how soon it begins.

    python benchmarks/job.py --config configs/small.yaml --train.max-steps 100
    python benchmarks/job.py --data.height 128 --data.width 128 --train.global-batch-size 2 \
        --train.max-steps 40

The options are those of jobs/train.py. The job runs as its users run it, with decoding, validation,
checkpoints and tracking, in a folder that is thrown away. Its rate is that of all steps after the
first row of metrics.jsonl, with what stands between them; what comes before is told as the time to
the first step. The bare step, on clips in memory, is timed before and after it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bare import bare_step
from benchmarks.machine import machine_name, seconds
from jobs.config import Config, parse
from taehv import distributed

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT = 0.93
"""The job's steps per second, of the bare step's."""
FIRST_STEP_LIMIT = 25.0
"""Seconds from the command to the first step made, where the machine has run it before."""
BARE_STEPS = 8


def main() -> int:
    arguments = sys.argv[1:]
    config = parse(arguments, __doc__ or "")
    before = _bare_seconds(config)
    with tempfile.TemporaryDirectory() as folder:
        rows, first_row_after = _run(arguments, Path(folder))
    after = _bare_seconds(config)
    bare = statistics.median([*before, *after])
    batch = config.train.global_batch_size
    steps = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *rows], rows, strict=False)]
    spent = [n * batch / r["train/clips_per_second"] for n, r in zip(steps, rows, strict=True)]
    rate = sum(steps[1:]) / sum(spent[1:])
    first_step = first_row_after - (steps[0] - 1) * bare
    waited = statistics.mean(row["train/data_wait_fraction"] for row in rows[1:])
    share = rate * bare
    print(machine_name(distributed.device()))
    print(f"batch {batch} of {config.data.num_frames} x {config.data.height} x {config.data.width}")
    # They differ where the machine has become faster or slower meanwhile.
    then, now = (1 / statistics.median(part) for part in (before, after))
    print(
        f"bare step                  {1 / bare:8.2f} steps/s, median of {2 * BARE_STEPS} "
        f"({then:.2f} before, {now:.2f} after)"
    )
    print(f"whole job                  {rate:8.2f} steps/s, {sum(steps[1:])} steps")
    print(f"waiting for clips          {waited:8.2f} of its time")
    verdict = "pass" if share >= LIMIT else "FAIL"
    print(f"job / bare                 {share:8.2f}      limit {LIMIT}   {verdict}")
    soon = "pass" if first_step <= FIRST_STEP_LIMIT else "FAIL"
    print(
        f"first step after           {first_step:8.1f} s    limit {FIRST_STEP_LIMIT:g}     {soon}"
    )
    return 0 if share >= LIMIT and first_step <= FIRST_STEP_LIMIT else 1


def _bare_seconds(config: Config) -> list[float]:
    _, step = bare_step(config)
    step()
    step()
    return [seconds(step, distributed.device()) for _ in range(BARE_STEPS)]


def _run(arguments: list[str], folder: Path) -> tuple[list[dict[str, Any]], float]:
    """The rows of training, and the seconds from the command to the first of them."""
    metrics = folder / "run" / "metrics.jsonl"
    command = [sys.executable, str(REPOSITORY / "jobs" / "train.py"), *arguments]
    started = time.perf_counter()
    with (folder / "log").open("w") as log:
        job = subprocess.Popen(
            [*command, "--train.run-dir", str(folder / "run")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
        )
        first: float | None = None
        while job.poll() is None:
            if first is None and _training_rows(metrics):
                first = time.perf_counter() - started
            time.sleep(0.1)
    if job.returncode or first is None:
        raise SystemExit(f"the job failed:\n{(folder / 'log').read_text()}")
    return _training_rows(metrics), first


def _training_rows(metrics: Path) -> list[dict[str, Any]]:
    if not metrics.exists():
        return []
    lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
    return [row for row in map(json.loads, lines) if "train/clips_per_second" in row]


if __name__ == "__main__":
    sys.exit(main())
