"""Find the settings that suit your video: `python jobs/tune.py tune_configs/loss_weights.yaml`.

The first argument is the sweep's YAML. `--sweep-dir DIR` names its folder; the same command with
the same folder goes on with a sweep that was stopped, and so does that option alone. All other
options are those of jobs/train.py, and hold for every trial."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

# Run as a script, Python looks for imports in jobs/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from data_pipeline.clips import open_sources
from data_pipeline.errors import DataError
from jobs.cli.config import Config, flatten, read_defaults
from jobs.cli.console import BAD_CONFIG, DONE, FAILED, log_plainly, refuse
from jobs.cli.errors import ConfigError
from jobs.cli.paths import run_address
from jobs.cli.places import with_places
from jobs.cluster import connection
from jobs.sweep import results
from jobs.sweep.ablation import ablation_table
from jobs.sweep.board import Board
from jobs.sweep.definition import METRICS, Plan, as_begun, make_plan, read_sweep
from jobs.sweep.ledger import Ledger
from jobs.sweep.report import write_report
from jobs.sweep.scoring import score_lpips, score_reference
from jobs.sweep.session import Session, stop_on_signals
from jobs.sweep.stages import Stages
from jobs.sweep.trial import TrialPlan
from jobs.tracking.tracker import Tracker
from jobs.training.checks import check
from jobs.training.messages import open_mailbox
from taehv.credentials import in_all_texts, without_credentials
from taehv.errors import TrainingError
from taehv.evaluation.lpips import Lpips
from taehv.run.checkpoint import write_atomically
from taehv.run.run_folder import RunFolder

BEGUN = "sweep.yaml"
"""In a sweep's folder: what it was begun with, from which it goes on."""

log = logging.getLogger("jobs.tune")


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit code is that of the project's contract (0, 1, 2, 130, 143)."""
    log_plainly()
    try:
        plan, folder = parse(sys.argv[1:] if arguments is None else arguments)
        return run(plan, folder)
    except ConfigError as error:
        return refuse(error, BAD_CONFIG)
    except (TrainingError, DataError, OSError) as error:
        return refuse(error, FAILED)


def parse(arguments: Sequence[str]) -> tuple[Plan, RunFolder]:
    """The sweep that a command line asks for, checked, and its folder.

    Raises:
        ConfigError: naming the line of the YAML, or the key.
        SystemExit: with 2 for an option that does not exist, with 0 after --help.
    """
    rest = list(arguments)
    sweep_dir = _take(rest, "--sweep-dir")
    if rest and rest[0] in ("-h", "--help"):
        tyro.cli(Config, args=["--help"], description=__doc__)
    if rest and not rest[0].startswith("-"):
        sweep, base, lines = read_sweep(Path(rest.pop(0)))
    elif sweep_dir:
        begun = RunFolder(run_address(sweep_dir, read_defaults(None).cluster.storage))
        if not begun.exists(BEGUN):
            raise ConfigError(
                f"{begun.address_of(BEGUN)} is not there: to begin a sweep, or to go on with one "
                "of an earlier version, give its file as the first argument"
            )
        sweep, base, lines = read_sweep(begun.retrieve(BEGUN), begun=True)
        sweep_dir = begun.address
    else:
        raise ConfigError(
            "the first argument is a sweep, such as tune_configs/smoke.yaml, or --sweep-dir with "
            "the folder of one that is to go on"
        )
    before = flatten(base)
    try:
        base = tyro.cli(Config, args=rest, default=base, description=__doc__)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    plan = make_plan(sweep, base, lines)
    for key in {*plan.space, *(key for row in plan.rows.values() for key in row)}:
        if flatten(base)[key] != before[key]:
            raise ConfigError(f"{key} is what this sweep tries: it cannot be an option as well")
    if base.train.run_dir or base.train.resume:
        raise ConfigError("--train.run-dir and --train.resume are each trial's: give --sweep-dir")
    if base.train.resume_changed:
        raise ConfigError("--train.resume-changed: a sweep that goes on stays the same")
    sweep_dir = sweep_dir or f"runs/{sweep.name}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    # The folder's place follows the same rules as a run's.
    train = dataclasses.replace(base.train, run_dir=sweep_dir)
    placed = with_places(dataclasses.replace(plan.base, train=train))
    folder = RunFolder(placed.train.run_dir)
    tracking = placed.tracking
    if not (tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        # Beside the sweep's folder, as for a run, rather than beside each trial's.
        store = Path(folder.address).parent / "mlflow.db"
        tracking = dataclasses.replace(tracking, uri=f"sqlite:///{store}")
    base = dataclasses.replace(placed, train=base.train, tracking=tracking)
    return dataclasses.replace(plan, base=base), folder


def run(plan: Plan, folder: RunFolder) -> int:
    """Check, try, and say what is best."""
    check(plan.base)
    sweep, base = plan.sweep, plan.base
    if sweep.lpips:
        # Before hours of training rather than after.
        Lpips.load(sweep.lpips, "cpu")
    open_sources(base.data, base.train.seed, base.train.global_batch_size)
    folder.local.mkdir(parents=True, exist_ok=True)
    _keep_definition(plan, folder)
    ledger = Ledger(folder)
    log.info("sweep folder: %s", folder)
    tracking = dataclasses.replace(base.tracking, run_name=sweep.name, tensorboard=False)
    folder.retrieve("mlflow.json")
    tracker = Tracker.start(
        tracking, folder.local, flatten(base), {"sweep": sweep.name, "sweep.metric": sweep.metric}
    )
    if folder.is_remote and tracker.run_id:
        folder.publish("mlflow.json")
    points = plan.points()
    trials = len(points) if points is not None else sweep.search.trials
    board = Board(sweep.metric, base.train.max_steps, trials)
    board.remember(ledger.records.values())
    status: Any = "FAILED"
    reference: Mapping[str, float] | None = None
    try:
        with connection.connected(_for_all(plan), base.data.decode_cpus) as own_ray:
            mailbox = open_mailbox()
            session = Session(plan, ledger, mailbox, tracker, board)
            trial_plan = TrialPlan(
                base,
                sweep.metric,
                folder.address,
                mailbox,
                own_ray,
                sweep.concurrent,
            )
            with stop_on_signals(session):
                try:
                    Stages(plan, trial_plan, session).run()
                finally:
                    session.close()
            board.close()
            if sweep.reference_vae and not session.stopping:
                reference = score_reference(base, folder)
            if sweep.lpips and not session.stopping:
                score_lpips(plan, ledger)
        code = _conclude(plan, ledger, session, tracker, reference)
        status = "KILLED" if session.stopping else "FINISHED"
        return code
    except KeyboardInterrupt:
        status = "KILLED"
        return 130
    finally:
        board.close()
        tracker.finish(status)


def _conclude(
    plan: Plan,
    ledger: Ledger,
    session: Session,
    tracker: Tracker,
    reference: Mapping[str, float] | None,
) -> int:
    """Write the results, and say where they are."""
    results.write_csv(plan, ledger)
    write_report(plan, ledger, reference)
    best = results.ranked(plan, ledger)
    files = ["results.csv", "report.html"]
    if best:
        results.write_best(plan, ledger, best[0])
        files.append("best_config.yaml")
        tracker.log({f"best/{n.replace('/', '_')}": best[0].mean(n) for n in METRICS}, step=0)
        tracker.tag("best", results.settings_told(best[0]))
    print()
    print(results.closing_table(plan, ledger))
    if plan.rows:
        print(f"\n{ablation_table(plan, ledger, reference)}")
    print()
    for name in files:
        path = ledger.folder.retrieve(name)
        tracker.artifact(path)
        print(f"{name:<18} {without_credentials(ledger.folder.address_of(name))}")
    if tracker.open_hint():
        print(f"{'MLflow':<18} {tracker.open_hint()}")
    if session.stopping:
        print(f"stopped ({session.stopping}); to go on: {go_on_line(ledger.folder)}")
    if session.stopped_by is not None:
        return 128 + session.stopped_by
    return DONE if best else FAILED


def go_on_line(folder: RunFolder) -> str:
    """What is typed to go on with a sweep, quoted for a shell; its folder says the rest."""
    return f"--sweep-dir {shlex.quote(folder.address)}"


def _keep_definition(plan: Plan, folder: RunFolder) -> None:
    """Write what the sweep is, or see that it is what the folder holds.

    Raises:
        ConfigError: where the folder holds another sweep.
    """
    told: dict[str, Any] = {"sweep": dataclasses.asdict(plan.sweep), "config": flatten(plan.base)}
    told = _what_it_is(json.loads(json.dumps(in_all_texts(without_credentials, told))))
    if folder.exists("sweep.json"):
        before = _what_it_is(json.loads(folder.retrieve("sweep.json").read_text()))
        changed = [
            f"{part}.{key}"
            for part in told
            for key in told[part].keys() | before[part].keys()
            if told[part].get(key) != before[part].get(key)
        ]
        if changed:
            raise ConfigError(
                f"{folder} holds another sweep, which differs in {', '.join(sorted(changed))}: "
                "choose another --sweep-dir"
            )
    elif folder.entries("trials") or folder.exists("metrics.jsonl"):
        raise ConfigError(f"{folder} holds something else: choose another --sweep-dir")
    for name, text in (("sweep.json", json.dumps(told, indent=1) + "\n"), (BEGUN, as_begun(plan))):
        write_atomically(folder.local / name, text)
        folder.publish(name)


def _what_it_is(told: dict[str, Any]) -> dict[str, Any]:
    """Of a sweep's definition, what may not change from session to session: what it tries and on
    what, rather than how much, and where."""
    # The file's own settings are in the configuration, with those of the command line.
    amounts = ("concurrent", "retries", "budget", "lpips", "config", "settings")
    sweep = {key: value for key, value in told["sweep"].items() if key not in amounts}
    search = {key: value for key, value in sweep["search"].items() if key != "trials"}
    own = ("cluster.", "tracking.", "train.run_dir", "train.resume")
    config = {key: value for key, value in told["config"].items() if not key.startswith(own)}
    return {"sweep": sweep | {"search": search}, "config": config}


def _for_all(plan: Plan) -> Any:
    """The cluster that all trials at a time need."""
    config = plan.base.cluster
    workers = plan.sweep.concurrent * max(1, config.max_workers)
    return dataclasses.replace(config, workers=str(workers))


def _take(arguments: list[str], option: str) -> str:
    """Remove an option with its value."""
    for position, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if name == option:
            if separator:
                del arguments[position]
                return value
            if position + 1 == len(arguments):
                raise ConfigError(f"{option} needs a value")
            value = arguments[position + 1]
            del arguments[position : position + 2]
            return value
    return ""


if __name__ == "__main__":
    sys.exit(main())
