"""jobs/tune.py through the real Ray Tune, Optuna, Ray Train and MLflow."""

import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.synthetic import ensure_synthetic
from jobs.cli.config import flatten, read_yaml
from taehv.run import journal
from tests.helpers.jobs_run import REPOSITORY
from tests.helpers.sweep_run import mlflow_runs, records, write_sweep
from tests.jobs.test_submit import RAY, Head, head  # noqa: F401

# Many minutes where the machine has other things to do.
pytestmark = pytest.mark.timeout(1800)

LONGEST = 600.0
"""Seconds for what a test waits for; a few dozen where the cores have nothing else to do."""

# Four trials, of which one learns fast, one slowly, one not at all, and one has no weights to begin
# with.
FOUR = """\
rows:
  fast: {optim.learning_rate: 3.0e-3}
  slow: {optim.learning_rate: 1.0e-6}
  slowest: {optim.learning_rate: 1.0e-9}
  broken: {model.pretrained: /no/such/weights.pth}
scheduler: {name: asha, grace_steps: 2, reduction_factor: 2}
retries: 1
"""


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> str:
    cache = tmp_path_factory.mktemp("cache")
    return str(ensure_synthetic(cache, videos=6, frames=40, height=48, width=80))


def test_a_submitted_sweep_prunes_and_leaves_nothing_behind(
    head: Head,  # noqa: F811
    tmp_path: Path,
    annotations: str,
) -> None:
    sweep, sweep_dir = write_sweep(tmp_path, FOUR, steps=12), tmp_path / "sweeps" / "four"
    job = ["python", "jobs/tune.py", str(sweep), "--sweep-dir", str(sweep_dir)]
    command = [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *job]
    result = subprocess.run(
        [*command, "--data.annotations", annotations],
        cwd=REPOSITORY,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    assert "results.csv" in said

    trials = records(sweep_dir)
    assert len(trials) == 4
    by_row = {record["label"]: record for record in trials.values()}
    assert by_row["broken"]["status"] == "failed"
    assert by_row["broken"]["attempts"] == 2
    assert "/no/such/weights.pth" in by_row["broken"]["error"]
    others = [by_row[label]["status"] for label in by_row if label != "broken"]
    assert set(others) == {"finished", "pruned"}
    assert by_row["fast"]["status"] == "finished"

    _check_mlflow(sweep_dir, trials)
    _check_free(head, tmp_path)
    for name in ("results.csv", "report.html", "best_config.yaml"):
        assert (sweep_dir / name).is_file()


def _is(run: Any, number: int) -> bool:
    return bool(run.data.tags.get("trial.number") == f"{number:03d}")


def _check_mlflow(sweep_dir: Path, trials: dict[int, dict[str, object]]) -> None:
    """One run of the sweep, one beneath it for each trial, and none that runs on."""
    runs = mlflow_runs(sweep_dir.parent / "mlflow.db")
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    assert parent.info.status == "FINISHED"
    assert len(children) == len(trials)
    expected = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
    for run in children:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        record = trials[int(run.data.tags["trial.number"])]
        status = str(record["status"])
        assert run.data.tags["trial.status"] == status.upper()
        assert run.info.status == expected[status]
        folder = sweep_dir / "trials" / run.data.tags["trial.number"]
        config = flatten(read_yaml(folder / "config.yaml")) if status != "failed" else {}
        own = ("train.run_dir", "train.resume", "tracking.run_name")
        expected_parameters = {key: str(v) for key, v in config.items() if key not in own}
        assert {key: run.data.params[key] for key in expected_parameters} == expected_parameters
        rows = journal.read(folder / "metrics.jsonl")
        if rows:
            psnr = [row["val_ema/psnr"] for row in rows if "val_ema/psnr" in row]
            assert math.isclose(run.data.metrics["val_ema/psnr"], psnr[-1])
        assert ("verdict" in run.data.tags) is (status == "finished")


def _check_free(head: Head, folder: Path) -> None:  # noqa: F811
    """All of the cluster is there for the next job, as another job sees it."""
    script = folder / "free.py"
    script.write_text(FREE)
    result = subprocess.run(
        [RAY, "job", "submit", "--address", head.dashboard, "--", "python", str(script)],
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


FREE = """\
import time
import ray
from ray.util import placement_group_table
ray.init(log_to_driver=False)
end = time.monotonic() + 60
while True:
    free, total = ray.available_resources().get("CPU"), ray.cluster_resources()["CPU"]
    held = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
    if free == total and not held:
        break
    assert time.monotonic() < end, (free, total, held)
    time.sleep(0.5)
"""
