"""The rows of metrics of a run, and the health checks over them."""

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
    """Writes metrics.jsonl, on the main worker alone, and calls the hooks with every row and
    finding. Existing rows of steps after `keep_up_to` are dropped."""

    def __init__(self, run: RunFolder, state: TrainState, hooks: Hooks, keep_up_to: int) -> None:
        self._state, self._hooks = state, hooks
        config = state.config
        self.divergence_suspected = False
        """See `Health.divergence_suspected`; the same on all workers."""
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
            stage_start=state.stage_steps.start,
        )
        self._health.restore(journal.read(run.local / journal.NAME))
        if state.rollbacks:
            # The rows before the rollback are dropped, and this row records it.
            self._append({"step": state.step, "train/rollbacks": state.rollbacks})

    def write(self, metrics: dict[str, float]) -> None:
        """Write a row for the step that the state is at. A collective. Raises DivergedError on all
        workers if the row shows that the run has diverged."""
        divergence = ""
        if self._journal is not None:
            row = {"step": self._state.step, **metrics}
            findings = self._health.observe(row)
            self._append(row | {f"health/{f.name}": f.figure for f in findings})
            for finding in findings:
                log.warning("step %d: %s. %s", finding.step, finding.message, finding.advice)
                self._hooks.on_finding(finding.name, finding.message)
                if finding.diverged:
                    divergence = f"step {finding.step}: {finding.message}"
        divergence, self.divergence_suspected = distributed.from_main(
            (divergence, self._journal is not None and self._health.divergence_suspected)
        )
        if divergence and self._stop_if_diverged:
            raise DivergedError(divergence)

    def check_end_of_stage(self) -> None:
        """Raises DivergedError where the next stage would begin from weights that may have
        diverged, and there is a way back."""
        if self.divergence_suspected and self._state.config.train.on_divergence == "rollback":
            raise DivergedError(
                f"step {self._state.step}: the reconstruction loss is far above its lowest level "
                "as a stage ends"
            )

    def publish(self) -> None:
        """Send new rows to the store that holds the run's folder, if any."""
        if self._journal is not None:
            self._journal.publish()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.publish()
            self._journal.close()

    def _append(self, row: Row) -> None:
        assert self._journal is not None
        self._journal.append(row)
        self._hooks.on_row(row)
