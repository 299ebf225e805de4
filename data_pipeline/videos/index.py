"""The paths of an annotation file as a memory-mapped Arrow table.

Millions of entries take a minute to read and gigabytes as Python objects. So they are read once,
as a stream, into an Arrow file beside the annotations; each later start, and each other process
of the machine, maps that file and shares its pages.
"""

import fcntl
import hashlib
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.videos import storage
from data_pipeline.videos.annotations import unreadable
from data_pipeline.videos.lists import list_paths
from data_pipeline.videos.split_keys import SplitKeys, path_hash

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([("path", pa.large_string()), ("hash", pa.uint64())])
FORMAT = "2"
"""Changes when files written by an older version no longer serve."""

FOLDER = "folder"
"""In place of a version, since a folder's is the work of listing it."""

BATCH_ENTRIES = 1 << 16
PROGRESS_SECONDS = 10.0
CHECKED_ENTRIES = 16

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Index:
    """The entries of one annotation file, in its order; not copied into memory."""

    annotations: str
    """Where the annotation file lies: an absolute path or an S3 location."""

    fingerprint: str
    """Digest of all paths: equal on machines whose annotation files list the same."""

    paths: pa.ChunkedArray
    """The path of each entry as in the annotation, as large strings."""

    hashes: Iterable[Hashes]
    """A hash of what decides on which side of a split each entry is, uint64, in pieces that follow
    each other, none empty: see `SplitKeys`. They are read anew each time."""

    duplicates: int
    """Entries that name a file which an entry before them names, however it is spelled."""

    alone: int
    """Entries that the pattern or the level of `split_by` says nothing of."""

    def __len__(self) -> int:
        return len(self.paths)


def open_index(
    annotations: str, root: str = "", split_by: str = "", refresh: bool = False
) -> Index:
    """The index of a list of videos, which is read only if it changed since the last time.

    Whether a folder changed is looked for only with `refresh`: who reads it later means the videos
    that were there at the start.

    The index lies beside the annotation file, or in the user's cache folder where nothing can be
    written there. Where several processes ask at once, one reads and the others wait for it.

    Raises DataError where the annotation file is missing, is not of its form or changes while
    it is read, and where the index can be written nowhere.
    """
    annotations = storage.absolute(annotations)
    root = storage.absolute(root) if root else folder_of(annotations)
    source = _Source(annotations, _version(annotations), root, split_by)
    places = _places(annotations)
    for place in () if refresh and source.version == FOLDER else places:
        index = _load(place, source)
        if index is not None:
            return index

    failures = []
    for place in places:
        try:
            return _load_or_build(place, source, refresh)
        except OSError as error:
            # What is wrong with the annotation file itself is a DataError.
            failures.append(f"in {place.parent}: {error.strerror or error}")
            logger.info("no index can be written %s", failures[-1])
    raise DataError(
        f"the index of {annotations} can be written nowhere ({'; '.join(failures)}); "
        "set XDG_CACHE_HOME to a folder with room"
    )


def open_same(annotations: str, root: str, split_by: str, fingerprint: str) -> Index:
    """The index of a list that must name what it named at the start. Raises DataError.

    That of a folder may be older: it is made anew once.
    """
    for refresh in (False, True):
        index = open_index(annotations, root, split_by, refresh)
        if index.fingerprint == fingerprint:
            return index
    raise DataError(
        f"the annotation file {annotations} on {socket.gethostname()} lists other videos than "
        "where the run was started; give all machines the same file"
    )


def folder_of(annotations: str) -> str:
    """Where the relative paths of a list start, unless another root is named. Raises DataError."""
    try:
        return annotations if storage.is_folder(annotations) else storage.parent(annotations)
    except OSError as error:
        raise unreadable(annotations, error) from error


@dataclass(frozen=True)
class _Source:
    """What an index is made from."""

    annotations: str
    version: str
    root: str
    split_by: str

    def keys(self) -> SplitKeys:
        """For the entries, from the first on."""
        return SplitKeys(self.root, self.split_by)

    def metadata(self) -> dict[bytes, bytes]:
        """What an index of this source says of itself."""
        return {
            b"format": FORMAT.encode(),
            b"version": self.version.encode(),
            b"root": self.root.encode(),
            b"split_by": self.split_by.encode(),
        }


def _version(annotations: str) -> str:
    try:
        return FOLDER if storage.is_folder(annotations) else storage.version(annotations)
    except FileNotFoundError as error:
        raise DataError(
            f"the annotation file {annotations} does not exist; "
            "set data.annotations to the right path"
        ) from error
    except OSError as error:
        raise unreadable(annotations, error) from error


def _places(annotations: str) -> list[Path]:
    """Where the index may lie, the best place first."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.blake2b(annotations.encode(), digest_size=16).hexdigest()
    cached = caches / "taehv" / "indexes" / f"{name}.arrow"
    return [cached] if storage.is_s3(annotations) else [Path(f"{annotations}.index.arrow"), cached]


def _load(place: Path, source: _Source) -> Index | None:
    """The index at `place`, mapped; None where there is none of this source."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(place)))
        if reader.schema.metadata != source.metadata():
            return None
        table = reader.read_all()
        last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        summary = last.custom_metadata or {}
        if not 0 < int(summary[b"entries"]) == len(table):
            raise ValueError("entries are missing")
        _check_some(table, source)
        hashes = _StoredHashes(place)
        if hashes.summary != summary:
            raise ValueError("it was replaced while it was opened")
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        logger.warning("the index %s is damaged and is made anew: %s", place, error)
        return None
    return Index(
        source.annotations,
        fingerprint=summary[b"fingerprint"].decode(),
        paths=table["path"],
        hashes=hashes,
        duplicates=int(summary[b"duplicates"]),
        alone=int(summary[b"alone"]),
    )


class _StoredHashes:
    """The hashes in an index, read and not mapped: of a mapped file all the pages near one that is
    touched count as this process's memory, and the paths lie between the hashes."""

    def __init__(self, place: Path) -> None:
        only_hashes = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index("hash")])
        self._reader = pa.ipc.open_file(pa.OSFile(str(place)), options=only_hashes)
        self._batches = self._reader.num_record_batches
        last = self._reader.get_batch_with_custom_metadata(self._batches - 1)
        self.summary = last.custom_metadata or {}

    def __iter__(self) -> Iterator[Hashes]:
        for number in range(self._batches):
            piece = self._reader.get_batch(number).column("hash")
            if len(piece):
                yield np.asarray(np.from_dlpack(piece), np.uint64)


def _check_some(table: pa.Table, source: _Source) -> None:
    """Raises ValueError where one of a few entries is not what was written."""
    keys = source.keys()
    for row in np.linspace(0, len(table) - 1, CHECKED_ENTRIES).astype(int).tolist():
        entry = table.slice(row, 1)
        # Positions in a damaged file may point anywhere; without this they would be followed.
        entry.validate(full=True)
        [path], [value] = entry.column("path").to_pylist(), entry.column("hash").to_pylist()
        if path_hash(keys.key(path)) != value.to_bytes(8, "little"):
            raise ValueError(f"entry {row} is not what was written")


def _load_or_build(place: Path, source: _Source, refresh: bool) -> Index:
    """The index at `place`, made by this process unless another one does so first."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{place}.partial")
    with _sole_writer(partial) as output:
        index = None if refresh and source.version == FOLDER else _load(place, source)
        if index is not None:
            return index
        _build(output, source, place)
        partial.replace(place)
    index = _load(place, source)
    if index is None:
        raise OSError(f"{place} cannot be read back")
    return index


@contextmanager
def _sole_writer(partial: Path) -> Iterator[BinaryIO]:
    """The file, empty and open, when no other process has it; it is gone or renamed after.

    The file is its own lock, so that nothing else is left beside the annotations, and what a
    killed process leaves is used by the next.
    """
    while True:
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "wb") as output:
            _lock(output, partial)
            if not _lies_at(output, partial):
                continue  # The process that had the lock is done with this file.
            try:
                output.truncate(0)
                yield output
            finally:
                if _lies_at(output, partial):
                    partial.unlink()
            return


def _lock(output: BinaryIO, partial: Path) -> None:
    try:
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("waiting for another process that writes %s", partial)
        fcntl.flock(output, fcntl.LOCK_EX)


def _lies_at(output: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(output.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _build(output: BinaryIO, source: _Source, place: Path) -> None:
    """Read the list as a stream and write the index."""
    start = last_report = time.monotonic()
    keys, entries, alone, digest = source.keys(), 0, 0, hashlib.blake2b(digest_size=16)
    files: list[Hashes] = []
    with pa.ipc.new_file(output, SCHEMA.with_metadata(source.metadata())) as writer:
        paths = list_paths(source.annotations)
        while some := list(islice(paths, BATCH_ENTRIES)):
            batch, hashed, without_group = _batch(some, keys)
            writer.write_batch(batch)
            files.append(hashed)
            alone += without_group
            digest.update("\0".join([*some, ""]).encode())
            entries += len(some)
            now = time.monotonic()
            if now - last_report >= PROGRESS_SECONDS:
                last_report = now
                rate = entries / (now - start)
                logger.info(
                    "reading %s: %d videos, %.0f a second", source.annotations, entries, rate
                )
        # Known last of all: where this is there, the rest is.
        summary = {
            "entries": str(entries),
            "fingerprint": digest.hexdigest(),
            "duplicates": str(_duplicates(files)),
            "alone": str(alone),
        }
        writer.write_batch(_batch([], keys)[0], custom_metadata=summary)
    output.flush()
    os.fsync(output.fileno())
    if _version(source.annotations) != source.version:
        raise DataError(
            f"the annotation file {source.annotations} changed while it was read; start again"
        )
    seconds = time.monotonic() - start
    logger.info("%d videos indexed in %.1f s; the index is %s", entries, seconds, place)


def _batch(paths: list[str], keys: SplitKeys) -> tuple[pa.RecordBatch, Hashes, int]:
    """Some entries as they are written, hashes of their files, and how many have no group."""
    files = list(map(keys.file, paths))
    hashed = hashes = _hashes(files)
    alone = 0
    if keys.split_by:
        groups = list(map(keys.group, files))
        alone = groups.count(None)
        hashes = _hashes([keys.key_of(*pair) for pair in zip(files, groups, strict=True)])
    columns = [pa.array(paths, pa.large_string()), pa.array(hashes)]
    return pa.record_batch(columns, schema=SCHEMA), hashed, alone


def _duplicates(pieces: list[Hashes]) -> int:
    """How many values stand somewhere before, too. The pieces are given up."""
    values = np.concatenate(pieces)
    pieces.clear()
    # In place: of millions a copy is most of the memory that a start takes.
    values.sort()
    return int((values[1:] == values[:-1]).sum())


def _hashes(texts: list[str]) -> Hashes:
    return np.frombuffer(b"".join(map(path_hash, texts)), "<u8")
