"""Find the settings that suit your video: `python jobs/tune.py tune_configs/loss_weights.yaml`.

The first argument is the sweep's YAML. `--sweep-dir DIR` names its folder; the same command with
the same folder goes on with a sweep that was stopped, and so does that option alone. All other
options are those of jobs/train.py, and hold for every trial."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Run as a script, Python looks for imports in jobs/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from data_pipeline.clips import open_sources
from data_pipeline.errors import DataError
from jobs.cli.config import flatten
from jobs.cli.console import BAD_CONFIG, DONE, FAILED, log_plainly, refuse
from jobs.cli.errors import ConfigError
from jobs.cluster import connection
from jobs.sweep import results
from jobs.sweep.command_line import keep_definition, parse, resume_options
from jobs.sweep.definition import METRICS, Plan
from jobs.sweep.ledger import Ledger
from jobs.sweep.progress import TrialProgress
from jobs.sweep.report import write_report
from jobs.sweep.scoring import score_lpips, score_reference
from jobs.sweep.session import Session, stop_on_signals
from jobs.sweep.stages import Stages
from jobs.sweep.trial import TrialPlan
from jobs.tracking.tracker import Tracker
from jobs.training.checks import check
from jobs.training.messages import open_mailbox
from taehv.credentials import without_credentials
from taehv.errors import TrainingError
from taehv.evaluation.lpips import SMALLEST_SIDE, Lpips
from taehv.run.run_folder import RunFolder

log = logging.getLogger("jobs.tune")


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit code is that of the project's contract (0, 1, 2, 130, 143)."""
    log_plainly()
    try:
        plan, folder = parse(sys.argv[1:] if arguments is None else arguments, __doc__ or "")
        return run(plan, folder)
    except ConfigError as error:
        return refuse(error, BAD_CONFIG)
    except (TrainingError, DataError, OSError) as error:
        return refuse(error, FAILED)


def run(plan: Plan, folder: RunFolder) -> int:
    """Check, try, and say what is best."""
    sweep, base = plan.sweep, plan.base
    if sweep.lpips:
        # Before hours of training rather than after.
        Lpips.load(sweep.lpips, "cpu")
        clips = base.data.of_validation()
        if min(clips.height, clips.width) < SMALLEST_SIDE:
            raise ConfigError(
                f"the sweep's lpips: validation clips are {clips.height}x{clips.width}, and LPIPS "
                f"needs {SMALLEST_SIDE} pixels a side; set --data.validation-height and -width"
            )
    check(base)
    open_sources(base.data, base.train.seed, base.train.global_batch_size)
    folder.local.mkdir(parents=True, exist_ok=True)
    keep_definition(plan, folder)
    ledger = Ledger(folder)
    log.info("sweep folder: %s", folder)
    tracking = dataclasses.replace(base.tracking, run_name=sweep.name, tensorboard=False)
    folder.retrieve("mlflow.json")
    tracker = Tracker(
        tracking, folder.local, flatten(base), {"sweep": sweep.name, "sweep.metric": sweep.metric}
    )
    if folder.is_remote and tracker.run_id:
        folder.publish("mlflow.json")
    points = plan.points()
    trials = len(points) if points is not None else sweep.search.trials
    progress = TrialProgress(sweep.metric, base.train.max_steps, trials)
    progress.add_earlier_trials(ledger.records.values())
    status: Any = "FAILED"
    reference: Mapping[str, float] | None = None
    try:
        # What the trials that run at the same time need together.
        workers = sweep.concurrent * max(1, base.cluster.max_workers)
        cluster = dataclasses.replace(base.cluster, workers=str(workers))
        with connection.connected(cluster, base.data.decode_cpus) as own_ray:
            mailbox = open_mailbox()
            session = Session(plan, ledger, mailbox, tracker, progress)
            trial_plan = TrialPlan(
                base, sweep.metric, folder.address, mailbox, own_ray, sweep.concurrent
            )
            with stop_on_signals(session):
                try:
                    Stages(plan, trial_plan, session).run()
                finally:
                    session.close()
            progress.close()
            if sweep.reference_vae and not session.stop_reason:
                reference = score_reference(base, folder)
            if sweep.lpips and not session.stop_reason:
                score_lpips(plan, ledger)
        code = _conclude(plan, ledger, session, tracker, reference)
        status = "KILLED" if session.stop_reason else "FINISHED"
        return code
    except KeyboardInterrupt:
        status = "KILLED"
        return 130
    finally:
        progress.close()
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
        tracker.tag("best", results.format_settings(best[0]))
    print(f"\n{results.closing_table(plan, ledger)}")
    if plan.rows:
        print(f"\n{results.ablation_table(plan, ledger, reference)}")
    print()
    for name in files:
        path = ledger.folder.retrieve(name)
        tracker.artifact(path)
        print(f"{name:<18} {without_credentials(ledger.folder.address_of(name))}")
    if tracker.open_hint():
        print(f"{'MLflow':<18} {tracker.open_hint()}")
    if session.stop_reason:
        print(f"stopped ({session.stop_reason}); to go on: {resume_options(ledger.folder)}")
    if session.stopped_by is not None:
        return 128 + session.stopped_by
    return DONE if best else FAILED


if __name__ == "__main__":
    sys.exit(main())
