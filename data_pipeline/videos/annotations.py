"""Lists of videos in JSON: a MiniDataset file, `{"total": N, "list": [{"path": "x.mp4"}, ...]}`, or
a list by itself, of such objects or of paths."""

import json
import logging
from collections.abc import Iterator
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.videos.json_stream import ByteStream, JsonStream, JsonStreamError

logger = logging.getLogger(__name__)

EXPECTED = 'expected {"total": N, "list": [{"path": "video.mp4"}, ...]}, or a list of paths'
EXAMPLE_KEYS = 5
"""Keys that a message shows of an object: there may be millions."""


def stream_paths(stream: ByteStream, file: str) -> Iterator[str]:
    """The paths of all entries, in the file's order, in bounded memory. No video is touched.

    A path is the entry's `path`, or its `full_path` where it has no `path`. `file` is the name
    that messages call the file by.

    Raises DataError, from the iteration, where the file cannot be read or is not of this form.
    """
    try:
        document = JsonStream(stream)
        if document.peek() == "[":
            yield from _list(document, file)
        else:
            yield from _mini_dataset(document, file)
    except JsonStreamError as error:
        raise DataError(f"the annotation file {file} is not JSON: {error}") from error
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: str, error: OSError) -> DataError:
    """The error for an annotation file that is there and cannot be read."""
    place = error.filename if isinstance(error.filename, str) else file
    within = "" if place == file else f" ({place})"
    return DataError(
        f"the annotation file {file} cannot be read: {error.strerror or error}{within}"
    )


def _list(document: JsonStream, file: str) -> Iterator[str]:
    count = 0
    for _ in document.elements():
        entry = document.value()
        where = f"entry {count} in the annotation file {file}"
        yield (
            checked_path(entry, f"{where} is")
            if isinstance(entry, str)
            else entry_path(entry, where)
        )
        count += 1
    document.end()
    if not count:
        raise DataError(f"the annotation file {file} lists no videos: its list is empty")


def _mini_dataset(document: JsonStream, file: str) -> Iterator[str]:
    if (kind := _kind(document.peek())) != "an object":
        document.skip()
        raise DataError(f"the annotation file {file} holds {kind} at the top; {EXPECTED}")

    keys: list[str] = []
    count, total, listed = 0, None, False
    for key in document.members():
        if len(keys) < EXAMPLE_KEYS:
            keys.append(key)
        if key == "total":
            total = document.value()
        elif key != "list":
            document.skip()
        elif listed:
            raise DataError(f"the annotation file {file} has the key 'list' twice; {EXPECTED}")
        elif (kind := _kind(document.peek())) != "a list":
            document.skip()
            raise DataError(f"the annotation file {file} holds {kind} as 'list'; {EXPECTED}")
        else:
            listed = True
            for _ in document.elements():
                where = f"entry {count} of 'list' in the annotation file {file}"
                yield entry_path(document.value(), where)
                count += 1
    document.end()

    if not listed:
        raise DataError(
            f"the annotation file {file} has no key 'list' (keys: {_names(keys)}); {EXPECTED}"
        )
    if not count:
        raise DataError(f"the annotation file {file} lists no videos: its 'list' is empty")
    if total is not None and total != count:
        logger.warning(
            "%s says 'total' is %s and lists %d videos: all those listed are used",
            file,
            total,
            count,
        )


def entry_path(entry: Any, where: str) -> str:
    """The path that an object of a list names. Raises DataError, which says `where` it stands."""
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {_kind(json.dumps(entry)[0])}; {EXPECTED}")
    for key in ("path", "full_path"):
        if entry.get(key) is not None:
            return checked_path(entry[key], f"{where} has", f" as '{key}'")
    raise DataError(f"{where} has neither 'path' nor 'full_path' (keys: {_names(list(entry))})")


def checked_path(path: Any, where: str, place: str = "") -> str:
    """A path that is one. Raises DataError."""
    if not isinstance(path, str) or not path:
        raise DataError(f"{where} {path!r}{place}; a path is a text that is not empty")
    if not path.isascii() and not _is_utf8(path):
        raise DataError(f"{where} {path!r}{place}, which is not Unicode text; rename the video")
    return path


def _is_utf8(text: str) -> bool:
    """False for half of a surrogate pair, as Python lists a file name in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(keys: list[str]) -> str:
    return ", ".join(repr(key) for key in keys[:EXAMPLE_KEYS]) or "none"


def _kind(symbol: str) -> str:
    """What a JSON value is, in words, from its first character."""
    kinds = {"{": "an object", "[": "a list", '"': "a text", "n": "null"}
    kinds |= dict.fromkeys("tf", "true or false")
    return kinds.get(symbol, "a number")
