"""What a run writes down: rows of metrics, and what its health checks find in them."""

from __future__ import annotations

import logging

from taehv import distributed
from taehv.errors import DivergedError
from taehv.interfaces import Hooks, Row
from taehv.run import journal
from taehv.run.journal import Journal
from taehv.run.run_folder import RunFolder
from taehv.training.health import Health
from taehv.training.state import TrainState

log = logging.getLogger(__name__)


class RunLog:
    """The rows of a run from a state on. The main worker alone writes.

    Args:
        run: where the run's folder is.
        state: where the run stands.
        hooks: told of every row and finding.
        keep_up_to: rows of an earlier life later than this step are dropped.
    """

    def __init__(self, run: RunFolder, state: TrainState, hooks: Hooks, keep_up_to: int) -> None:
        self._state, self._hooks = state, hooks
        config = state.config
        self.in_doubt = False
        """Whether the loss is far above its level: a checkpoint of now may be of no use."""
        self._stop_if_diverged = config.train.on_divergence != "ignore"
        self._journal: Journal | None = None
        if not distributed.is_main():
            return
        self._journal = Journal(run, keep_up_to)
        self._health = Health(
            config.train.log_every,
            gradient_scale=config.loss.gradient_scale,
            warmup_steps=config.optim.warmup_steps,
            filling_gigabytes=(config.seraena.replay_gigabytes if state.adversary else 0.0)
            + (config.teacher.cache_gigabytes if config.teacher.path else 0.0),
        )
        self._health.restore(journal.read(run.local / journal.NAME))
        if state.rollbacks:
            # The rows that led to it are dropped; this one stays.
            self._append({"train/rollbacks": state.rollbacks})

    def write(self, metrics: dict[str, float]) -> None:
        """Write a row for the step that the state is at. A collective.

        Raises:
            DivergedError: on all workers alike, where the row shows that the run has diverged.
        """
        divergence = ""
        if self._journal is not None:
            findings = self._health.observe({"step": self._state.step, **metrics})
            self._append(metrics | {f"health/{f.name}": f.figure for f in findings})
            for finding in findings:
                log.warning("step %d: %s. %s", finding.step, finding.message, finding.advice)
                self._hooks.on_finding(finding.name, finding.message)
                if finding.diverged:
                    divergence = f"step {finding.step}: {finding.message}"
        divergence, self.in_doubt = distributed.from_main(
            (divergence, self._journal is not None and self._health.in_doubt)
        )
        if divergence and self._stop_if_diverged:
            raise DivergedError(divergence)

    def publish(self) -> None:
        """Send the rows to where the run's folder is."""
        if self._journal is not None:
            self._journal.publish()

    def close(self) -> None:
        """The run, or this part of it, is over."""
        if self._journal is not None:
            self._journal.publish()
            self._journal.close()

    def _append(self, metrics: dict[str, float]) -> None:
        assert self._journal is not None
        row: Row = {"step": self._state.step, **metrics}
        self._journal.append(row)
        self._hooks.on_row(row)
