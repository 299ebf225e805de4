"""The stages of a sweep: the search, then the best of it with more seeds."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig

from jobs.sweep.definition import Plan
from jobs.sweep.ledger import ENDED, Ledger, Record, Stage
from jobs.sweep.results import found_best
from jobs.sweep.search import RegisterTrial, list_searcher, make_scheduler, make_searcher
from jobs.sweep.session import Session, SweepStopper
from jobs.sweep.space import Settings
from jobs.sweep.trial import Trial, TrialPlan

log = logging.getLogger(__name__)

ON_HEAD_NODE = {"node:__internal_head__": 0.001}
"""Resources of a trial's actor: it runs on the head, which no cloud takes away. Its training
workers have resources of their own."""

# A trial reports its error itself, in one line.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

# Ray Tune's own loggers write a folder for each trial, and its own handler of Ctrl-C leaves
# trials without a checkpoint.
os.environ |= {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}


class Stages:
    """Runs the stages; `session` handles the trials' messages."""

    def __init__(self, plan: Plan, trial_plan: TrialPlan, session: Session) -> None:
        self._plan, self._trial_plan, self._session = plan, trial_plan, session
        self._ledger: Ledger = session.ledger

    def run(self) -> None:
        """Run all stages, or until the session stops."""
        points = self._plan.points()
        if points is None:
            self._search()
        else:
            self._run_listed("search", points)
        if self._plan.sweep.confirm and not self._session.stop_reason:
            self._confirm()

    def _search(self) -> None:
        known = [record for record in self._ledger.of_stage("search") if record.status != "failed"]
        failed = len(self._ledger.of_stage("search")) - len(known)
        missing = self._plan.sweep.search.trials - failed
        if any(record.status not in ENDED for record in known) or len(known) < missing:
            drawn = [record.drawn for record in known]
            searcher = make_searcher(self._plan, drawn, self._register("search", known))
            self._tune(searcher, missing, make_scheduler(self._plan))

    def _confirm(self) -> None:
        best = found_best(self._plan, self._ledger)[: self._plan.sweep.confirm]
        others = self._plan.sweep.seeds[1:]
        points = [group.drawn | {"train.seed": seed} for group in best for seed in others]
        log.info("the best %d configurations are run with %d more seeds", len(best), len(others))
        self._session.progress.trials = len(self._ledger.of_stage("search")) + len(points)
        self._run_listed("confirm", points)

    def _run_listed(self, stage: Stage, points: Sequence[Settings]) -> None:
        """Run the points that have no ended trial. Where a scheduler stops trials early, the ended
        ones are reported again, so that it can compare with them."""
        known = self._ledger.of_stage(stage)
        ended = [record.drawn for record in known if record.status in ENDED]
        if all(point in ended for point in points):
            return
        scheduler = make_scheduler(self._plan) if stage == "search" else None
        compared = self._plan.sweep.scheduler.name != "none" and scheduler is not None
        skipped = ("failed",) if compared else ENDED
        passed = [record for record in known if record.status in skipped]
        missing = [point for point in points if point not in [record.drawn for record in passed]]
        register = self._register(stage, [record for record in known if record not in passed])
        self._tune(list_searcher(self._plan, missing, register), len(missing), scheduler)

    def _tune(self, searcher: Any, trials: int, scheduler: Any) -> None:
        sweep = self._plan.sweep
        with tempfile.TemporaryDirectory(prefix="taehv_tune_") as folder:
            trainable = tune.with_parameters(Trial, plan=self._trial_plan)
            tuner = tune.Tuner(
                tune.with_resources(trainable, tune.PlacementGroupFactory([ON_HEAD_NODE])),
                tune_config=TuneConfig(
                    search_alg=searcher, scheduler=scheduler, num_samples=trials, reuse_actors=True
                ),
                run_config=RunConfig(
                    name=sweep.name,
                    # Nothing of it is needed: a sweep goes on from the records of its trials.
                    storage_path=folder,
                    failure_config=FailureConfig(max_failures=sweep.retries),
                    # Trials save their own, in their run folders.
                    checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                    callbacks=[self._session],
                    stop=SweepStopper(self._session),
                    verbose=0,
                ),
            )
            tuner.fit()
        self._session.handle_messages()

    def _register(self, stage: Stage, earlier: Sequence[Record]) -> RegisterTrial:
        """Gives values that are tried their trial: of `earlier` ones each once, else a new one."""
        known = list(earlier)

        def register(drawn: Settings) -> dict[str, Any]:
            record = next((r for r in known if r.drawn == drawn), None)
            if record is not None:
                known.remove(record)
            else:
                record = self._new_trial(stage, dict(drawn))
            ended = record.status in ENDED
            return {"number": record.number, "settings": record.settings, "ended": ended}

        return register

    def _new_trial(self, stage: Stage, drawn: Settings) -> Record:
        settings = self._plan.resolve(drawn)
        seed = settings.setdefault("train.seed", self._plan.sweep.seeds[0])
        row = {key: value for key, value in drawn.items() if key != "train.seed"}
        labels = [label for label, values in self._plan.rows.items() if values == row]
        return self._ledger.add(stage, drawn, settings, seed, labels[0] if labels else "")
