"""The configuration of a job: defaults, beneath a YAML file, beneath the command line."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_pipeline.config import DataConfig
from jobs.repeated_keys import repeated_keys
from jobs.tracking import TrackingConfig
from taehv.config import TrainingConfig
from taehv.credentials import in_all_texts, without_credentials


class ConfigError(ValueError):
    """A command line or a config file that cannot be used; the job exits with 2."""


@dataclass(frozen=True)
class ClusterConfig:
    # In YAML, `workers: 2` needs no quotes.
    __pydantic_config__: ClassVar = ConfigDict(coerce_numbers_to_str=True)

    workers: str = ""
    """Training workers: a number, or a range such as 2-8, within which the run grows and shrinks
    with the cluster. Empty: one per GPU that is there, or one where there is no GPU."""
    gpu: Literal["auto", "yes", "no", "pretend"] = "auto"
    """Whether each worker takes a GPU. auto: where there is one at the start; yes: also where
    the autoscaler has yet to bring it; pretend: as yes, but compute on the CPU, to try out a
    cluster whose GPUs are none."""
    train_nodes: str = ""
    """Label of the nodes that may train, as KEY=VALUE, for instance role=train; empty: any."""
    decode_cpus: float = 0.0
    """CPUs that may decode for one training worker, which the autoscaler may have yet to bring.
    0: an equal share of those that are there."""
    storage: str = ""
    """Folder that all nodes share, such as s3://bucket/taehv. Run folders that are not given as
    absolute paths lie there, and so does the synthetic set. Empty: TAEHV_STORAGE."""
    max_failures: int = 3
    """Times that dead workers are started again from the last checkpoint. Nodes that were given
    notice, and changes of the number of workers, do not count."""
    wait_minutes: float = 15.0
    """How long the run waits for room for the fewest workers that it may have."""
    resize_seconds: float = 120.0
    """Least time between two growths, each of which costs a save and a start."""

    def __post_init__(self) -> None:
        for name in ("max_failures", "wait_minutes", "resize_seconds", "decode_cpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"cluster.{name} is {getattr(self, name)}: it cannot be negative")
        if self.workers and not (
            re.fullmatch(r"\d+(-\d+)?", self.workers)
            and 1 <= self.fewest_workers <= self.most_workers
        ):
            raise ValueError(
                f"cluster.workers is {self.workers}: give a number from 1, or a range such as 2-8"
            )
        key, equals, value = self.train_nodes.partition("=")
        if self.train_nodes and not (key and equals and value):
            raise ValueError(f"cluster.train_nodes is {self.train_nodes}: give it as KEY=VALUE")

    @property
    def fewest_workers(self) -> int:
        """0: not said."""
        return int(self.workers.split("-")[0] or 0)

    @property
    def most_workers(self) -> int:
        """0: not said."""
        return int(self.workers.split("-")[-1] or 0)


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Everything a job is told, section by section."""

    data: DataConfig = field(default_factory=DataConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def parse(arguments: Sequence[str], description: str) -> Config:
    """The configuration that a command line asks for.

    Raises:
        ConfigError: naming the key or the file.
        SystemExit: with 2 for an option that does not exist (tyro names the nearest), with 0
            after --help.
    """
    file, overrides = _take_config_file(list(arguments))
    defaults = read_defaults(file)
    try:
        return tyro.cli(Config, args=overrides, default=defaults, description=description)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def read_defaults(file: Path | None) -> Config:
    """What a command line goes before: a YAML file of sections, and beneath it what the cluster
    that this job runs on tells its nodes (TAEHV_CONFIG, TAEHV_STORAGE)."""
    return _with_storage(read_layers(_cluster_file(), file))


def read_yaml(path: Path) -> Config:
    """The configuration in a YAML file of sections; what it leaves out has its default."""
    return _validate(_sections(path), path)


def read_layers(*paths: Path | None) -> Config:
    """The same from several files, of which a later one goes before an earlier one, key by key."""
    merged: dict[str, dict[str, Any]] = {}
    config = Config()
    for path in paths:
        if path is not None:
            for section, values in _sections(path).items():
                merged[section] = merged.get(section, {}) | values
            config = _validate(merged, path)
    return config


def load_yaml(option: str, path: Path) -> Any:
    """What the YAML file holds that an option names; None where it is empty.

    Raises:
        ConfigError: where it cannot be read, is no YAML, or names a key twice.
    """
    try:
        text = path.read_text()
        content = yaml.safe_load(text)
        for key, line in repeated_keys(yaml.compose(text, yaml.SafeLoader)):
            raise ConfigError(f"{option} {path}, line {line}: {key} stands here a second time")
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {path} is not YAML: {error}") from error
    return content


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    content = load_yaml("--config", path)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected sections such as `data:`, `train:`")
    _refuse_unknown_keys(content, Config, str(path), "")
    return content


def _validate(content: dict[str, dict[str, Any]], path: Path) -> Config:
    try:
        return TypeAdapter(Config).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"--config {path}, {key or 'a section'}: {first['msg']}") from error


def _cluster_file() -> Path | None:
    """The defaults of the cluster that this job runs on, which its nodes are told by TAEHV_CONFIG;
    --config and the command line go before them."""
    named = os.environ.get("TAEHV_CONFIG", "")
    return Path(named) if named else None


def _with_storage(config: Config) -> Config:
    storage = config.cluster.storage or os.environ.get("TAEHV_STORAGE", "")
    cluster = dataclasses.replace(config.cluster, storage=storage.rstrip("/"))
    return dataclasses.replace(config, cluster=cluster)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted keys, as they are typed and tracked: `train.max_steps` and so on. To be shown: no
    address among the values has its credentials."""
    return {
        f"{section}.{key}": in_all_texts(without_credentials, value)
        for section, values in dataclasses.asdict(config).items()
        for key, value in values.items()
    }


def _take_config_file(arguments: list[str]) -> tuple[Path | None, list[str]]:
    file: Path | None = None
    rest: list[str] = []
    while arguments:
        argument = arguments.pop(0)
        name, separator, value = argument.partition("=")
        if name != "--config":
            rest.append(argument)
        elif separator:
            file = Path(value)
        elif arguments:
            file = Path(arguments.pop(0))
        else:
            raise ConfigError("--config needs the path of a YAML file")
    return file, rest


def _refuse_unknown_keys(content: Mapping[Any, Any], kind: Any, file: str, above: str) -> None:
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {above}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"--config {file}: there is no key {above}{key}; {hint}")
        section: Any = known[key].default_factory
        if isinstance(section, type) and dataclasses.is_dataclass(section):
            if not isinstance(value, dict):
                raise ConfigError(f"--config {file}: {key} is a section, but holds {value!r}")
            _refuse_unknown_keys(value, section, file, f"{above}{key}.")
