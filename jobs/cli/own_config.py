"""The config.yaml of the run that a command goes on with, as a layer beneath the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.cli.console import take_option
from jobs.cli.paths import checkpoint_address, run_address
from taehv.credentials import without_credentials
from taehv.run import checkpoint
from taehv.run.resume import is_own
from taehv.run.run_folder import RunFolder

FILE = "config.yaml"

Sections = dict[str, dict[str, Any]]
"""What a YAML file of settings holds: keys by section."""

COMMAND = {"train": ("run_dir", "resume", "resume_changed"), "cluster": ("storage",)}
"""They say which run is meant and where it lies: a folder may have been moved or copied, so its
own file is not asked."""

PLACE = {"data": ("decode_nodes", "decode_cpus")}
"""With all of `cluster`: where a run runs. What the cluster of today says of them (TAEHV_CONFIG)
goes before what the run had on its last one; where that says nothing, the run's own holds."""


def run_to_resume(arguments: Sequence[str], beneath: Mapping[str, Any]) -> RunFolder | None:
    """The folder of the run that a command line goes on with; None where it begins one.

    Args:
        arguments: the command line without --config, before it is parsed: with other defaults it
            may be refused for what the run's own would have made right.
        beneath: the sections of the files beneath it.

    Raises:
        OSError: where the store refuses.
    """

    def setting(section: str, key: str) -> str:
        typed, _ = take_option(arguments, f"--{section}.{key}".replace("_", "-"))
        return str(beneath.get(section, {}).get(key) or "") if typed is None else typed

    run_dir, resume = setting("train", "run_dir"), setting("train", "resume")
    if not (run_dir and resume):
        return None
    storage = storage_or_environments(setting("cluster", "storage"))
    run = RunFolder(run_address(run_dir, storage))
    return run if goes_on(run, checkpoint_address(resume, run_dir, storage)) else None


def goes_on(run: RunFolder, resume: str) -> bool:
    """Whether `train.resume` goes on with this run, rather than begin one from another's
    checkpoint. One that has checkpoints itself goes on with them also by the command that began it.

    Args:
        run: the folder of the run.
        resume: "", `latest`, or a checkpoint's address.
    """
    if resume in ("", "latest"):
        return resume == "latest"
    return is_own(run, resume) or bool(checkpoint.names(run))


def as_defaults(own: Sections, cluster: Mapping[str, Any]) -> Sections:
    """What of a run's settings holds for the command that goes on with it.

    Args:
        own: the sections of its config.yaml.
        cluster: the sections of the file of the cluster of today.
    """
    left_out = {section: {*keys} for section, keys in COMMAND.items()}
    left_out["cluster"] |= cluster.get("cluster", {}).keys()
    for section, keys in PLACE.items():
        left_out[section] = {*keys} & cluster.get(section, {}).keys()
    uris = [str(found.get("tracking", {}).get("uri") or "") for found in (own, cluster)]
    own_uri, *known = map(without_credentials, [*uris, os.environ.get("MLFLOW_TRACKING_URI", "")])
    if own_uri and own_uri in known:
        # A file of a run keeps no credentials; there they are.
        left_out["tracking"] = {"uri"}
    return {
        section: {k: v for k, v in values.items() if k not in left_out.get(section, ())}
        for section, values in own.items()
    }


def storage_or_environments(storage: str) -> str:
    """`cluster.storage`, or what the cluster tells its nodes (TAEHV_STORAGE)."""
    return (storage or os.environ.get("TAEHV_STORAGE", "")).rstrip("/")
