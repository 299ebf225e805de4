"""Optuna as Ray Tune's searcher, and Ray Tune's schedulers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from jobs.sweep.definition import Plan
from jobs.sweep.space import Settings

RegisterTrial = Callable[[Settings], dict[str, Any]]
"""Makes a trial of drawn values, and gives the trial's configuration for Ray Tune."""


class Searcher(OptunaSearch):  # type: ignore[misc]
    """OptunaSearch that calls `register` with every suggestion."""

    def __init__(self, register: RegisterTrial, **options: Any) -> None:
        super().__init__(**options)
        self._register = register

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        drawn = super().suggest(trial_id)
        return None if drawn is None else self._register(drawn)

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: a sweep goes on from the records of its trials."""


def make_searcher(plan: Plan, known: Sequence[Settings], register: RegisterTrial) -> Any:
    """Suggests values by Optuna; first `known`, those of an earlier session's trials, from which
    the sampler learns."""
    search = plan.sweep.search
    sampler: BaseSampler = RandomSampler(search.seed)
    if search.algorithm != "random":
        sampler = TPESampler(
            seed=search.seed,
            n_startup_trials=search.startup_trials,
            multivariate=True,
            constant_liar=True,
        )
    space = {key: domain.distribution() for key, domain in plan.space.items()}
    return _searcher(plan, space, known, sampler, register)


def list_searcher(plan: Plan, points: Sequence[Settings], register: RegisterTrial) -> Any:
    """Suggests these points in their order, and no others."""
    index = {"point": CategoricalDistribution(tuple(range(len(points))))}
    numbers = [{"point": number} for number in range(len(points))]

    def register_point(drawn: Mapping[str, Any]) -> dict[str, Any]:
        return register(points[drawn["point"]])

    return _searcher(plan, index, numbers, RandomSampler(0), register_point)


def _searcher(
    plan: Plan,
    space: Mapping[str, BaseDistribution],
    first: Sequence[Settings],
    sampler: BaseSampler,
    register: RegisterTrial,
) -> Any:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searcher = Searcher(
        register,
        space=dict(space),
        metric=plan.sweep.metric,
        mode=plan.sweep.direction,
        points_to_evaluate=[dict(point) for point in first],
        sampler=sampler,
    )
    return ConcurrencyLimiter(searcher, max_concurrent=plan.sweep.concurrent)


def make_scheduler(plan: Plan) -> TrialScheduler:
    """Ray Tune's, by the name in the sweep's YAML."""
    sweep = plan.sweep
    train = plan.base.train
    grace = sweep.scheduler.grace_steps or min(train.validation_every, train.max_steps)
    common = {"time_attr": "step", "metric": sweep.metric, "mode": sweep.direction}
    match sweep.scheduler.name:
        case "asha":
            return AsyncHyperBandScheduler(
                **common,
                max_t=train.max_steps,
                grace_period=grace,
                reduction_factor=sweep.scheduler.reduction_factor,
            )
        case "median":
            fewest = sweep.scheduler.min_trials
            return MedianStoppingRule(**common, grace_period=grace, min_samples_required=fewest)
        case _:
            return FIFOScheduler()
