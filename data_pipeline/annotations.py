"""Reading a MiniDataset file: `{"total": N, "list": [{"path": "x.mp4", ...}, ...]}`."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.errors import DataError

logger = logging.getLogger(__name__)

EXPECTED = 'expected {"total": N, "list": [{"path": "video.mp4"}, ...]}'
SCHEMA = pa.schema([("path", pa.large_string()), ("frames", pa.int64())])


def read_annotations(path: str, root: str = "") -> pa.Table:
    """Read the list of videos, in the file's order. No video is touched.

    Returns a table of one row per entry: `path` (as in the annotation, `full_path` where it has
    no `path`) and `frames` (a hint, null where absent). The folder that relative paths start at
    is in the schema's metadata under `root`: the argument, else the annotation file's folder.

    Raises DataError where the file or the folder is missing, or the file is not of this form.
    """
    file = Path(path).absolute()
    folder = Path(root).absolute() if root else file.parent
    entries = _entries(_parse(file), file)
    if not folder.is_dir():
        raise DataError(f"the data folder {folder} does not exist; set data.root to the right one")

    paths = [_entry_path(entry, index, file) for index, entry in enumerate(entries)]
    frames = [_frames_hint(entry) for entry in entries]
    schema = SCHEMA.with_metadata({"root": str(folder)})
    return pa.table({"path": paths, "frames": frames}, schema=schema)


def _parse(file: Path) -> Any:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            return json.load(stream)
    except FileNotFoundError as error:
        raise DataError(
            f"the annotation file {file} does not exist; set data.annotations to the right path"
        ) from error
    except OSError as error:
        raise DataError(
            f"the annotation file {file} cannot be read: {error.strerror or error}"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"the annotation file {file} is not JSON: {error.msg} "
            f"at line {error.lineno}, column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"the annotation file {file} is not JSON: byte {error.start} is not UTF-8 text"
        ) from error


def _entries(content: Any, file: Path) -> list[Any]:
    if not isinstance(content, dict):
        raise DataError(f"the annotation file {file} holds {_kind(content)} at the top; {EXPECTED}")
    if "list" not in content:
        keys = ", ".join(repr(key) for key in list(content)[:5]) or "none"
        raise DataError(f"the annotation file {file} has no key 'list' (keys: {keys}); {EXPECTED}")
    entries = content["list"]
    if not isinstance(entries, list):
        raise DataError(f"the annotation file {file} holds {_kind(entries)} as 'list'; {EXPECTED}")
    if not entries:
        raise DataError(f"the annotation file {file} lists no videos: its 'list' is empty")
    total = content.get("total", len(entries))
    if total != len(entries):
        logger.warning(
            "%s says 'total' is %s and lists %d videos: all those listed are used",
            file,
            total,
            len(entries),
        )
    return entries


def _entry_path(entry: Any, index: int, file: Path) -> str:
    where = f"entry {index} of 'list' in the annotation file {file}"
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {_kind(entry)}; {EXPECTED}")
    for key in ("path", "full_path"):
        value = entry.get(key)
        if value is None:
            continue
        if not isinstance(value, str) or not value:
            raise DataError(f"{where} has {value!r} as '{key}'; a path is a text that is not empty")
        return value
    keys = ", ".join(repr(key) for key in list(entry)[:5]) or "none"
    raise DataError(f"{where} has neither 'path' nor 'full_path' (keys: {keys})")


def _frames_hint(entry: dict[str, Any]) -> int | None:
    frames = entry.get("frames")
    return frames if isinstance(frames, int) and not isinstance(frames, bool) else None


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "a number")
