"""Sweeps small enough for a test, run by the real job, and what they leave."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.hold import Hold
from tests.helpers.jobs_run import REPOSITORY, environment

TINY = """\
settings:
  model: {encoder_width: 8, decoder_widths: [16, 8, 8, 8]}
  seraena: {widths: [4, 8, 8, 8, 8, 8]}
  data: {height: 32, width: 32, decode_cpus: 0.5}
  optim: {warmup_steps: 2}
  train: {start: near_identity, max_steps: STEPS, validation_every: 2, checkpoint_every: 2,
          validation_clips: 2, log_every: 1, sample_clips: 0, global_batch_size: 4}
"""


def write_sweep(folder: Path, text: str, steps: int = 6) -> Path:
    """A sweep's file over the smallest network."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("STEPS", str(steps)) + text)
    return path


def start(
    home: Path, sweep: Path, sweep_dir: Path | str, *more: str, hold: Hold | None = None
) -> "subprocess.Popen[str]":
    """`python jobs/tune.py sweep --sweep-dir sweep_dir`, its output captured; trials are held by
    the names of their folders."""
    return start_line(home, str(sweep), "--sweep-dir", str(sweep_dir), *more, hold=hold)


def start_line(home: Path, *arguments: str, hold: Hold | None = None) -> "subprocess.Popen[str]":
    """`python jobs/tune.py arguments`, its output captured."""
    variables = hold.variables if hold else {}
    home.mkdir(exist_ok=True, parents=True)
    return subprocess.Popen(
        [sys.executable, "jobs/tune.py", *arguments],
        cwd=REPOSITORY,
        env=environment(home, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_at_once(process: "subprocess.Popen[str]") -> None:
    """As when the machine's memory is at its end: nothing can be tidied up."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def records(sweep_dir: Path) -> dict[int, dict[str, Any]]:
    """The trials' records by their number."""
    read = [json.loads(path.read_text()) for path in sweep_dir.glob("trials/*/trial.json")]
    return {record["number"]: record for record in sorted(read, key=lambda r: r["number"])}


def statuses(sweep_dir: Path) -> list[str]:
    return [record["status"] for record in records(sweep_dir).values()]


def mlflow_runs(database: Path) -> list[Any]:
    """All runs of the store, of every experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(experiments))
