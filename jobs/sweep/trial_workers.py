"""Training workers that run one trial after another.

To start a worker, its Ray Train controller and their imports takes longer than many a trial of a
sweep. So one Ray Train run holds the workers of a trial's actor, and they run `train_worker`, the
function of jobs/train.py, once for each trial. A trial that fails ends its workers; the next one
starts new ones.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import ray
from ray.train import TrainingFailedError

from jobs.cli.config import ClusterConfig
from jobs.cluster.capacity import Allocation
from jobs.training.driver import FitThread
from jobs.training.messages import open_mailbox
from jobs.training.trainer import make_trainer
from jobs.training.worker import train_worker

POLL_SECONDS = 0.2


@ray.remote(num_cpus=0)
class _Dispatcher:
    """Gives every worker of a pool the settings of the next trial."""

    def __init__(self) -> None:
        self._trial = 0
        self._settings: Any = None
        self._closed = False
        self._done: Counter[int] = Counter()

    def assign(self, settings: dict[str, Any]) -> int:
        """Gives the trial's number here."""
        self._trial += 1
        self._settings = settings
        return self._trial

    def close(self) -> None:
        self._closed = True

    def next_trial(self, last: int) -> tuple[int, Any]:
        """The trial after `last` with its settings; 0: there is none yet; -1: the pool closes."""
        if self._closed:
            return -1, None
        return (self._trial, self._settings) if self._trial > last else (0, None)

    def report_done(self, trial: int) -> None:
        """To be called by each worker."""
        self._done[trial] += 1

    def workers_done(self, trial: int) -> int:
        return self._done[trial]


def _run_trials(settings: dict[str, Any]) -> None:
    """What each worker of a pool runs."""
    dispatcher, last = settings["dispatcher"], 0
    while True:
        trial, trial_settings = ray.get(dispatcher.next_trial.remote(last))
        if trial < 0:
            return
        if not trial:
            time.sleep(POLL_SECONDS)
            continue
        last = trial
        train_worker(trial_settings)
        # An answer shows that all messages have arrived; the next trial has the same mailbox.
        ray.get(trial_settings["mailbox"].has_failed.remote())
        del trial_settings
        ray.get(dispatcher.report_done.remote(trial))


class WorkerPool:
    """The training workers of one trial's actor."""

    def __init__(self, folder: str, config: ClusterConfig, own_ray: bool) -> None:
        """folder: for Ray's own record of them. own_ray: Ray runs on this machine alone."""
        self._folder, self._config, self._own_ray = folder, config, own_ray
        self._fit: FitThread | None = None
        self._allocation: Allocation | None = None
        self._dispatcher: Any = None
        self._mailbox: Any = None

    def size(self) -> int:
        """How many workers are alive, whether a trial runs or not."""
        alive = self._fit is not None and self._fit.is_alive()
        return self._allocation.workers if alive and self._allocation else 0

    def mailbox(self) -> Any:
        """An empty mailbox for a run."""
        if self._mailbox is None:
            self._mailbox = open_mailbox()
        else:
            ray.get(self._mailbox.clear.remote())
        return self._mailbox

    def drop_mailbox(self) -> None:
        """After a run that failed, whose workers may still send messages."""
        self._mailbox = None

    def trainer(self, settings: dict[str, Any], allocation: Allocation) -> Any:
        """One attempt at a run by these workers; it has `fit` as a TorchTrainer has."""
        return SimpleNamespace(fit=partial(self.run_trial, settings, allocation))

    def run_trial(self, settings: dict[str, Any], allocation: Allocation) -> None:
        """Have the workers run `train_worker(settings)`, and wait for its end.

        Raises TrainingFailedError where a worker raised something, or died.
        """
        if self._fit is None or not self._fit.is_alive() or allocation != self._allocation:
            self.close()
            self._fit = self._start(allocation)
        trial = ray.get(self._dispatcher.assign.remote(settings))
        while ray.get(self._dispatcher.workers_done.remote(trial)) < allocation.workers:
            if not self._fit.is_alive():
                error = self._fit.error
                self._fit = None
                raise error or TrainingFailedError("the workers ended without an error message")
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End the workers, and wait until their resources are free."""
        if self._fit is not None and self._fit.is_alive():
            self._dispatcher.close.remote()
            self._fit.join()
        self._fit = None

    def _start(self, allocation: Allocation) -> FitThread:
        self._allocation = allocation
        self._dispatcher = _Dispatcher.remote()  # type: ignore[attr-defined]
        settings = {"dispatcher": self._dispatcher, "run_dir": self._folder}
        trainer = make_trainer(_run_trials, self._config, self._own_ray, settings, allocation)
        fit = FitThread(trainer)
        fit.start()
        return fit
