"""Training workers that stay from one trial to the next.

To start a worker, its Ray Train controller and their imports takes longer than many a trial of a
sweep. So one Ray Train run holds the workers of a slot, and they run `train_worker`, the function
of jobs/train.py, once for each trial that comes. A trial that fails ends its crew; the next one has
a new one.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.train import TrainingFailedError

from jobs.cli.config import ClusterConfig
from jobs.cluster.pool import Shares
from jobs.training.driver import Fit
from jobs.training.messages import open_mailbox
from jobs.training.trainer import make_trainer
from jobs.training.worker import train_worker

POLL_SECONDS = 0.2


@ray.remote(num_cpus=0)
class _Rota:
    """Which trial the workers are to run."""

    def __init__(self) -> None:
        self._turn = 0
        self._settings: Any = None
        self._over = False
        self._done: dict[int, int] = {}

    def give(self, settings: dict[str, Any]) -> int:
        self._turn += 1
        self._settings = settings
        return self._turn

    def dismiss(self) -> None:
        self._over = True

    def next(self, after: int) -> tuple[int, Any]:
        """The turn later than `after` with its settings; 0: there is none yet; -1: it is over."""
        if self._over:
            return -1, None
        return (self._turn, self._settings) if self._turn > after else (0, None)

    def end_turn(self, turn: int) -> None:
        """One worker has ended it."""
        self._done[turn] = self._done.get(turn, 0) + 1

    def done(self, turn: int) -> int:
        return self._done.get(turn, 0)


def _serve(settings: dict[str, Any]) -> None:
    """What each worker of a crew runs."""
    rota, turn = settings["rota"], 0
    while True:
        number, task = ray.get(rota.next.remote(turn))
        if number < 0:
            return
        if not number:
            time.sleep(POLL_SECONDS)
            continue
        turn = number
        train_worker(task)
        # What it has sent has arrived when this is answered; the next run has the same mailbox.
        ray.get(task["mailbox"].has_failed.remote())
        del task
        ray.get(rota.end_turn.remote(turn))


class Crew:
    """The workers of a slot.

    Args:
        folder: where Ray keeps its own record of them.
        config: of the cluster.
        own_ray: whether Ray is this machine's alone.
    """

    def __init__(self, folder: str, config: ClusterConfig, own_ray: bool) -> None:
        self._folder, self._config, self._own_ray = folder, config, own_ray
        self._fit: Fit | None = None
        self._shares: Shares | None = None
        self._rota: Any = None
        self._mailbox: Any = None

    def size(self) -> int:
        """Workers that it has now, with all that they hold."""
        at_work = self._fit is not None and self._fit.is_alive()
        return self._shares.workers if at_work and self._shares else 0

    def mailbox(self) -> Any:
        """An empty mailbox for a run: that of the one before, unless it is forgotten."""
        if self._mailbox is None:
            self._mailbox = open_mailbox()
        else:
            ray.get(self._mailbox.clear.remote())
        return self._mailbox

    def forget_mailbox(self) -> None:
        """After a run that failed, whose workers may still have something to say."""
        self._mailbox = None

    def trainer(self, settings: dict[str, Any], shares: Shares) -> Any:
        """One life of a run by these workers; it has `fit` as a TorchTrainer has."""
        return _Turn(self, settings, shares)

    def work(self, settings: dict[str, Any], shares: Shares) -> None:
        """Have the workers run `train_worker(settings)`, and wait for its end.

        Raises:
            TrainingFailedError: where a worker raised something, or died.
        """
        if self._fit is None or not self._fit.is_alive() or shares != self._shares:
            self.dismiss()
            self._start(shares)
        assert self._fit is not None
        turn = ray.get(self._rota.give.remote(settings))
        while ray.get(self._rota.done.remote(turn)) < shares.workers:
            if not self._fit.is_alive():
                error = self._fit.error
                self._fit = None
                raise error or TrainingFailedError("the workers ended without a word")
            time.sleep(POLL_SECONDS)

    def dismiss(self) -> None:
        """End the workers, and wait until what they held is free."""
        if self._fit is not None and self._fit.is_alive():
            self._rota.dismiss.remote()
            self._fit.join()
        self._fit = None

    def _start(self, shares: Shares) -> None:
        self._rota, self._shares = _Rota.remote(), shares  # type: ignore[attr-defined]
        settings = {"rota": self._rota, "run_dir": self._folder}
        trainer = make_trainer(_serve, settings, shares, self._config, self._own_ray)
        self._fit = Fit(trainer)
        self._fit.start()


class _Turn:
    def __init__(self, crew: Crew, settings: dict[str, Any], shares: Shares) -> None:
        self._crew, self._settings, self._shares = crew, settings, shares

    def fit(self) -> None:
        self._crew.work(self._settings, self._shares)
