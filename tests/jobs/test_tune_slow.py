"""Sweeps that are killed, that share a machine, that have something to find: `make test-sweeps`."""

import csv
import os
import re
import shlex
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from data_pipeline.synthetic import ensure_synthetic
from jobs.cli.config import read_yaml
from jobs.sweep.definition import make_plan, read_sweep
from jobs.sweep.importance import importance
from jobs.sweep.ledger import Ledger
from taehv.run import checkpoint, journal
from taehv.run.run_folder import RunFolder
from tests.helpers import jobs_run
from tests.helpers.hold import Hold
from tests.helpers.jobs_run import REPOSITORY, TINY, assert_quiet, finish, wait_for
from tests.helpers.s3_server import s3_server
from tests.helpers.small_teacher import save_small_teacher
from tests.helpers.sweep_run import (
    kill_at_once,
    mlflow_runs,
    records,
    start,
    start_line,
    statuses,
    write_sweep,
)
from tests.taehv.evaluation.test_frames import lpips_state

pytestmark = [pytest.mark.sweeps, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> str:
    cache = tmp_path_factory.mktemp("cache")
    return str(ensure_synthetic(cache, videos=6, frames=40, height=48, width=80))


LONG = 16
"""Steps of a trial that is struck in the midst, where it is held."""

FOUR = """\
space:
  loss.seraena: {log: [0.001, 1.0], ratio_to: loss.reconstruction}
  optim.learning_rate: {log: [1.0e-4, 1.0e-2]}
search: {algorithm: tpe, trials: 4, startup_trials: 2}
"""


THREE = """\
space:
  loss.seraena: {choices: [0.0, 0.01, 0.1], ratio_to: loss.reconstruction}
search: {algorithm: grid}
"""


def test_a_sweep_that_was_stopped_goes_on_where_it_was(tmp_path: Path, annotations: str) -> None:
    sweep, sweep_dir = write_sweep(tmp_path, THREE, steps=LONG), tmp_path / "sweeps" / "three"
    home = tmp_path / "home"
    seldom = f"--train.validation-every {LONG // 2} --train.checkpoint-every {LONG // 2}"
    data = ["--data.annotations", annotations, *seldom.split()]
    hold = Hold(tmp_path / "hold", **{"002": 4})
    process = start(home, sweep, sweep_dir, *data, hold=hold)
    wait_for(lambda: hold.waits("002"), "the second trial's step 4", process, 600)
    process.send_signal(signal.SIGINT)
    code, said = finish(process, 600)
    assert code == 130, said
    assert_quiet(said)
    assert statuses(sweep_dir) == ["finished", "interrupted"]
    before = records(sweep_dir)[1], _written(sweep_dir / "trials/001")
    assert all(run.info.status != "RUNNING" for run in mlflow_runs(tmp_path / "sweeps/mlflow.db"))

    # As printed, without its file and the options.
    (printed,) = re.findall(r"; to go on: (.*)$", said, re.M)
    code, said = finish(start_line(home, *shlex.split(printed)), 600)
    assert code == 0, said
    assert statuses(sweep_dir) == ["finished"] * 3
    assert (records(sweep_dir)[1], _written(sweep_dir / "trials/001")) == before
    assert records(sweep_dir)[2]["attempts"] == 2
    for number in (1, 2, 3):
        rows = journal.read(sweep_dir / f"trials/{number:03d}/metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(LONG + 1))
    # A sweep that has ended is told again, with nothing run.
    other = write_sweep(tmp_path / "other", THREE.replace("0.01", "0.02"), steps=LONG)
    code, said = finish(start(home, other, sweep_dir, *data), 600)
    assert code == 2, said
    assert "holds another sweep, which differs in sweep.space" in said

    # A trial is what jobs/train.py would have made of the same settings, though its workers had
    # other trials before.
    config = sweep_dir / "trials/003/config.yaml"
    alone = ["--config", str(config), "--train.run-dir", str(tmp_path / "alone")]
    code, said = finish(jobs_run.start(home, *alone), 600)
    assert code == 0, said
    assert _losses(tmp_path / "alone") == _losses(sweep_dir / "trials/003")


def _written(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file())


def _losses(run_dir: Path) -> list[tuple[float, ...]]:
    rows = journal.read(run_dir / "metrics.jsonl")
    return [
        (r["step"], r["train/loss"], r["train/gradient_norm"]) for r in rows if "train/loss" in r
    ]


def test_a_killed_driver_repeats_nothing(tmp_path: Path, annotations: str) -> None:
    sweep, sweep_dir = write_sweep(tmp_path, FOUR, steps=LONG), tmp_path / "sweeps" / "four"
    home, data = tmp_path / "home", ("--data.annotations", annotations)
    hold = Hold(tmp_path / "hold", **{"002": 6})
    process = start(home, sweep, sweep_dir, *data, hold=hold)
    wait_for(lambda: hold.waits("002"), "the second trial's step 6", process, seconds=400)
    family = psutil.Process(process.pid).children(recursive=True)
    kill_at_once(process)
    # Ray's own agents look only now and then whether they are still needed.
    _, alive = psutil.wait_procs(family, timeout=180)
    assert not alive, "what the driver started has outlived it"
    assert statuses(sweep_dir) == ["finished", "running"]
    first = (sweep_dir / "trials/001/trial.json").read_text()

    code, said = finish(start(home, sweep, sweep_dir, *data), seconds=600)
    assert code == 0, said
    assert statuses(sweep_dir) == ["finished"] * 4
    assert (sweep_dir / "trials/001/trial.json").read_text() == first
    found = records(sweep_dir)
    assert [found[n]["attempts"] for n in found] == [1, 2, 1, 1]
    for number in found:
        steps = [r["step"] for r in journal.read(sweep_dir / f"trials/{number:03d}/metrics.jsonl")]
        assert steps == list(range(LONG + 1))
    runs = mlflow_runs(tmp_path / "sweeps/mlflow.db")
    assert len(runs) == 5
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_jobs_train_goes_on_with_a_trial_that_was_pruned(tmp_path: Path, annotations: str) -> None:
    """It is a run like any other."""
    text = "rows:\n  fast: {optim.learning_rate: 3.0e-3}\n  slow: {optim.learning_rate: 1.0e-9}\n"
    text += "scheduler: {name: asha, grace_steps: 2, reduction_factor: 2}\n"
    sweep, sweep_dir = write_sweep(tmp_path, text, steps=12), tmp_path / "sweeps" / "pruned"
    process = start(tmp_path / "home", sweep, sweep_dir, "--data.annotations", annotations)
    code, said = finish(process, seconds=600)
    assert code == 0, said
    assert statuses(sweep_dir) == ["finished", "pruned"]
    folder = sweep_dir / "trials/002"
    assert checkpoint.latest_valid(RunFolder(str(folder))) is not None
    again = jobs_run.start(tmp_path / "home", "--config", str(folder / "config.yaml"))
    code, said = finish(again, seconds=600)
    assert code == 0, said
    assert [row["step"] for row in journal.read(folder / "metrics.jsonl")] == list(range(13))
    assert (folder / "final_model.safetensors").is_file()
    runs = mlflow_runs(tmp_path / "sweeps/mlflow.db")
    (run,) = (r for r in runs if r.data.tags.get("trial.number") == "002")
    assert run.info.status == "FINISHED"


def test_a_trial_whose_process_is_killed_is_retried(tmp_path: Path, annotations: str) -> None:
    text = "rows:\n  one: {loss.seraena: 0.1}\n  two: {loss.seraena: 0.2}\nretries: 1\n"
    sweep, sweep_dir = write_sweep(tmp_path, text, steps=LONG), tmp_path / "sweeps" / "kills"
    hold, home = Hold(tmp_path / "hold", **{"001": 6}), tmp_path / "home"
    process = start(home, sweep, sweep_dir, "--data.annotations", annotations, hold=hold)
    rows = sweep_dir / "trials/001/metrics.jsonl"
    wait_for(lambda: hold.waits("001"), "the first trial's step 6", process, seconds=400)
    actors = []
    for child in psutil.Process(process.pid).children(recursive=True):
        # Others of Ray's processes come and go.
        with suppress(psutil.NoSuchProcess):
            # Of the first name while it is asked for something, of the second in between.
            if any(
                name in part for part in child.cmdline() for name in ("Trainable", "ray::Trial")
            ):
                actors.append(child)
    assert actors
    os.kill(actors[0].pid, signal.SIGKILL)
    hold.let_go("001")
    code, said = finish(process, seconds=600)
    assert code == 0, said
    assert statuses(sweep_dir) == ["finished", "finished"]
    assert records(sweep_dir)[1]["attempts"] == 2
    steps = [row["step"] for row in journal.read(rows)]
    assert steps == list(range(LONG + 1))


def test_trials_side_by_side(tmp_path: Path, annotations: str) -> None:
    text = FOUR.replace("algorithm: tpe", "algorithm: random") + "concurrent: 2\n"
    sweep, sweep_dir = write_sweep(tmp_path, text), tmp_path / "sweeps" / "two_at_a_time"
    hold, home = Hold(tmp_path / "hold", **{"001": 1, "002": 1}), tmp_path / "home"
    process = start(home, sweep, sweep_dir, "--data.annotations", annotations, hold=hold)
    wait_for(lambda: hold.waits("001") and hold.waits("002"), "both trials", process, seconds=400)
    assert statuses(sweep_dir) == ["running", "running"]
    hold.let_go("001")
    hold.let_go("002")
    code, said = finish(process, seconds=600)
    assert code == 0, said
    assert statuses(sweep_dir) == ["finished"] * 4


def test_a_budget_of_steps_ends_a_sweep(tmp_path: Path, annotations: str) -> None:
    text = FOUR + "budget: {steps: 14}\n"
    sweep, sweep_dir = write_sweep(tmp_path, text, steps=10), tmp_path / "sweeps" / "budget"
    process = start(tmp_path / "home", sweep, sweep_dir, "--data.annotations", annotations)
    code, said = finish(process, seconds=600)
    assert code == 0, said
    assert "budget.steps (14) are made" in said
    assert statuses(sweep_dir)[0] == "finished"
    assert len(statuses(sweep_dir)) < 4


def test_a_terminated_driver_saves_and_lpips_is_scored(tmp_path: Path, annotations: str) -> None:
    """SIGTERM to the driver alone, as a scheduler sends it; the rerun asks for LPIPS besides."""
    torch.save(lpips_state(), tmp_path / "lpips.pth")
    text = "rows:\n  one: {loss.seraena: 0.1}\n  two: {loss.seraena: 0.2}\n"
    sweep, sweep_dir = write_sweep(tmp_path, text, steps=LONG), tmp_path / "sweeps" / "two"
    home, data = tmp_path / "home", ("--data.annotations", annotations)
    hold = Hold(tmp_path / "hold", **{"001": 4})
    process = start(home, sweep, sweep_dir, *data, hold=hold)
    rows = sweep_dir / "trials/001/metrics.jsonl"
    wait_for(lambda: hold.waits("001"), "the first trial's step 4", process, seconds=400)
    process.terminate()
    code, said = finish(process, seconds=200)
    assert code == 143, said
    assert_quiet(said)
    assert f"to go on: --sweep-dir {sweep_dir}" in said
    assert statuses(sweep_dir) == ["interrupted"]
    runs = mlflow_runs(tmp_path / "sweeps/mlflow.db")
    assert {run.info.status for run in runs} == {"KILLED"}

    again = write_sweep(tmp_path, text + f"lpips: {tmp_path}/lpips.pth\n", steps=LONG)
    code, said = finish(start(home, again, sweep_dir, *data), seconds=600)
    assert code == 0, said
    assert statuses(sweep_dir) == ["finished"] * 2
    assert [row["step"] for row in journal.read(rows)] == list(range(LONG + 1))
    with (sweep_dir / "results.csv").open() as file:
        distances = [float(row["val_ema/lpips"]) for row in csv.DictReader(file)]
    assert len(distances) == 2
    assert all(distance > 0 for distance in distances)
    assert "LPIPS is a learned distance" in (sweep_dir / "report.html").read_text()


def test_a_sweep_on_a_store(tmp_path: Path, annotations: str) -> None:
    text = "rows:\n  one: {loss.seraena: 0.1}\n  two: {loss.seraena: 0.2}\n"
    sweep = write_sweep(tmp_path, text, steps=4)
    with s3_server() as server:
        server.put("bucket/there", b"")
        address = f"s3://bucket/sweeps/a{server.options}"
        home, data = tmp_path / "home", ("--data.annotations", annotations)
        for _ in range(2):
            code, said = finish(start(home, sweep, address, *data), seconds=600)
            assert code == 0, said
            assert "2 trials: 2 finished" in said
        folder = RunFolder(address)
        assert read_yaml(folder.retrieve("best_config.yaml")).loss.seraena in (0.1, 0.2)
        for name in ("results.csv", "report.html", "trials/001/final_model.safetensors"):
            assert folder.exists(name)
        assert {r.attempts for r in Ledger(folder).records.values()} == {1}
    runs = mlflow_runs(home / "mlflow.db")
    assert len(runs) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}


PLANTED = """\
space:
  optim.learning_rate: [1.0e-9, 3.0e-3, 1.0e-8]
  seraena.learning_rate: {log: [1.0e-4, 1.0e-3]}
search: {algorithm: random, trials: 9}
seeds: [0, 1]
confirm: 1
"""


def test_the_planted_setting_is_found(tmp_path: Path, annotations: str) -> None:
    """A learning rate at which nothing is learned in 30 steps, and one at which much is."""
    sweep, sweep_dir = write_sweep(tmp_path, PLANTED, steps=30), tmp_path / "sweeps" / "planted"
    process = start(tmp_path / "home", sweep, sweep_dir, "--data.annotations", annotations)
    code, said = finish(process, seconds=1000)
    assert code == 0, said
    best = read_yaml(sweep_dir / "best_config.yaml")
    assert best.optim.learning_rate == 3.0e-3
    plan = make_plan(*read_sweep(sweep))
    found = importance(plan, Ledger(RunFolder(str(sweep_dir))))
    assert found is not None
    assert next(iter(found.by_key)) == "optim.learning_rate"
    with (sweep_dir / "results.csv").open() as file:
        first = [row for row in csv.DictReader(file) if row["rank"] == "1"]
    assert [row["train.seed"] for row in first] == ["0", "1"]


def test_the_shipped_ablation(tmp_path: Path, annotations: str) -> None:
    """The four rows, with a small teacher in place of the one whose weights cannot be had here."""
    teacher = save_small_teacher(tmp_path / "teacher")
    sweep_dir = tmp_path / "sweeps" / "ablation"
    tiny = (*TINY, "--train.max-steps", "4", "--train.validation-every", "4")
    ablation = REPOSITORY / "tune_configs" / "ablation.yaml"
    home, data = tmp_path / "home", ("--data.annotations", annotations)
    code, said = finish(start(home, ablation, sweep_dir, *data, *tiny))
    assert code == 2, said
    assert "ablation.yaml, line 19: this sweep compares with the reference VAE" in said
    with_teacher = (*data, *tiny, "--teacher.path", str(teacher))
    code, said = finish(start(home, ablation, sweep_dir, *with_teacher), seconds=900)
    assert code == 0, said
    assert statuses(sweep_dir) == ["finished"] * 9
    table = said[said.index("MSE") :].splitlines()
    labels = ("reconstruction only", "+ reference VAE", "+ reference VAE + Seraena")
    for label in (*labels, "the reference VAE itself"):
        (line,) = (text for text in table if text.startswith(f"{label}  "))
        assert "none" not in line
    found = records(sweep_dir).values()
    encoder_losses = {
        record["label"]: journal.read(sweep_dir / f"trials/{record['number']:03d}/metrics.jsonl")[
            -1
        ]["train/encoder_loss"]
        for record in found
    }
    assert all(loss > 0 for loss in encoder_losses.values())


def test_make_tune(tmp_path: Path) -> None:
    """The shipped smoke.yaml, in its three minutes."""
    smoke = REPOSITORY / "tune_configs" / "smoke.yaml"
    sweep_dir = tmp_path / "sweeps" / "smoke"
    code, said = finish(start(tmp_path / "home", smoke, sweep_dir), seconds=600)
    assert code == 0, said
    assert statuses(sweep_dir) == ["finished", "finished"]
    assert "rank" in said
    assert str(sweep_dir / "report.html") in said
