"""Train a TAEHV on video: `python jobs/train.py --help` lists every option."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

# Run as a script, Python looks for imports in jobs/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline.clips import open_sources
from data_pipeline.errors import DataError
from jobs.cli.config import Config, flatten, parse
from jobs.cli.console import BAD_CONFIG, DONE, FAILED, log_plainly, refuse
from jobs.cli.errors import ConfigError
from jobs.cli.places import with_places
from jobs.cli.progress import TrainingProgress
from jobs.cluster import connection
from jobs.tracking.tracker import Status, Tracker
from jobs.training.checks import check, check_run_folder
from jobs.training.messages import open_mailbox
from jobs.training.resumed import judged_resume, keep_config
from jobs.training.summary import closing_summary
from jobs.training.trainer import make_driver
from taehv.errors import TrainingError
from taehv.evaluation.verdict import Thresholds
from taehv.run import journal
from taehv.run.resume import prepare_resume
from taehv.run.run_folder import RunFolder, resume_options

log = logging.getLogger("jobs.train")


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit code is that of the project's contract (0, 1, 2, 130, 143)."""
    log_plainly()
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments, __doc__ or "")
        return run(config)
    except ConfigError as error:
        return refuse(error, BAD_CONFIG)
    except (TrainingError, DataError, OSError) as error:
        # An OSError is a folder, a store or a cluster that refuses, and names it.
        return refuse(error, FAILED)


def run(config: Config) -> int:
    """Check, set up, train, and say how it went."""
    config = with_places(config)
    run_folder = RunFolder(config.train.run_dir)
    check_run_folder(run_folder, config.train.resume)
    config = judged_resume(run_folder, config)
    check(config)
    sources = open_sources(config.data, config.train.seed, config.train.global_batch_size)
    run_folder.local.mkdir(parents=True, exist_ok=True)
    if config.train.resume not in ("", "latest"):
        resume = prepare_resume(run_folder, config.train.resume)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, resume=resume))
    log.info("run folder: %s", run_folder)

    progress = TrainingProgress(config.train.max_steps)
    # MLflow takes seconds to start, and is not needed before the first row.
    tracking = cache(lambda: ThreadPoolExecutor(1).submit(_start_tracking, config, run_folder))
    try:
        with connection.connected(config.cluster, config.data.decode_cpus) as own_ray:
            keep_config(run_folder, config)
            tracking()
            driver = make_driver(
                config, sources, open_mailbox(), lambda: tracking().result(), progress, own_ray
            )
            summary = driver.drive()
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        _end_tracking(tracking().result(), run_folder, "KILLED" if interrupted else "FAILED")
        raise
    finally:
        progress.close()
    limits = Thresholds().with_gradient_scale(config.loss.gradient_scale)
    return _conclude(config, run_folder, summary, driver.stopped_by, tracking().result(), limits)


def _start_tracking(config: Config, run_folder: RunFolder) -> Tracker:
    run_folder.retrieve("mlflow.json")
    tracker = Tracker(config.tracking, run_folder.local, flatten(config))
    if run_folder.is_remote and tracker.run_id:
        run_folder.publish("mlflow.json")
    return tracker


def _conclude(
    config: Config,
    run_folder: RunFolder,
    summary: Mapping[str, Any] | None,
    stopped_by: signal.Signals | None,
    tracker: Tracker,
    limits: Thresholds,
) -> int:
    """Hand the results to the tracker and the user."""
    finished = summary is not None and summary["finished"]
    _end_tracking(tracker, run_folder, "FINISHED" if finished else "KILLED")
    go_on = f"go on with: {resume_options(run_folder.address)}"
    if summary is None:
        assert stopped_by is not None
        print(f"stopped while waiting for workers; {go_on}")
        return 128 + stopped_by
    rows = journal.read_run(run_folder)
    print()
    hint = tracker.open_hint()
    baselines = summary["baselines"]
    print(closing_summary(config, rows, baselines, run_folder, finished, hint, limits))
    if finished or stopped_by is None:
        return DONE
    print(f"stopped at step {summary['step']}; {go_on}")
    return 128 + stopped_by


def _end_tracking(tracker: Tracker, run_folder: RunFolder, status: Status) -> None:
    """Send what the store still lacks, rows and files, and close the tracked run."""
    try:
        tracker.catch_up(journal.read_run(run_folder))
        for name in ("config.yaml", "metrics.jsonl", "quarantine.jsonl", "final_model.safetensors"):
            if run_folder.exists(name):
                tracker.artifact(run_folder.retrieve(name))
    except OSError as error:
        # The store is down. That must not hide what ended the run, nor leave it open in MLflow.
        log.warning(
            "%s cannot be read for MLflow (%s); resuming the run sends the rest", run_folder, error
        )
    tracker.finish(status)


if __name__ == "__main__":
    sys.exit(main())
