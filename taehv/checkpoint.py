"""Checkpoint folders: `checkpoints/step_00000500/`, valid once their manifest is there and true.

All workers write their files, then comes a barrier, then the main worker writes the manifest with
a checksum per file. A folder without a valid manifest does not exist for the program.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from taehv.errors import TrainingError

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step_(\d{8})")


def step_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    match = _FOLDER.fullmatch(folder.name)
    if not match:
        raise TrainingError(f"{folder} is not a checkpoint: its name is not step_ and 8 digits")
    return int(match[1])


def folders(run_dir: Path) -> list[Path]:
    """All checkpoint folders of a run, valid or not, newest first."""
    parent = run_dir / "checkpoints"
    found = parent.iterdir() if parent.is_dir() else ()
    return sorted((f for f in found if _FOLDER.fullmatch(f.name)), reverse=True)


def latest_valid(run_dir: Path) -> Path | None:
    """The newest checkpoint that is whole; those passed over are named in a warning."""
    for folder in folders(run_dir):
        fault = find_fault(folder)
        if fault is None:
            return folder
        log.warning("checkpoint %s is passed over: %s", folder, fault)
    return None


def find_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is what its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files: dict[str, dict[str, Any]] = manifest["files"]
        form = manifest["format"]
    except FileNotFoundError:
        return "it has no manifest, so it was not finished"
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    if form != FORMAT:
        return f"it has format {form}, this program reads format {FORMAT}"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        if _checksum(path) != entry["sha256"]:
            return f"{name} does not match its checksum"
    return None


def read_info(folder: Path) -> dict[str, Any]:
    """What `write_manifest` was given."""
    info: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["info"]
    return info


def begin(folder: Path) -> None:
    """An empty folder; what an interrupted save left there is removed."""
    if folder.exists():
        # The manifest goes first: a half-removed folder must not look whole.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """`name`.safetensors with contiguous CPU copies of the tensors."""
    save_file(
        {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
        folder / f"{name}.safetensors",
    )


def write_manifest(folder: Path, info: Mapping[str, Any]) -> None:
    """The last act of a save, by the main worker alone."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _checksum(path)}
        for path in sorted(folder.iterdir())
    }
    text = json.dumps({"format": FORMAT, "info": dict(info), "files": files}, indent=1)
    write_atomically(folder / MANIFEST, text)


def prune(run_dir: Path, keep: int) -> None:
    """Remove all but the `keep` newest folders."""
    for folder in folders(run_dir)[keep:]:
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
