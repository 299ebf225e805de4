"""A trial: a run of jobs/train.py, driven on behalf of Ray Tune."""

from __future__ import annotations

import dataclasses
import logging
import math
import queue
import threading
import time
import traceback
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import tune

from data_pipeline.clips import open_sources
from jobs.cli.config import Config
from jobs.cli.console import log_without_credentials
from jobs.cluster.capacity import Allocation, ClusterCapacity
from jobs.sweep.reporter import TrialBegun, TrialEnded, TrialReporter
from jobs.sweep.space import Settings, with_settings
from jobs.sweep.trial_workers import WorkerPool
from jobs.training.checks import check
from jobs.training.resumed import keep_config
from jobs.training.trainer import make_driver
from taehv.credentials import hide_credentials
from taehv.interfaces import Row
from taehv.run import journal
from taehv.run.run_folder import RunFolder


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep have in common."""

    base: Config
    metric: str
    folder: str
    """Of the sweep."""
    mailbox: Any
    """Takes the trials' messages to the sweep's driver."""
    own_ray: bool
    concurrent: int
    """How many trials share the cluster."""


def trial_config(base: Config, settings: Settings, run_dir: str) -> Config:
    """The configuration with which `jobs/train.py` would make this trial, or go on with it."""
    config = with_settings(base, settings)
    train = dataclasses.replace(config.train, run_dir=run_dir, resume="latest")
    return dataclasses.replace(config, train=train)


class Trial(tune.Trainable):  # type: ignore[misc]
    """Ray Tune's view of a trial: a result for each validation.

    The actor of this class, with its training workers, is used for one trial after another.
    """

    def setup(self, config: dict[str, Any], plan: TrialPlan) -> None:
        """config: the trial's `number`, its `settings`, and whether it `ended` in an earlier
        session of the sweep: then its recorded results are reported again."""
        log_without_credentials()
        self._plan = plan
        self._worker_pool = WorkerPool(
            RunFolder(plan.folder).address, plan.base.cluster, plan.own_ray
        )
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._run is None:
            row = self._recorded.pop(0) if self._recorded else None
            return self._result(row, done=not self._recorded)
        row = self._run.validations.get()
        if row is not None and row["step"] < self._run.config.train.max_steps:
            return self._result(row, done=False)
        # The last validation is reported once the run has written all its files.
        self._run.join()
        if self._run.error:
            raise RuntimeError(self._run.error)
        return self._result(row, done=True)

    def cleanup(self) -> None:
        self._end()
        self._worker_pool.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self._last: Row = {"step": 0}
        self._run: _Run | None = None
        self._recorded: list[Row] = []
        number, plan = config["number"], self._plan
        address = RunFolder(plan.folder).address_of(f"trials/{number:03d}")
        if config["ended"]:
            rows = journal.read_run(RunFolder(address))
            self._recorded = [row for row in rows if plan.metric in row]
        elif ray.get(plan.mailbox.begin.remote(number)):
            run_config = trial_config(plan.base, config["settings"], address)
            self._run = _Run(number, run_config, plan, self._worker_pool)
            self._run.start()

    def _end(self) -> None:
        if self._run is not None:
            self._run.stopped = True
            self._run.join()
            self._run = None

    def _result(self, row: Row | None, done: bool) -> dict[str, Any]:
        self._last = row or self._last
        value = self._last.get(self._plan.metric, math.nan)
        return {"step": self._last["step"], self._plan.metric: value, "done": done}


class _Run(threading.Thread):
    """Drives the run, while the actor's own thread answers Ray Tune."""

    def __init__(
        self, number: int, config: Config, plan: TrialPlan, worker_pool: WorkerPool
    ) -> None:
        super().__init__(name=f"trial {number}", daemon=True)
        self.config, self._plan, self._worker_pool = config, plan, worker_pool
        self.validations: queue.Queue[Row | None] = queue.Queue()
        """Rows with validation scores; None: the run has ended."""
        self.error = ""
        self._reporter = TrialReporter(plan.mailbox, number, plan.metric, self.validations)
        self.stopped = False
        """Set, it asks the run to save a checkpoint and end."""

    def run(self) -> None:
        began = time.monotonic()
        jobs_log = logging.getLogger("jobs")
        jobs_log.addHandler(self._reporter)
        self._reporter.send(TrialBegun(self.config.train.run_dir))
        summary = None
        try:
            summary = self._train()
        except Exception as error:  # noqa: BLE001
            # Whatever fails, fails this trial alone.
            self.error = hide_credentials(str(error)) or type(error).__name__
            self._worker_pool.drop_mailbox()
            self._keep_traceback()
        finally:
            jobs_log.removeHandler(self._reporter)
            ended = TrialEnded(summary, self.error, time.monotonic() - began)
            self.validations.put(None)
            # The actor waits for the end of this thread, so the sweep has this before its result.
            ray.get(self._reporter.send(ended))

    def _keep_traceback(self) -> None:
        """The trial's record has the message alone."""
        run_folder = RunFolder(self.config.train.run_dir)
        run_folder.local.mkdir(parents=True, exist_ok=True)
        (run_folder.local / "error.txt").write_text(hide_credentials(traceback.format_exc()))
        run_folder.publish("error.txt")

    def _train(self) -> Any:
        config = self.config
        check(config)
        run_folder = RunFolder(config.train.run_dir)
        sources = open_sources(config.data, config.train.seed, config.train.global_batch_size)
        keep_config(run_folder, config)
        for row in journal.read_run(run_folder):
            # Validations before an interruption count.
            self._reporter.add_validation(row)
        reporter: Any = self._reporter
        # Kept with the run: the sweep's driver reads the pictures in its folder.
        self._driver = make_driver(
            config,
            sources,
            self._worker_pool.mailbox(),
            lambda: reporter,
            reporter,
            self._plan.own_ray,
            partial(TrialCapacity, self._plan.concurrent, self._worker_pool),
            self._worker_pool.trainer,
            self._stop_requested,
        )
        return self._driver.drive()

    def _stop_requested(self) -> bool:
        """Whether Ray Tune or the sweep wants the run to stop."""
        question = self._plan.mailbox.stop_requested
        return self.stopped or bool(ray.get(question.remote(self._reporter.number)))


class TrialCapacity(ClusterCapacity):
    """The capacity for one of several trials that share a cluster."""

    def __init__(self, trials: int, worker_pool: WorkerPool, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._trials, self._worker_pool = trials, worker_pool

    def _startable_workers(self) -> int:
        # The workers hold their GPUs from one trial to the next.
        return min(self.fitting_workers(), self._workers_that_fit_now() + self._worker_pool.size())

    def _max_workers(self) -> int:
        most = super()._max_workers()
        if not self._use_gpu():
            return most
        return max(self._min_workers(), min(most, self.fitting_workers() // self._trials))

    def wait_for_allocation(self, cancelled: Any) -> Allocation | None:
        allocation = super().wait_for_allocation(cancelled)
        if allocation is None or self._trials == 1:
            return allocation
        least = self._decode_cpus
        cpus = (allocation.cpus_per_worker + allocation.decode_cpus_per_worker) / self._trials
        own = max(0.01, min(1.0, math.floor(100 * (cpus - least)) / 100))
        return dataclasses.replace(
            allocation, cpus_per_worker=own, decode_cpus_per_worker=max(least, cpus - own)
        )
