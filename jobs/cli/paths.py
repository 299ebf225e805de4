"""Where a run's inputs and results lie: absolute paths, and folders that all nodes see."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from pyarrow import fs

from data_pipeline.synthetic import ANNOTATIONS
from taehv.errors import TrainingError
from taehv.run.run_folder import send

log = logging.getLogger(__name__)


def is_job_copy(folder: Path) -> bool:
    """Whether it is in the copy of the code that `ray job submit` made, and will throw away."""
    return "runtime_resources" in folder.parts


def check_replaceable(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Raises TrainingError where an output folder holds one of these results already."""
    held = [name for name in names if (folder / name).exists()]
    if held and not overwrite:
        raise TrainingError(
            f"--output-dir {folder} holds {held[0]} already: choose another, or replace it with "
            "--overwrite"
        )


def placed(path: str, storage: str) -> str:
    """`path` below `storage`, where it is relative; storage may end in `?endpoint_override=...`."""
    if "://" in path or path.startswith("/"):
        return path
    place, question, options = storage.partition("?")
    return f"{place.rstrip('/')}/{path}{question}{options}"


def run_address(run_dir: str, storage: str) -> str:
    """The address of the run folder that `train.run_dir` names, with `cluster.storage` or none."""
    return absolute(placed(run_dir, storage) if storage else run_dir)


def checkpoint_address(resume: str, run_dir: str, storage: str) -> str:
    """The address that `train.resume` names, where that is a checkpoint. One that is named as its
    run folder is, lies where that does."""
    if resume in ("", "latest"):
        return resume
    of_this_run = bool(run_dir) and resume.startswith(run_dir.rstrip("/") + "/")
    if storage and (of_this_run or not Path(resume).exists()):
        resume = placed(resume, storage)
    return absolute(resume)


def absolute(path: str) -> str:
    """`path` from where the user is; under `ray job submit` that is a copy which Ray throws away,
    so results go to the home folder there, and inputs are better given as absolute paths."""
    if not path or "://" in path:
        return path
    relative_to = Path.home() if is_job_copy(Path.cwd()) and not Path(path).exists() else Path.cwd()
    return os.path.normpath(relative_to / path)


def share(folder: Path, storage: str) -> str:
    """Copy a MiniDataset's `folder` below `storage`, if it is not there; the annotations there.

    Raises OSError where the store refuses.
    """
    target = placed(f"data/{folder.name}", storage)
    annotations = placed(f"data/{folder.name}/{ANNOTATIONS}", storage)
    is_url = "://" in target
    store, path = fs.FileSystem.from_uri(target) if is_url else (fs.LocalFileSystem(), target)
    if store.get_file_info(f"{path}/{ANNOTATIONS}").type != fs.FileType.File:
        log.info("copying the synthetic videos to %s", target)
        store.create_dir(path, recursive=True)
        # The annotations last: where they are, the set is whole.
        for file in sorted(folder.iterdir(), key=lambda file: file.name == ANNOTATIONS):
            with file.open("rb") as source:
                send(store, f"{path}/{file.name}", source)
    return annotations
