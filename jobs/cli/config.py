"""The configuration of a job: defaults, beneath the cluster's file, beneath that of the run that is
gone on with, beneath a YAML file, beneath the command line."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import tyro
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_pipeline.config import DataConfig
from jobs.cli.console import take_option
from jobs.cli.errors import ConfigError
from jobs.cli.old_keys import complete_old_run, translate_old_keys
from jobs.cli.own_config import FILE, Sections, as_defaults, run_to_resume, storage_or_environments
from jobs.cli.yaml_file import load
from jobs.tracking.config import TrackingConfig
from taehv.credentials import in_all_texts, without_credentials
from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder
from taehv.training.config import TrainingConfig

log = logging.getLogger(__name__)


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
            re.fullmatch(r"\d+(-\d+)?", self.workers) and 1 <= self.min_workers <= self.max_workers
        ):
            raise ValueError(
                f"cluster.workers is {self.workers}: give a number from 1, or a range such as 2-8"
            )
        key, equals, value = self.train_nodes.partition("=")
        if self.train_nodes and not (key and equals and value):
            raise ValueError(f"cluster.train_nodes is {self.train_nodes}: give it as KEY=VALUE")

    @property
    def min_workers(self) -> int:
        """0: not said."""
        return int(self.workers.split("-")[0] or 0)

    @property
    def max_workers(self) -> int:
        """0: not said."""
        return int(self.workers.split("-")[-1] or 0)


@dataclass(frozen=True)
class Config(TrainingConfig):
    """All options of a job, section by section."""

    data: DataConfig = field(default_factory=DataConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def of_stage(self, number: int) -> Self:
        """What this stage of the run has, the size of its clips included."""
        config = super().of_stage(number)
        if not self.train.stages:
            return config
        clip = self.train.stages[number].clip_size
        return dataclasses.replace(config, data=dataclasses.replace(config.data, **clip))

    def largest_stage(self) -> Self:
        """What the stage with the longest clips has, and of several such that with the largest."""
        return max(
            self.each_stage(), key=lambda stage: (stage.data.num_frames, stage.data.clip_bytes)
        )


def parse(arguments: Sequence[str], description: str, ask_run: bool = True) -> Config:
    """The configuration that a command line asks for.

    Args:
        arguments: the command line, with or without --config.
        description: what --help says first.
        ask_run: where it goes on with a run (`train.resume`), that run's own config.yaml lies
            beneath it.

    Raises:
        ConfigError: naming the key or the file.
        OSError: where the store with the run's folder refuses.
        SystemExit: with 2 for an option that does not exist (tyro names the nearest), with 0
            after --help.
    """
    file, overrides = take_option(arguments, "--config")
    if file == "":
        raise ConfigError("--config needs the path of a YAML file")
    defaults = read_defaults(Path(file) if file else None, overrides if ask_run else None)
    try:
        return tyro.cli(Config, args=overrides, default=defaults, description=description)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def read_defaults(file: Path | None, arguments: Sequence[str] | None = None) -> Config:
    """What a command line goes before: a YAML file of sections; beneath it the config.yaml of the
    run that is gone on with, if one is; and beneath that what the cluster that this job runs on
    tells its nodes (TAEHV_CONFIG, TAEHV_STORAGE).

    Args:
        file: the YAML file.
        arguments: the rest of the command line; None: of a job that never goes on with a run.
    """
    cluster = read_cluster_sections()
    layers = [(f"--config {os.environ['TAEHV_CONFIG']}", cluster)] if cluster else []
    files = [(f"--config {file}", _sections(file))] if file else []
    run = own = None
    if arguments is not None:
        run = run_to_resume(arguments, _merged([s for _, s in layers + files]))
    if run and (own := _read_own(run)):
        layers.append((run.address_of(FILE), as_defaults(own[0], cluster)))
    elif run and checkpoint.names(run):
        log.warning(
            "%s is not there: what this run had is not known, so what is not typed has its default",
            run.address_of(FILE),
        )
    layers += files
    config = Config()
    for count, (source, _) in enumerate(layers, start=1):
        config = _validate(_merged([sections for _, sections in layers[:count]]), source)
    storage = storage_or_environments(config.cluster.storage)
    return dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, storage=storage))


def read_yaml(*paths: Path) -> Config:
    """The configuration in YAML files of sections, of which a later one goes before an earlier one;
    what they leave out has its default."""
    return _validate(_merged([_sections(path) for path in paths]), f"--config {paths[-1]}")


def read_run_config(run: RunFolder) -> Config | None:
    """The configuration in a run's config.yaml; None where it has none.

    Raises:
        ConfigError: naming the file and the key, and what to do.
        OSError: where the store refuses.
    """
    own = _read_own(run)
    return own[1] if own else None


def _read_own(run: RunFolder) -> tuple[Sections, Config] | None:
    """What a run's config.yaml holds, and the configuration that it is by itself."""
    if not run.exists(FILE):
        return None
    source = run.address_of(FILE)
    try:
        own = _sections(run.retrieve(FILE), source)
        complete_old_run(own)
        config = _validate(own, source)
        if not config.data.annotations:
            # As of a file that was not written to its end; the default is other videos.
            raise ConfigError(f"{source} does not say data.annotations")
        return own, config
    except ConfigError as error:
        raise ConfigError(
            f"{error}. It is the file of the run that is to go on, changed or written by another "
            "version of this program: correct it, or move the file away and type all that the run "
            "had"
        ) from error


def _merged(layers: Sequence[Sections]) -> Sections:
    """The sections of several files, of which a later one goes before an earlier one, key by
    key."""
    merged: Sections = {}
    for sections in layers:
        for section, values in sections.items():
            merged[section] = merged.get(section, {}) | values
    return merged


def load_yaml(source: str, path: Path) -> Any:
    """What a YAML file holds; None where it is empty.

    Args:
        source: what messages call it.
        path: the file.

    Raises:
        ConfigError: where it cannot be read, is no YAML, or names a key twice.
    """
    try:
        return load(source, path)[0]
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error


def _sections(path: Path, source: str = "") -> Sections:
    source = source or f"--config {path}"
    content = load_yaml(source, path)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: expected sections such as `data:`, `train:`")
    translate_old_keys(content, source)
    _refuse_unknown_keys(content, Config, source, "")
    return content


def _validate(content: Sections, source: str) -> Config:
    try:
        return TypeAdapter(Config).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{source}, {key or 'a section'}: {first['msg']}") from error


def read_cluster_sections() -> Sections:
    """The defaults of the cluster that this job runs on, in the file that TAEHV_CONFIG names there;
    --config and the command line go before them."""
    file = os.environ.get("TAEHV_CONFIG", "")
    return _sections(Path(file)) if file else {}


def flatten(config: Config) -> dict[str, Any]:
    """Dotted keys, as they are typed and tracked: `train.max_steps` and so on. To be shown: no
    address among the values has its credentials."""
    return {
        f"{section}.{key}": in_all_texts(without_credentials, value)
        for section, values in dataclasses.asdict(config).items()
        for key, value in values.items()
    }


def _refuse_unknown_keys(content: Mapping[Any, Any], kind: Any, source: str, above: str) -> None:
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {above}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{source}: there is no key {above}{key}; {hint}")
        section: Any = known[key].default_factory
        if isinstance(section, type) and dataclasses.is_dataclass(section):
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: {key} is a section, but holds {value!r}")
            _refuse_unknown_keys(value, section, source, f"{above}{key}.")
