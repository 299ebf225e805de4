"""How the settings that a resumed run had differ from those asked for now: what is logged, what is
refused, and what `train.resume_changed` allows."""

from __future__ import annotations

import dataclasses
import logging
import os
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.synthetic.dataset import command_to_make
from data_pipeline.videos import storage
from jobs.cli.config import Config, flatten, read_run_config
from jobs.cli.errors import ConfigError
from jobs.cli.own_config import COMMAND, FILE, goes_on
from jobs.cli.paths import absolute, is_job_copy
from taehv.atomic import write_atomically
from taehv.errors import TrainingError
from taehv.model.shapes import expected_shapes
from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder
from taehv.training.state import to_yaml

log = logging.getLogger(__name__)

LOCATIONS = (
    "data.annotations",
    "data.root",
    "data.validation_annotations",
    "model.pretrained",
    "teacher.path",
)

SPLIT = (
    "data.annotations",
    "data.root",
    "data.validation_annotations",
    "data.split_by",
    "data.validation_fraction",
)
"""They decide, with the seed of the split, which videos there are and which are held out: with
others the run would be judged on videos that it has trained on."""

DISCRIMINATOR = ("seraena.widths", "seraena.frames_per_group")

STAGES = ("train.stages", "train.max_steps")
"""They decide which stage a step is of: the networks, and which of them are trained."""

_JOB_COPY = "/_ray_pkg_"


def judged_resume(run: RunFolder, config: Config) -> Config:
    """The configuration that the run is to have from now on.

    What differs from the run's config.yaml is logged, one line each. Where the run has yet to write
    a checkpoint and was to begin from another run's, so it will.

    Args:
        run: the folder of the run.
        config: what the command asks for, with absolute paths.

    Raises:
        ConfigError: for what cannot be meant, unless `train.resume_changed` is set, and for what
            no checkpoint of the run can fit; naming each key.
        TrainingError: where the run's list of videos is no longer there.
        OSError: where the store refuses.
    """
    before = read_run_config(run) if goes_on(run, config.train.resume) else None
    if before is None:
        return _with_train(config, resume_changed=False)
    changes = _changes(before, config)
    if checkpoint.names(run):
        # Without one, nothing was learned that another setting could spoil.
        _refuse_misfits(run, before, config, changes)
        if not config.train.resume_changed:
            _refuse_others(run, before, config, changes)
    for key, change in changes.items():
        log.info("%s: %s", key, change)
    if "data.annotations" not in changes:
        _check_annotations_exist(run, config.data.annotations)
    config = _with_train(config, resume_changed=False)
    begins_elsewhere = before.train.resume not in ("", "latest")
    if config.train.resume == "latest" and begins_elsewhere and not checkpoint.latest_valid(run):
        return _with_train(config, resume=before.train.resume)
    return config


def _changes(before: Config, after: Config) -> dict[str, str]:
    """What differs, by its key. Of the cluster and of tracking it is not asked: neither takes
    part in what is learned."""
    had, gets = flatten(before), flatten(after)
    changes = {}
    for key, value in gets.items():
        section, _, name = key.partition(".")
        if section in ("cluster", "tracking") or name in COMMAND.get(section, ()):
            continue
        if _normalised(key, had) != _normalised(key, gets):
            old, new = ("(empty)" if v == "" else str(v) for v in (had[key], value))
            changes[key] = f"{old} -> {new} (this run had {old})"
    return changes


def _normalised(key: str, settings: Mapping[str, Any]) -> Any:
    """The same for values that mean the same."""
    value = settings[key]
    if key == "data.root" and not value:
        value = posixpath.dirname(settings["data.annotations"].partition("?")[0])
    return _place(value) if key in LOCATIONS else value


def _place(path: str) -> str:
    """A path or an address, however it is written: apart from links and from how a store is
    opened; what Ray copied for a submitted job, from its top."""
    if not path:
        return ""
    if "://" in path:
        return path.partition("?")[0].rstrip("/")
    real = os.path.realpath(absolute(path))
    if _JOB_COPY in real:
        return real.partition(_JOB_COPY)[2].partition("/")[2]
    return real


def _refuse_misfits(run: RunFolder, before: Config, after: Config, changes: dict[str, str]) -> None:
    """Raises ConfigError where the networks or the optimizer are others than the checkpoints
    hold."""
    same = expected_shapes(before.model.architecture) == expected_shapes(after.model.architecture)
    misfits = [] if same else [key for key in changes if key.startswith("model.")]
    step = checkpoint.step_of(Path(checkpoint.names(run)[0]))
    made = before.of_stage(before.train.stage_at(max(0, step - 1)))
    stage = after.train.stage_at(step)
    goes_on, begins = after.of_stage(stage), after.train.steps_of_stages()[stage].start == step
    if goes_on.loss.seraena > 0 and made.loss.seraena > 0:
        misfits += [key for key in DISCRIMINATOR if key in changes]
    if goes_on.loss.seraena > 0 and not made.loss.seraena and not (stage and begins):
        misfits += [key for key in changes if key in ("loss.seraena", *STAGES)]
    if before.train.stages and stage < before.train.stage_at(max(0, step - 1)):
        misfits += [key for key in changes if key in STAGES]
    if made.train.freeze_encoder and not goes_on.train.freeze_encoder:
        misfits += [key for key in changes if key in ("train.freeze_encoder", *STAGES)]
    if "optim.optimizer" in changes:
        misfits.append("optim.optimizer")
    if misfits:
        raise ConfigError(
            f"{run} cannot go on with other networks, another optimizer or an earlier stage than "
            f"its checkpoints hold: {_format_changes(misfits, changes)}. Leave that out, or begin "
            "a new run, in another --train.run-dir, from weights by --model.pretrained"
        )


def _refuse_others(run: RunFolder, before: Config, after: Config, changes: dict[str, str]) -> None:
    """Raises ConfigError for other videos, another split, or another frame rule."""
    others = [key for key in SPLIT if key in changes]
    if _split_seed(before) != _split_seed(after):
        others += [key for key in ("data.split_seed", "train.seed") if key in changes]
    if before.model.architecture != after.model.architecture:
        others += [key for key in changes if key.startswith("model.")]
    if others:
        raise ConfigError(
            f"{run} was trained with other settings, and its checkpoints are not for these: "
            f"{_format_changes(others, changes)}. Leave that out to go on as before, give another "
            "--train.run-dir to begin a new run, or, where it is meant, --train.resume-changed"
        )


def _format_changes(keys: list[str], changes: dict[str, str]) -> str:
    return "; ".join(f"{key}: {changes[key].partition(' (')[0]}" for key in dict.fromkeys(keys))


def _split_seed(config: Config) -> int:
    return config.data.split_seed if config.data.split_seed >= 0 else config.train.seed


def _check_annotations_exist(run: RunFolder, annotations: str) -> None:
    """Raises TrainingError where the run's list of videos is gone."""
    try:
        storage.version(annotations)
    except FileNotFoundError as error:
        if command := command_to_make(annotations):
            remedy = f"Make these synthetic videos again by `{command}`"
        elif is_job_copy(Path(annotations)):
            remedy = "It lay in a copy of the code that Ray has thrown away: give its place by "
            remedy += "--data.annotations, as an absolute path that lasts"
        else:
            remedy = "Bring it back"
        raise TrainingError(
            f"the annotation file {annotations}, which {run.address_of(FILE)} names, is no longer "
            f"there. {remedy}; or, where it has moved, give its new place by --data.annotations "
            "with --train.resume-changed"
        ) from error


def _with_train(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def keep_config(run_folder: RunFolder, config: Config) -> None:
    """Write config.yaml, from which a resume goes on: once nothing can be refused any more, and
    whole, so that a start that fails leaves the last one as it was."""
    run_folder.local.mkdir(parents=True, exist_ok=True)
    write_atomically(run_folder.local / FILE, to_yaml(config))
    run_folder.publish(FILE)
