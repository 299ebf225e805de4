"""Checkpoint folders: `checkpoints/step_00000500/`, valid once they have a matching manifest.

All workers write their files, then the main worker writes the manifest with the checksum of each.
A folder without a valid manifest is not a checkpoint for the program.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from taehv.atomic import write_atomically
from taehv.errors import TrainingError
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)

FORMAT = 3
MANIFEST = "manifest.json"
FOLDER = "checkpoints"
_NAME = re.compile(r"step_(\d{8})")


class FileRecord(TypedDict):
    """The manifest's entry of a file."""

    bytes: int
    sha256: str


class _ManifestError(Exception):
    """A manifest is missing, damaged or of another format; the text says which."""


class _OtherFormatError(_ManifestError):
    """Another version of this program wrote the manifest."""


def name_of(step: int) -> str:
    """A checkpoint's path relative to its run's folder."""
    return f"{FOLDER}/step_{step:08d}"


def step_folder(run_dir: Path, step: int) -> Path:
    return run_dir / name_of(step)


def step_of(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    if not match:
        raise TrainingError(f"{folder} is not a checkpoint: its name is not step_ and 8 digits")
    return int(match[1])


def names(run: RunFolder) -> list[str]:
    """All checkpoints of a run, valid or not, newest first."""
    found = [entry for entry in run.entries(FOLDER) if _NAME.fullmatch(entry)]
    return [f"{FOLDER}/{entry}" for entry in sorted(found, reverse=True)]


def latest_valid(run: RunFolder) -> str | None:
    """The newest valid checkpoint; a warning names each newer one that is not."""
    for name in names(run):
        fault = find_fault(run.retrieve(name))
        if fault is None:
            return name
        log.warning("checkpoint %s is passed over: %s", run.address_of(name), fault)
    return None


def locate(address: str) -> tuple[RunFolder, str]:
    """The folder that holds the checkpoint at `address` (a path or s3://...), and its name there.

    Files that the folder's `retrieve` downloads live as long as the `RunFolder` object.
    """
    place, question, options = address.partition("?")
    folder, _, name = place.rstrip("/").rpartition("/")
    return RunFolder(f"{folder}{question}{options}"), name


def retrieve_valid(holder: RunFolder, name: str) -> Path:
    """The local path of the checkpoint that `train.resume` names.

    Raises TrainingError if it is not valid.
    """
    folder = holder.retrieve(name)
    fault = find_fault(folder)
    if fault:
        raise TrainingError(f"--train.resume {holder.address_of(name)}: {fault}")
    return folder


def find_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if every file matches the manifest's checksum."""
    if not folder.is_dir():
        return "it is not there"
    try:
        records = _records(folder / MANIFEST)
    except _ManifestError as error:
        return str(error)
    for name, record in records.items():
        path = folder / name
        fault = _size_fault(name, record, path.stat().st_size if path.is_file() else None)
        if fault:
            return fault
        if _checksum(path) != record["sha256"]:
            return f"{name} does not match its checksum"
    return None


def find_size_fault(run: RunFolder, name: str) -> str | None:
    """What is wrong with a checkpoint, judged by its manifest and the sizes of its files.

    That finds every save or removal that failed or was killed, since the manifest is written last
    and removed first. No tensor is read; only `find_fault` finds damage that came later.

    Raises OSError if the disk or the store fails.
    """
    try:
        records = _records(run.retrieve(f"{name}/{MANIFEST}"))
    except _ManifestError as error:
        return str(error)
    sizes = run.sizes(name)
    faults = (_size_fault(file, record, sizes.get(file)) for file, record in records.items())
    return next(filter(None, faults), None)


def is_finished(run: RunFolder, name: str) -> bool:
    """Whether a save was completed there, by this program or another version of it.

    Raises OSError if the disk or the store fails.
    """
    try:
        _records(run.retrieve(f"{name}/{MANIFEST}"))
    except _OtherFormatError:
        return True
    except _ManifestError:
        return False
    return True


def step_in_run(run: RunFolder, folder: Path | None) -> int | None:
    """The step of the checkpoint at a local path, if it lies in this run's folder."""
    if folder is None or not _NAME.fullmatch(folder.name):
        return None
    step = step_of(folder)
    return step if folder.resolve() == step_folder(run.local, step).resolve() else None


def read_info(folder: Path) -> dict[str, Any]:
    """The `info` that `write_manifest` was given."""
    info: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["info"]
    return info


def begin(run: RunFolder, step: int) -> None:
    """Create an empty folder, in place of one that an interrupted save left."""
    name = name_of(step)
    remove(run, name)
    (run.local / name).mkdir(parents=True)


def write_files(
    run: RunFolder, step: int, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str]
) -> dict[str, FileRecord]:
    """Write `tensors` as safetensors files, and `texts`, into the folder that `begin` created.

    Returns the manifest's entry of each file. Raises OSError if one cannot be written.
    """
    name = name_of(step)
    folder = run.local / name
    folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, FileRecord] = {}
    for file in [*(f"{stem}.safetensors" for stem in tensors), *texts]:
        path = folder / file
        if file in texts:
            path.write_text(texts[file])
        else:
            try:
                save_file(dict(tensors[path.stem]), path)
            except SafetensorError as error:
                raise OSError(f"{path} cannot be written: {error}") from error
        records[file] = FileRecord(bytes=path.stat().st_size, sha256=_checksum(path))
        run.publish(f"{name}/{file}")
        if run.is_remote:
            path.unlink()
    return records


def write_manifest(
    run: RunFolder, step: int, info: Mapping[str, Any], records: Mapping[str, FileRecord]
) -> None:
    """Complete a save, on the main worker alone."""
    manifest = {"format": FORMAT, "info": dict(info), "files": dict(sorted(records.items()))}
    manifest["own_sha256"] = _own_checksum(manifest)
    name = f"{name_of(step)}/{MANIFEST}"
    write_atomically(run.local / name, json.dumps(manifest, indent=1))
    run.publish(name)


def remove(run: RunFolder, name: str) -> None:
    """Remove a checkpoint, the manifest first: a half-removed folder must not look valid."""
    run.remove(f"{name}/{MANIFEST}")
    run.remove(name)


def _records(manifest: Path) -> dict[str, FileRecord]:
    """A manifest's entry of each file. Raises _ManifestError if it is not valid."""
    try:
        content = json.loads(manifest.read_text())
        form = content["format"]
        records = {
            name: FileRecord(bytes=entry["bytes"], sha256=entry["sha256"])
            for name, entry in content["files"].items()
        }
        _ = content["info"]["step"]
        own = _own_checksum(content)
    except FileNotFoundError:
        raise _ManifestError("it has no manifest, so it was not finished") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise _ManifestError(f"its manifest cannot be read ({error})") from error
    if form != FORMAT:
        raise _OtherFormatError(f"it has format {form}, this program reads format {FORMAT}")
    if content.get("own_sha256") != own:
        raise _ManifestError("its manifest does not match its own checksum")
    return records


def _size_fault(name: str, record: FileRecord, size: int | None) -> str | None:
    if size is None:
        return f"{name} is missing"
    if size != record["bytes"]:
        return f"{name} has {size} bytes instead of {record['bytes']}"
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_checksum(manifest: Mapping[str, Any]) -> str:
    """The checksum of the manifest itself, without this checksum."""
    content = {key: manifest[key] for key in ("format", "info", "files")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
