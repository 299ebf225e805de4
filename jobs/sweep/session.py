"""A session of a sweep: what its driver does while Ray Tune runs the trials."""

from __future__ import annotations

import dataclasses
import logging
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, assert_never

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.util.placement_group import PlacementGroup, remove_placement_group

from jobs.cli.config import flatten
from jobs.cli.console import stop_signals_to
from jobs.sweep.definition import Plan
from jobs.sweep.ledger import Ledger, Status
from jobs.sweep.progress import TrialProgress
from jobs.sweep.reporter import (
    ArtifactWritten,
    TagSet,
    TrialBegun,
    TrialEnded,
    TrialEvent,
    TrialMessage,
    WorkersPlaced,
)
from jobs.sweep.trial import trial_config
from jobs.tracking.tracker import Tracker
from jobs.training.messages import LineLogged, RowLogged, StepDone
from jobs.training.summary import judge_run
from taehv.evaluation.verdict import Thresholds, overall
from taehv.run import journal
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)

STOP_SECONDS = 300.0
"""How long a trial that is stopped may take to save its checkpoint."""

MLFLOW_STATUS: dict[Status, Any] = {
    "finished": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
"""MLflow has no status for a pruned run: the tag `trial.status` tells it from a killed one."""

UNTRACKED_KEYS = ("train.run_dir", "train.resume", "tracking.run_name")
"""They differ between trials without being settings: MLflow compares runs by the parameters that
differ."""


class Session(tune.Callback):  # type: ignore[misc]
    """Handles the trials' messages, records their state, and stops them. Each trial has a run
    beneath that of the sweep's `tracker`."""

    def __init__(
        self, plan: Plan, ledger: Ledger, mailbox: Any, tracker: Tracker, progress: TrialProgress
    ) -> None:
        self.plan, self.ledger, self.mailbox, self.progress = plan, ledger, mailbox, progress
        self.stopped_by: signal.Signals | None = None
        self.stop_reason = ""
        """Why the sweep stops; empty: it does not."""
        self._tracker = tracker
        self._trackers: dict[int, Tracker] = {}
        self._folders: dict[int, RunFolder] = {}
        self._running: set[int] = set()
        self._placement_groups: dict[int, PlacementGroup | None] = {}
        """What the workers of each trial's last attempt hold."""
        self._steps: dict[int, int] = {n: r.step for n, r in ledger.records.items()}
        hours = plan.sweep.budget.hours
        self._deadline = time.monotonic() + 3600 * hours if hours else float("inf")

    def stop(self, reason: str) -> None:
        """Ask all trials to save a checkpoint and end."""
        if not self.stop_reason:
            self.stop_reason = reason
            log.warning("%s: the trials save their checkpoints and stop", reason)
            self.mailbox.request_stop_of_all.remote()

    def is_over(self) -> bool:
        """Whether Ray Tune may end: the sweep stops, and its trials have done so."""
        return bool(self.stop_reason) and not self._running

    # ------------------------------------------------------------ callbacks of Ray Tune

    def on_step_end(self, **info: Any) -> None:
        self.handle_messages()
        if time.monotonic() > self._deadline:
            self.stop(f"budget.hours ({self.plan.sweep.budget.hours:g}) are over")
        most = self.plan.sweep.budget.steps
        if most and sum(self._steps.values()) >= most:
            self.stop(f"budget.steps ({most}) are made")

    def on_trial_complete(self, trial: TuneTrial, **info: Any) -> None:
        # Wait for a trial that the scheduler stops: Ray Tune gives the last ones a few seconds, and
        # a kill would leave half a checkpoint.
        number = trial.config["number"]
        self.handle_messages()
        if number in self._running:
            self.mailbox.request_stop.remote(number)
            end = time.monotonic() + STOP_SECONDS
            while number in self._running and time.monotonic() < end:
                time.sleep(0.05)
                self.handle_messages()

    def on_trial_error(self, trial: TuneTrial, **info: Any) -> None:
        self.handle_messages()
        number = trial.config["number"]
        self._free_workers(number)
        if number in self._running:
            self._conclude(number, "failed", error="its process died; see the log above")

    # ------------------------------------------------------------ messages of the trials

    def handle_messages(self) -> None:
        messages: list[TrialMessage] = ray.get(self.mailbox.take.remote())
        for message in messages:
            self._handle(message.number, message.event)

    def _handle(self, number: int, event: TrialEvent) -> None:
        match event:
            case TrialBegun(run_dir):
                self._begin(number, run_dir)
            case WorkersPlaced(placement_group):
                self._placement_groups[number] = placement_group
            case StepDone(step):
                self._set_step(number, step)
            case RowLogged(row):
                self._trackers[number].log(row, row["step"])
                self.progress.row(number, row)
                self._set_step(number, row["step"])
            case ArtifactWritten(path, folder):
                self._trackers[number].artifact(Path(path), folder)
            case TagSet(name, value):
                self._trackers[number].tag(name, value)
            case LineLogged(level, text):
                log.log(level, "trial %03d: %s", number, text)
            case TrialEnded():
                self._end(number, event)
            case _:
                assert_never(event)

    def _free_workers(self, number: int) -> None:
        """End the workers of a trial whose process was killed: Ray keeps what they hold, and the
        trial's next attempt would wait for it."""
        placement_group = self._placement_groups.pop(number, None)
        if placement_group is not None:
            remove_placement_group(placement_group)

    def _begin(self, number: int, run_dir: str) -> None:
        self._free_workers(number)
        self._running.add(number)
        attempts = self.ledger.records[number].attempts + 1
        record = self.ledger.update(number, status="running", attempts=attempts, error="")
        if number not in self._trackers:
            self._trackers[number] = self._track(number, run_dir)
        self.progress.update(record)

    def _set_step(self, number: int, step: int) -> None:
        self._steps[number] = step
        self.progress.step(number, step)

    def _end(self, number: int, ended: TrialEnded) -> None:
        record, summary, status = self.ledger.records[number], ended.summary, "pruned"
        if ended.error:
            status = "failed"
        elif summary and summary["finished"]:
            status = "finished"
        elif self.stop_reason:
            status = "interrupted"
        changes = {"error": ended.error, "seconds": record.seconds + ended.seconds}
        if summary:
            changes["step"] = summary["step"]
            changes["baselines"] = summary["baselines"] or record.baselines
        self._conclude(number, status, **changes)

    def close(self) -> None:
        """Record trials that still run as interrupted."""
        for number in sorted(self._running):
            self._conclude(number, "interrupted")
        for tracker in self._trackers.values():
            tracker.finish("KILLED")

    def _conclude(self, number: int, status: Any, **changes: Any) -> None:
        self._running.discard(number)
        record = dataclasses.replace(self.ledger.records[number], status=status, **changes)
        rows = self.ledger.rows(record)
        step = max([record.step, *(int(row["step"]) for row in rows)])
        verdict = ""
        if status == "finished" and any("val_ema/psnr" in row for row in rows):
            loss = trial_config(self.plan.base, record.settings, "").loss
            limits = Thresholds().with_gradient_scale(loss.gradient_scale)
            verdict = overall(judge_run(rows, record.baselines, limits))
        changes |= {"status": status, "step": step, "verdict": verdict}
        record = self.ledger.update(number, **changes)
        self._steps[number] = step
        tracker = self._trackers.pop(number, None)
        if tracker is not None:
            tracker.catch_up(rows)
            tracker.tag("trial.status", status.upper())
            if verdict:
                tracker.tag("verdict", verdict)
            if record.error:
                tracker.tag("trial.error", record.error)
            folder = self._folders.pop(number)
            if folder.exists("config.yaml"):
                tracker.artifact(folder.retrieve("config.yaml"))
            tracker.finish(MLFLOW_STATUS[record.status])
        self.progress.update(record)

    def _track(self, number: int, run_dir: str) -> Tracker:
        record = self.ledger.records[number]
        config = trial_config(self.plan.base, record.settings, run_dir)
        name = f"{self.plan.sweep.name} {record.name} {record.label}".rstrip()
        tracking = dataclasses.replace(config.tracking, run_name=name, tensorboard=False)
        # Of a folder on a store, the local copy lives as long as this object.
        folder = self._folders[number] = RunFolder(run_dir)
        folder.retrieve("mlflow.json")
        tags = {
            "sweep": self.plan.sweep.name,
            "trial.number": record.name,
            "trial.stage": record.stage,
            "trial.seed": str(record.seed),
            "trial.run_dir": run_dir,
        } | ({"trial.row": record.label} if record.label else {})
        parameters = {k: v for k, v in flatten(config).items() if k not in UNTRACKED_KEYS}
        tracker = Tracker(
            tracking, folder.local, parameters, tags, parent_run_id=self._tracker.run_id
        )
        if folder.is_remote and tracker.run_id:
            folder.publish("mlflow.json")
        if record.attempts > 1:
            tracker.catch_up(journal.read_run(folder))
        return tracker


class SweepStopper(tune.Stopper):  # type: ignore[misc]
    """Ends Ray Tune once a session is over."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._session.is_over()


@contextmanager
def stop_on_signals(session: Session) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the sweep with all checkpoints saved; a second one at once."""

    def handle(number: signal.Signals) -> None:
        if session.stopped_by is not None:
            raise KeyboardInterrupt
        session.stopped_by = number
        session.stop(number.name)

    with stop_signals_to(handle):
        yield
