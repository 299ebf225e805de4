"""The sweep that a command line asks for, and its definition in the sweep's folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import tyro

from jobs.cli.config import Config, flatten, read_defaults
from jobs.cli.console import take_option
from jobs.cli.errors import ConfigError
from jobs.cli.old_keys import LACKING
from jobs.cli.paths import run_address
from jobs.cli.places import with_places
from jobs.sweep.definition import Plan, Sweep, as_begun, make_plan, read_sweep
from taehv.atomic import write_atomically
from taehv.credentials import in_all_texts, without_credentials
from taehv.run.run_folder import RunFolder

BEGUN = "sweep.yaml"
"""In a sweep's folder: the definition with which it was begun, and from which it goes on."""


def parse(arguments: Sequence[str], description: str = "") -> tuple[Plan, RunFolder]:
    """The sweep that a command line asks for, checked, and its folder.

    Raises ConfigError naming the line of the YAML, or the key; SystemExit with 2 for an option that
    does not exist, with 0 after --help.
    """
    sweep_dir, rest = take_option(arguments, "--sweep-dir")
    if sweep_dir == "":
        raise ConfigError("--sweep-dir needs a value")
    if rest and rest[0] in ("-h", "--help"):
        tyro.cli(Config, args=["--help"], description=description)
    if rest and not rest[0].startswith("-"):
        sweep, base, lines = read_sweep(Path(rest.pop(0)))
    elif sweep_dir:
        begun = RunFolder(run_address(sweep_dir, read_defaults(None).cluster.storage))
        if not begun.exists(BEGUN):
            raise ConfigError(
                f"{begun.address_of(BEGUN)} is not there: to begin a sweep, or to go on with one "
                "of an earlier version, give its file as the first argument"
            )
        sweep, base, lines = read_sweep(begun.retrieve(BEGUN), begun=True)
        sweep_dir = begun.address
    else:
        raise ConfigError(
            "the first argument is a sweep, such as tune_configs/smoke.yaml, or --sweep-dir with "
            "the folder of one that is to go on"
        )
    before = flatten(base)
    try:
        base = tyro.cli(Config, args=rest, default=base, description=description)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    plan = make_plan(sweep, base, lines)
    for key in {*plan.space, *(key for row in plan.rows.values() for key in row)}:
        if flatten(base)[key] != before[key]:
            raise ConfigError(f"{key} is what this sweep tries: it cannot be an option as well")
    if base.train.run_dir or base.train.resume:
        raise ConfigError("--train.run-dir and --train.resume are each trial's: give --sweep-dir")
    if base.train.resume_changed:
        raise ConfigError("--train.resume-changed: a sweep that goes on stays the same")
    sweep_dir = sweep_dir or f"runs/{sweep.name}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    # The folder's place follows the same rules as a run's.
    train = dataclasses.replace(base.train, run_dir=sweep_dir)
    placed = with_places(dataclasses.replace(plan.base, train=train))
    folder = RunFolder(placed.train.run_dir)
    tracking = placed.tracking
    if not (tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        # Beside the sweep's folder, as for a run, rather than beside each trial's.
        store = Path(folder.address).parent / "mlflow.db"
        tracking = dataclasses.replace(tracking, uri=f"sqlite:///{store}")
    base = dataclasses.replace(placed, train=base.train, tracking=tracking)
    return dataclasses.replace(plan, base=base), folder


def resume_options(folder: RunFolder) -> str:
    """The options that go on with a sweep, quoted for a shell."""
    return f"--sweep-dir {shlex.quote(without_credentials(folder.address))}"


def keep_definition(plan: Plan, folder: RunFolder) -> None:
    """Write what the sweep is. Raises ConfigError where the folder holds another one."""
    whole = {"sweep": dataclasses.asdict(plan.sweep), "config": flatten(plan.base)}
    whole = in_all_texts(without_credentials, whole)
    # As it comes back from a file, with lists in place of tuples.
    definition = _unchangeable(json.loads(json.dumps(whole)))
    if folder.exists("sweep.json"):
        before = _unchangeable(json.loads(folder.retrieve("sweep.json").read_text()))
        lacking = _of_earlier_versions()
        changed = [
            f"{part}.{key}"
            for part in definition
            for key in definition[part].keys() | before[part].keys()
            if definition[part].get(key) != before[part].get(key, lacking[part].get(key))
        ]
        if changed:
            raise ConfigError(
                f"{folder} holds another sweep, which differs in {', '.join(sorted(changed))}: "
                "choose another --sweep-dir"
            )
    elif folder.entries("trials") or folder.exists("metrics.jsonl"):
        raise ConfigError(f"{folder} holds something else: choose another --sweep-dir")
    texts = {"sweep.json": json.dumps(definition, indent=1) + "\n", BEGUN: as_begun(plan)}
    for name, text in texts.items():
        write_atomically(folder.local / name, text)
        folder.publish(name)


def _of_earlier_versions() -> dict[str, dict[str, Any]]:
    """What a sweep had of settings that its file does not name, since they came later."""
    then = {f"{section}.{key}": value for (section, key), value in LACKING.items()}
    lacking = {"sweep": dataclasses.asdict(Sweep()), "config": flatten(Config()) | then}
    found: dict[str, dict[str, Any]] = json.loads(json.dumps(lacking))
    return found


def _unchangeable(definition: dict[str, Any]) -> dict[str, Any]:
    """The part of a sweep's definition that may not change from session to session: what it tries,
    but not how much of it, and where."""
    # The settings in the sweep's file are in the configuration, with those of the command line.
    amounts = ("concurrent", "retries", "budget", "lpips", "config", "settings")
    sweep = {key: value for key, value in definition["sweep"].items() if key not in amounts}
    search = {key: value for key, value in sweep["search"].items() if key != "trials"}
    own = ("cluster.", "tracking.", "train.run_dir", "train.resume")
    config = {key: value for key, value in definition["config"].items() if not key.startswith(own)}
    return {"sweep": sweep | {"search": search}, "config": config}
