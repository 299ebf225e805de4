"""Lists of videos in every form that people have them in, told apart by what they hold.

A folder; JSON as `annotations` describes it; a JSON object a line; a Parquet file, or a table of
comma- or tab-separated values with a column `path`; or a text with a path a line.
"""

import csv
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, TextIO, cast

from data_pipeline.errors import DataError
from data_pipeline.videos import storage
from data_pipeline.videos.annotations import (
    checked_path,
    entry_path,
    stream_paths,
    unreadable,
)

logger = logging.getLogger(__name__)

HEAD_BYTES = 1 << 16
"""Bytes that a file is told apart by."""

PARQUET = b"PAR1"
COLUMNS = ("path", "full_path")
TABLES = (".csv", ".tsv")
BATCH_ROWS = 1 << 16

LONGEST_FIELD = 1 << 24
"""Bytes or characters: some lists hold what was recognised in each frame."""

JSON_START = re.compile(rb'\{\s*["}]|\[\s*["{\]]')
"""Of an object or a list. A file's name may begin with a bracket, too."""


def list_paths(location: str) -> Iterator[str]:
    """The paths that a list of videos holds, in its order, in bounded memory.

    Those of a folder are relative to it, sorted, of files that end in one of
    `storage.VIDEO_SUFFIXES` and neither are hidden nor lie in a hidden folder. No video is touched.

    Raises DataError where the list cannot be read, is of no form, or is empty.
    """
    try:
        if storage.is_folder(location):
            videos = _with_sound_names(storage.videos_below(location), location)
            yield from _some(videos, _no_video(location))
            return
        with storage.open_stream(location) as stream:
            head = _head(stream)
            if not head.startswith(PARQUET):
                content = io.BufferedReader(_Rejoined(head, stream))
                yield from _by_content(cast("BinaryIO", content), head, location)
                return
        yield from _some(_parquet(location), f"the annotation file {location} lists no videos")
    except OSError as error:
        raise unreadable(location, error) from error


def _by_content(stream: BinaryIO, head: bytes, file: str) -> Iterator[str]:
    if b"\0" in head:
        raise DataError(
            f"{file} is no list of videos: it holds binary data. Give the folder that a video lies "
            "in, or a file that lists paths"
        )
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if file.partition("?")[0].endswith((".json", ".jsonl")) or JSON_START.match(start):
        yield from _json_lines(stream, file) if _is_json_line(start) else stream_paths(stream, file)
        return
    lines = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    empty = f"the annotation file {file} lists no videos: it is empty"
    try:
        yield from _some(_table_or_text(lines, file), empty)
    except UnicodeDecodeError as error:
        raise DataError(f"the annotation file {file} is not text in UTF-8: {error}") from error


def _is_json_line(start: bytes) -> bool:
    """Whether the first line is an object with a path, by itself."""
    try:
        entry = json.loads(start.partition(b"\n")[0])
    except ValueError:
        return False
    return isinstance(entry, dict) and any(key in entry for key in COLUMNS) and "list" not in entry


def _json_lines(stream: BinaryIO, file: str) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        where = f"line {number} of the annotation file {file}"
        try:
            entry = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            raise DataError(f"{where} is not JSON: {error}") from error
        yield entry_path(entry, where)


def _table_or_text(lines: TextIO, file: str) -> Iterator[str]:
    first = lines.readline()
    separator = "\t" if "\t" in first else ","
    csv.field_size_limit(LONGEST_FIELD)
    try:
        columns = next(csv.reader([first], delimiter=separator), [])
    except csv.Error:
        columns = []
    column = next((columns.index(name) for name in COLUMNS if name in columns), None)
    if column is None:
        if file.partition("?")[0].endswith(TABLES):
            raise DataError(
                f"the annotation file {file} has no column 'path' in its first line (columns: "
                f"{', '.join(map(repr, columns[:5])) or 'none'})"
            )
        yield from _text([first], file, 1)
        yield from _text(lines, file, 2)
        return
    # Strict: a quotation mark that is never closed would take all lines behind it for one value.
    rows = csv.reader(lines, delimiter=separator, strict=True)
    try:
        for row in rows:
            if not row:
                continue
            where = f"line {rows.line_num + 1} of the annotation file {file}"
            if len(row) != len(columns):
                raise DataError(f"{where} has {len(row)} values for {len(columns)} columns")
            yield checked_path(row[column], f"{where} has", " as 'path'")
    except csv.Error as error:
        raise DataError(
            f"the annotation file {file} is no table, at or before line {rows.line_num + 1}: "
            f'{error}. A value that begins with " ends with one, and has "" for each within'
        ) from error


def _text(lines: Any, file: str, first: int) -> Iterator[str]:
    for number, line in enumerate(lines, start=first):
        if path := line.rstrip("\r\n"):
            yield checked_path(path, f"line {number} of the annotation file {file} is")


def _parquet(location: str) -> Iterator[str]:
    # Loaded here: few lists are Parquet.
    from pyarrow import ArrowException, parquet

    try:
        with storage.open_random_access(location) as source:
            file = parquet.ParquetFile(source)
            names = file.schema_arrow.names
            column = next((name for name in COLUMNS if name in names), None)
            if column is None:
                raise DataError(
                    f"the annotation file {location} has no column 'path' (columns: "
                    f"{', '.join(map(repr, names[:5]))})"
                )
            number = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
                for path in batch.column(0).to_pylist():
                    where = f"row {number} of the annotation file {location} has"
                    yield checked_path(path, where, f" as '{column}'")
                    number += 1
    except ArrowException as error:
        raise DataError(f"the annotation file {location} is damaged Parquet: {error}") from error


def _some(paths: Iterator[str], otherwise: str) -> Iterator[str]:
    """The paths. Raises DataError, saying what else there is, where there is none."""
    found = False
    for path in paths:
        found = True
        yield path
    if not found:
        raise DataError(otherwise)


def _head(stream: BinaryIO) -> bytes:
    """The start of a list; of a JSON object its whole first line, up to `LONGEST_FIELD`."""
    head = stream.read(HEAD_BYTES)
    if head.lstrip()[:1] == b"{":
        while b"\n" not in head and len(head) < LONGEST_FIELD and (more := stream.read(HEAD_BYTES)):
            head += more
    return head


def _with_sound_names(videos: Iterator[str], folder: str) -> Iterator[str]:
    """Those that can be named in a list; the others are told."""
    for path in videos:
        if fault := storage.fault_of_name(path):
            logger.warning(
                "a video below %s is left out, since its name %r %s: rename it", folder, path, fault
            )
        else:
            yield path


def _no_video(folder: str) -> str:
    return f"the folder {folder} holds no video, that is no file {storage.VIDEO_SUFFIXES_TEXT}"


class _Rejoined(io.RawIOBase):
    """A stream from its start again, after its head was read."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(part) :]
        buffer[: len(part)] = part
        return len(part)
