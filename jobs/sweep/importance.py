"""How much each searched key decides of the score: functional ANOVA, by Optuna (public source:
Hutter, Hoos, Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance", 2014).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from jobs.sweep.definition import Plan
from jobs.sweep.ledger import Ledger
from jobs.sweep.results import groups

FEWEST = 4
"""Configurations, below which nothing is said."""


@dataclass(frozen=True)
class Importance:
    """Of each key, the largest first; they add up to 1."""

    step: int
    """At which the trials are compared: the last one that all of them reached."""
    configurations: int
    by_key: dict[str, float]


def importance(plan: Plan, ledger: Ledger) -> Importance | None:
    """None where there are too few configurations to tell, or all score alike. Those whose score
    is not a number tell nothing here; the ranking names them.

    Trials that were stopped early count too, so all are compared at the last validation that every
    one of them reached.
    """
    curves: list[tuple[dict[str, Any], list[dict[int, float]]]] = []
    for group in groups(ledger):
        scored = [
            {int(row["step"]): row[plan.sweep.metric] for row in rows if plan.sweep.metric in row}
            for record in group.trials
            if record.status in ("finished", "pruned")
            for rows in [ledger.rows(record)]
        ]
        if any(scored):
            curves.append((group.drawn, [curve for curve in scored if curve]))
    if not plan.space or len(curves) < FEWEST:
        return None
    step = min(max(curve) for _, by_seed in curves for curve in by_seed)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize" if plan.sweep.direction == "max" else "minimize"
    )
    space = {key: domain.distribution() for key, domain in plan.space.items()}
    for drawn, by_seed in curves:
        values = [curve[step] for curve in by_seed if step in curve]
        if values and all(map(math.isfinite, values)):
            params, mean = {key: drawn[key] for key in space}, statistics.fmean(values)
            study.add_trial(create_trial(params=params, distributions=space, value=mean))
    scores = [trial.value for trial in study.trials]
    if len(scores) < FEWEST or len(set(scores)) < 2:
        return None
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return Importance(step, len(scores), dict(found))
