"""What a sweep tries: settings of any dotted config key, and the domains that they come from."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import TypeAdapter, ValidationError

from jobs.cli.config import Config, flatten

Settings = dict[str, Any]
"""Values by dotted config keys, such as {"loss.encoder": 0.1}."""

HELD = {
    "data.annotations",
    "data.root",
    "data.height",
    "data.width",
    "data.num_frames",
    "data.min_frame_step",
    "data.max_frame_step",
    "data.clips_per_window",
    "data.crops",
    "data.stream",
    "data.deinterlace",
    "data.validation_annotations",
    "data.validation_fraction",
    "data.validation_height",
    "data.validation_width",
    "data.split_by",
    "data.split_seed",
    "train.global_batch_size",
    "train.validation_clips",
}
"""They decide what the held-out clips are, which must be the same for every trial."""

MOST_NAMES = 16
"""An error lists at most so many known names."""

OWN = {"train.run_dir", "train.resume", "train.seed", "train.stages", "tracking.", "cluster."}
"""They are the sweep's own affair."""


@dataclass(frozen=True)
class Domain:
    """Where the values of one key come from."""

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    """Whole numbers alone."""
    ratio_to: str = ""
    """The value is a factor on that of this key."""

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def ends(self) -> tuple[Any, ...]:
        """Values to be tried on the configuration before anything is started."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


def parse_domain(value: Any) -> Domain:
    """A domain from its YAML: a list of choices, or `uniform`, `log`, `int`, `log_int` with two
    ends, or `choices`; each with or without `ratio_to`. Raises ValueError."""
    if isinstance(value, list):
        value = {"choices": value}
    if not isinstance(value, dict):
        raise ValueError(
            f"expected a list of choices or a range such as {{log: [0.01, 1]}}, not {value!r}"
        )
    kinds = {"choices", "uniform", "log", "int", "log_int"}
    unknown = value.keys() - kinds - {"ratio_to"}
    for name in sorted(unknown):
        raise ValueError(f"there is no {name} here; {nearest(name, kinds)}")
    named = value.keys() & kinds
    if len(named) != 1:
        raise ValueError(f"expected one of {', '.join(sorted(kinds))}")
    kind = named.pop()
    ratio_to = str(value.get("ratio_to", ""))
    if kind == "choices":
        return _parse_choices(value[kind], ratio_to)
    return _parse_range(kind, value[kind], ratio_to)


def _parse_choices(choices: Any, ratio_to: str) -> Domain:
    if not isinstance(choices, list) or not choices:
        raise ValueError("expected at least one choice")
    hashable = tuple(frozen(choice) for choice in choices)
    if len(set(hashable)) != len(hashable):
        raise ValueError("a choice stands there twice")
    return Domain(choices=hashable, ratio_to=ratio_to)


def _parse_range(kind: str, ends: Any, ratio_to: str) -> Domain:
    if not isinstance(ends, list) or len(ends) != 2:
        raise ValueError(f"{kind} needs two ends, such as [0.01, 1], not {ends!r}")
    try:
        low, high = (float(end) for end in ends)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{kind} needs two numbers, not {ends!r}") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"a bad range, {low:g} to {high:g}: the first end must be the lower one")
    if "log" in kind and low <= 0:
        raise ValueError(f"a range on a log scale cannot begin at {low:g}: it must be above 0")
    if "int" in kind and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"{kind} needs whole numbers, not {ends!r}")
    return Domain(low=low, high=high, log="log" in kind, whole="int" in kind, ratio_to=ratio_to)


def frozen(value: Any) -> Any:
    """A value of YAML or JSON as the configuration has it: lists are tuples."""
    return tuple(value) if isinstance(value, list) else value


def resolve(drawn: Mapping[str, Any], space: Mapping[str, Domain], base: Config) -> Settings:
    """The settings that drawn values mean: ratios become values."""
    values = flatten(base) | dict(drawn)
    settings = dict(drawn)
    for key, domain in space.items():
        if domain.ratio_to and key in drawn:
            settings[key] = drawn[key] * values[domain.ratio_to]
    return settings


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with these values.

    Raises ValueError naming the key, where there is none such or the value does not fit.
    """
    content = dataclasses.asdict(config)
    for key, value in settings.items():
        check_key(key)
        section, name = key.split(".")
        content[section][name] = value
    try:
        return TypeAdapter(Config).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{key}: {message}" if "." in key else message) from error


def check_key(key: str) -> None:
    """Raises ValueError, naming the nearest key, where the configuration has none such."""
    known = flatten(Config())
    if key not in known:
        raise ValueError(f"there is no config key {key}; {nearest(key, known)}")


def check_swept(key: str) -> None:
    """Raises ValueError for keys that trials cannot differ in."""
    check_key(key)
    if key in HELD:
        raise ValueError(
            f"{key} decides which clips are held out, and all trials are scored on the same ones"
        )
    if any(key.startswith(own) for own in OWN):
        hint = "; give `seeds`" if key == "train.seed" else "; set it under `settings`"
        raise ValueError(f"{key} cannot differ from trial to trial{hint}")


def nearest(name: str, known: Iterable[str]) -> str:
    """What may have been meant by a name that is not known; else names that are."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    more = " ..." if len(names) > MOST_NAMES else ""
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names[:MOST_NAMES])}{more}"
