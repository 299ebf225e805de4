"""A sweep, as its YAML file says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from jobs.cli.config import Config, read_cluster_sections, read_defaults
from jobs.cli.old_keys import complete_old_run
from jobs.cli.own_config import as_defaults
from jobs.cli.paths import absolute
from jobs.cli.yaml_file import Lines, Place, read
from jobs.sweep.space import (
    Domain,
    Settings,
    check_swept,
    frozen,
    nearest,
    parse_domain,
    resolve,
    with_settings,
)
from taehv.credentials import in_all_texts, without_credentials
from taehv.training.state import to_yaml

SCORES = (
    *("psnr", "psnr_mean", "ssim", "mse", "detail", "temporal", "sharpness"),
    *("encode_seconds", "decode_seconds"),
)
METRICS = tuple(f"{prefix}/{score}" for prefix in ("val_ema", "val") for score in SCORES)


@dataclass(frozen=True)
class Search:
    algorithm: Literal["grid", "random", "tpe"] = "tpe"
    """grid: every combination of choices. random, tpe: Optuna's samplers."""
    trials: int = 16
    """Configurations that are tried; a grid has as many as it has."""
    seed: int = 0
    """Of the sampler."""
    startup_trials: int = 8
    """Random ones, before TPE begins to learn from them."""


@dataclass(frozen=True)
class Scheduler:
    name: Literal["none", "asha", "median"] = "none"
    """Which trials are stopped early. asha: those outside the best part at each rung. median:
    those below the median of the others' running means."""
    grace_steps: int = 0
    """Steps that every trial is given. 0: up to its second validation."""
    reduction_factor: float = 3.0
    """asha: one in so many goes on past a rung, and rungs lie so many times apart."""
    min_trials: int = 3
    """median: with fewer others none is stopped."""


@dataclass(frozen=True)
class Budget:
    steps: int = 0
    """Training steps over all trials, after which no more are made; 0: no limit. A trial's own
    length is `settings.train.max_steps`."""
    hours: float = 0.0
    """Time after which the sweep stops; 0: no limit."""


@dataclass(frozen=True)
class Sweep:
    """Everything that a sweep's YAML says."""

    name: str = ""
    """Of the sweep; empty: of the file."""
    config: str = ""
    """A YAML of `jobs/train.py --config`, beneath `settings`; its path starts at this file."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Config keys, section by section, that all trials share."""
    space: dict[str, Any] = field(default_factory=dict)
    """Domains by dotted config keys."""
    rows: dict[str, Any] = field(default_factory=dict)
    """Instead of a space: named settings, each a row of the closing table."""
    search: Search = field(default_factory=Search)
    scheduler: Scheduler = field(default_factory=Scheduler)
    metric: str = "val_ema/psnr"
    """Score on the held-out clips by which trials are compared."""
    direction: Literal["max", "min"] = "max"
    seeds: tuple[int, ...] = (0,)
    """Values of train.seed. The clips that are held out stay the same."""
    confirm: int = 0
    """After a search with the first seed: so many of the best are run with the other seeds too."""
    concurrent: int = 1
    """Trials at a time. Each has the workers of `settings.cluster`."""
    budget: Budget = field(default_factory=Budget)
    retries: int = 1
    """Times that a trial which fails goes on from its last checkpoint."""
    reference_vae: bool = False
    """Score the teacher itself on the same clips, as a row of its own."""
    lpips: str = ""
    """Weights of LPIPS, a state dict of `lpips.LPIPS(net="alex")`: the report then has it too."""


@dataclass(frozen=True)
class Plan:
    """A sweep that has been checked, with the configuration beneath its trials."""

    sweep: Sweep
    base: Config
    space: dict[str, Domain]
    rows: dict[str, Settings]

    def resolve(self, drawn: Mapping[str, Any]) -> Settings:
        """Settings of a trial from drawn values; see `space.resolve`."""
        return resolve(drawn, self.space, self.base)

    def points(self) -> list[Settings] | None:
        """All values of a grid or of the rows, every seed; None where they are searched for."""
        if self.rows:
            chosen = list(self.rows.values())
        elif self.sweep.search.algorithm == "grid":
            combinations = product(*(domain.choices for domain in self.space.values()))
            chosen = [dict(zip(self.space, values, strict=True)) for values in combinations]
        else:
            return None
        return [point | {"train.seed": seed} for seed in self.sweep.seeds for point in chosen]


def read_sweep(path: Path, begun: bool = False) -> tuple[Sweep, Config, Lines]:
    """The sweep of a YAML file, and the configuration beneath its trials.

    begun: the file is the one that a sweep keeps in its folder (`as_begun`), so that the cluster of
    today goes before the one of then, as for a run that goes on.

    Raises ConfigError with the line of what is wrong.
    """
    content, lines = read(path)
    _refuse_unknown_keys(content, Sweep, lines, ())
    for section, kind in (("search", Search), ("scheduler", Scheduler), ("budget", Budget)):
        value = content.get(section, {})
        if not isinstance(value, dict):
            raise lines.error((section,), f"{section} is a section, but holds {value!r}")
        _refuse_unknown_keys(value, kind, lines, (section,))
    try:
        sweep = TypeAdapter(Sweep).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = tuple(first["loc"])
        named = ".".join(str(part) for part in place)
        raise lines.error(place, f"{named}: {first['msg']}, not {first['input']!r}") from error
    sweep = dataclasses.replace(sweep, name=sweep.name or path.stem)
    _check_numbers(sweep, lines)
    if begun:
        return sweep, _base_of_begun(sweep, lines), lines
    return sweep, _base(sweep, path, lines), lines


def as_begun(plan: Plan) -> str:
    """The sweep as YAML, with all that its file and its command line said: what `read_sweep` reads
    when it goes on. It has no credentials."""
    base = plan.base
    train = dataclasses.replace(base.train, run_dir="", resume="")
    tracking = dataclasses.replace(base.tracking, uri=without_credentials(base.tracking.uri))
    base = dataclasses.replace(base, train=train, tracking=tracking)
    content = dataclasses.asdict(plan.sweep) | {
        "config": "",
        "settings": yaml.safe_load(to_yaml(base)),
        "seeds": list(plan.sweep.seeds),
        "lpips": absolute(plan.sweep.lpips),
    }
    return yaml.safe_dump(content, sort_keys=False)


def make_plan(sweep: Sweep, base: Config, lines: Lines) -> Plan:
    """Check what is to be tried, each end of each range, on the configuration `base`.

    Raises ConfigError with the line of what is wrong.
    """
    if base.data.split_seed < 0:
        held = dataclasses.replace(base.data, split_seed=base.train.seed)
        base = dataclasses.replace(base, data=held)
    space: dict[str, Domain] = {}
    for key, value in sweep.space.items():
        with _with_line(lines, ("space", key), f"{key}: "):
            check_swept(key)
            space[key] = parse_domain(value)
            if space[key].ratio_to:
                check_swept(space[key].ratio_to)
    for key, domain in space.items():
        if domain.ratio_to in space and space[domain.ratio_to].ratio_to:
            raise lines.error(("space", key), f"{key}: {domain.ratio_to} is a ratio itself")
        for value in domain.ends():
            _try(base, resolve({key: value}, space, base), lines, ("space", key))
    rows: dict[str, Settings] = {}
    for label, row in sweep.rows.items():
        if not isinstance(row, dict):
            raise lines.error(("rows", label), f"{label} holds {row!r} instead of config keys")
        for key in row:
            with _with_line(lines, ("rows", label, key)):
                check_swept(key)
        rows[str(label)] = {key: frozen(value) for key, value in row.items()}
        _try(base, rows[str(label)], lines, ("rows", label))
    plan = Plan(sweep, base, space, rows)
    _check_search(plan, lines)
    return plan


def _base(sweep: Sweep, path: Path, lines: Lines) -> Config:
    if sweep.config:
        with _with_line(lines, ("config",)):
            base = read_defaults(path.parent / sweep.config)
    else:
        base = read_defaults(None)
    if base.train.resume == "latest":
        # A cluster's default, which every trial has anyway.
        base = dataclasses.replace(base, train=dataclasses.replace(base.train, resume=""))
    for section, values in sweep.settings.items():
        if not isinstance(values, dict):
            raise lines.error(("settings", section), f"settings.{section} is no section of keys")
        for key, value in values.items():
            with _with_line(lines, ("settings", section, key)):
                base = with_settings(base, {f"{section}.{key}": value})
    return base


def _base_of_begun(sweep: Sweep, lines: Lines) -> Config:
    stored = {section: dict(keys) for section, keys in sweep.settings.items()}
    complete_old_run(stored)
    settings = as_defaults(stored, read_cluster_sections())
    values = {
        f"{section}.{key}": v for section, keys in settings.items() for key, v in keys.items()
    }
    with _with_line(lines, ("settings",)):
        base = with_settings(read_defaults(None), values)
    return dataclasses.replace(base, train=dataclasses.replace(base.train, resume=""))


def _try(base: Config, settings: Settings, lines: Lines, place: Place) -> None:
    with _with_line(lines, place, f"{place[-1]}: "):
        if fault := with_settings(base, settings).contradiction():
            raise ValueError(fault)
    if in_all_texts(without_credentials, dict(settings)) != dict(settings):
        raise lines.error(
            place,
            f"{place[-1]}: a value holds a password, and what a trial tries is written down: give "
            "credentials by the environment (AWS_*), and the address without them",
        )


def _check_numbers(sweep: Sweep, lines: Lines) -> None:
    least = {
        "search.trials": 1,
        "search.startup_trials": 1,
        "search.seed": 0,
        "scheduler.grace_steps": 0,
        "scheduler.reduction_factor": 1.01,
        "scheduler.min_trials": 1,
        "budget.steps": 0,
        "budget.hours": 0,
        "confirm": 0,
        "concurrent": 1,
        "retries": 0,
    }
    for name, lowest in least.items():
        value = attrgetter(name)(sweep)
        if value < lowest:
            message = f"{name} is {value}: it must be at least {lowest:g}"
            raise lines.error(tuple(name.split(".")), message)
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds) or min(sweep.seeds) < 0:
        raise lines.error(("seeds",), "seeds: different whole numbers from 0, at least one")
    if sweep.metric not in METRICS:
        hint = f"there is no {sweep.metric}; {nearest(sweep.metric, METRICS)}"
        raise lines.error(
            ("metric",),
            f"metric is {sweep.metric}: trials are compared by a score on held-out clips, which no "
            f"weight of a loss enters ({hint})",
        )


def _check_search(plan: Plan, lines: Lines) -> None:
    sweep = plan.sweep
    if bool(plan.space) == bool(plan.rows):
        raise lines.error((), "a sweep has either a `space` or `rows`")
    grid = plan.points() is not None
    if sweep.search.algorithm == "grid":
        for key, domain in plan.space.items():
            if not domain.choices:
                raise lines.error(("space", key), f"{key}: a grid needs a list of choices")
    if grid and sweep.confirm:
        raise lines.error(("confirm",), "confirm: a grid and rows are run with every seed anyway")
    if not grid and len(sweep.seeds) > 1 and not sweep.confirm:
        raise lines.error(
            ("seeds",),
            "seeds: a search has the first one; `confirm: N` runs its best N with the others",
        )
    if sweep.confirm and len(sweep.seeds) < 2:
        raise lines.error(("confirm",), "confirm needs `seeds` with more than one seed")
    if sweep.reference_vae and not plan.base.teacher.path:
        raise lines.error(
            ("reference_vae",),
            "this sweep compares with the reference VAE, whose weights do not come with this "
            "project: give --teacher.path a folder made by save_pretrained, such as a download "
            "of CogVideoX-2b with its vae/ folder",
        )


@contextmanager
def _with_line(lines: Lines, place: Place, prefix: str = "") -> Iterator[None]:
    """A ValueError becomes a ConfigError that names the line of `place`."""
    try:
        yield
    except ValueError as error:
        raise lines.error(place, f"{prefix}{error}") from error


def _refuse_unknown_keys(keys: Iterable[str], kind: Any, lines: Lines, section: Place) -> None:
    known = [field.name for field in dataclasses.fields(kind)]
    for key in keys:
        if key not in known:
            raise lines.error((*section, key), f"there is no {key}; {nearest(key, known)}")
