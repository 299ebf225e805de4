"""The paths of an annotation file as a memory-mapped Arrow table.

Millions of entries take a minute to read and gigabytes as Python objects. So they are read once,
as a stream, into an Arrow file beside the annotations; each later start, and each other process
of the machine, maps that file and shares its pages.
"""

import fcntl
import hashlib
import logging
import os
import posixpath
import time
from collections.abc import Iterator
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
from data_pipeline.videos.annotations import stream_paths, unreadable

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([("path", pa.large_string()), ("hash", pa.uint64())])
FORMAT = "1"
"""Changes when files written by an older version no longer serve."""

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

    hashes: tuple[Hashes, ...]
    """`path_hash` of each entry, uint64, in pieces that follow each other, none empty."""

    def __len__(self) -> int:
        return len(self.paths)


def open_index(annotations: str) -> Index:
    """The index of an annotation file, which is read only if it changed since the last time.

    The index lies beside the annotation file, or in the user's cache folder where nothing can be
    written there. Where several processes ask at once, one reads and the others wait for it.

    Raises DataError where the annotation file is missing, is not of its form or changes while
    it is read, and where the index can be written nowhere.
    """
    annotations = storage.absolute(annotations)
    version = _version(annotations)
    places = _places(annotations)
    for place in places:
        index = _load(place, annotations, version)
        if index is not None:
            return index

    failures = []
    for place in places:
        try:
            return _load_or_build(place, annotations, version)
        except OSError as error:
            # What is wrong with the annotation file itself is a DataError.
            failures.append(f"in {place.parent}: {error.strerror or error}")
            logger.info("no index can be written %s", failures[-1])
    raise DataError(
        f"the index of {annotations} can be written nowhere ({'; '.join(failures)}); "
        "set XDG_CACHE_HOME to a folder with room"
    )


def path_hash(path: str) -> bytes:
    """Eight bytes that stand for a video, however its path is spelled; the same everywhere."""
    return hashlib.blake2b(posixpath.normpath(path).encode(), digest_size=8).digest()


def _version(annotations: str) -> str:
    try:
        return storage.version(annotations)
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


def _load(place: Path, annotations: str, version: str) -> Index | None:
    """The index at `place`, mapped; None where there is none of this version of the file."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(place)))
        if reader.schema.metadata != _key(version):
            return None
        table = reader.read_all()
        last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        summary = last.custom_metadata or {}
        if not 0 < int(summary[b"entries"]) == len(table):
            raise ValueError("entries are missing")
        _check_some(table)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        logger.warning("the index %s is damaged and is made anew: %s", place, error)
        return None
    hashes = [np.asarray(np.from_dlpack(piece), np.uint64) for piece in table["hash"].chunks]
    return Index(
        annotations,
        fingerprint=summary[b"fingerprint"].decode(),
        paths=table["path"],
        hashes=tuple(piece for piece in hashes if len(piece)),
    )


def _check_some(table: pa.Table) -> None:
    """Raises ValueError where one of a few entries is not what was written."""
    for row in np.linspace(0, len(table) - 1, CHECKED_ENTRIES).astype(int).tolist():
        entry = table.slice(row, 1)
        # Positions in a damaged file may point anywhere; without this they would be followed.
        entry.validate(full=True)
        [path], [value] = entry.column("path").to_pylist(), entry.column("hash").to_pylist()
        if path_hash(path) != value.to_bytes(8, "little"):
            raise ValueError(f"entry {row} is not what was written")


def _load_or_build(place: Path, annotations: str, version: str) -> Index:
    """The index at `place`, made by this process unless another one does so first."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{place}.partial")
    with _sole_writer(partial) as output:
        index = _load(place, annotations, version)
        if index is not None:
            return index
        _build(output, annotations, version, place)
        partial.replace(place)
    index = _load(place, annotations, version)
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


def _build(output: BinaryIO, annotations: str, version: str, place: Path) -> None:
    """Read the annotations as a stream and write the index."""
    start = last_report = time.monotonic()
    entries, digest = 0, hashlib.blake2b(digest_size=16)
    with (
        _open(annotations) as stream,
        pa.ipc.new_file(output, SCHEMA.with_metadata(_key(version))) as writer,
    ):
        paths = stream_paths(stream, annotations)
        while some := list(islice(paths, BATCH_ENTRIES)):
            writer.write_batch(_batch(some))
            digest.update("\0".join([*some, ""]).encode())
            entries += len(some)
            now = time.monotonic()
            if now - last_report >= PROGRESS_SECONDS:
                last_report = now
                rate = entries / (now - start)
                logger.info("reading %s: %d videos, %.0f a second", annotations, entries, rate)
        # Known last of all: where this is there, the rest is.
        summary = {"entries": str(entries), "fingerprint": digest.hexdigest()}
        writer.write_batch(_batch([]), custom_metadata=summary)
    output.flush()
    os.fsync(output.fileno())
    if _version(annotations) != version:
        raise DataError(f"the annotation file {annotations} changed while it was read; start again")
    seconds = time.monotonic() - start
    logger.info("%d videos indexed in %.1f s; the index is %s", entries, seconds, place)


def _open(annotations: str) -> BinaryIO:
    try:
        return storage.open_stream(annotations)
    except OSError as error:
        raise unreadable(annotations, error) from error


def _key(version: str) -> dict[bytes, bytes]:
    return {b"format": FORMAT.encode(), b"version": version.encode()}


def _batch(paths: list[str]) -> pa.RecordBatch:
    hashes = np.frombuffer(b"".join(map(path_hash, paths)), "<u8")
    return pa.record_batch([pa.array(paths, pa.large_string()), pa.array(hashes)], schema=SCHEMA)
