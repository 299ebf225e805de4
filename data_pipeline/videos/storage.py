"""Where data lies: in a folder (local or mounted), or on S3 as `s3://bucket/key`.

An S3 location may end in `?endpoint_override=HOST:PORT&scheme=http&region=NAME`, any part of it;
what it does not say comes from AWS_ENDPOINT_URL, AWS_REGION and the other AWS variables and files.
Keys are written as they are, without percent escapes. Only what the user types has options: a path
of the annotations is a key and nothing else, and `resolve` gives a location that says so.

Importing this module is cheap: PyArrow is loaded when the first S3 location is opened.
"""

import logging
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from data_pipeline.errors import DataError
from data_pipeline.videos.range_reader import RangeReader

logger = logging.getLogger(__name__)

S3_SCHEME = "s3://"
CONNECT_SECONDS, REQUEST_SECONDS = 10.0, 60.0

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"),
    *(".wmv", ".flv", ".3gp", ".ogv", ".y4m", ".h264", ".264", ".h265", ".hevc", ".265", ".ivf"),
)
"""Endings, in small letters or capitals, of the files of a folder that are taken for videos."""

VIDEO_SUFFIXES_TEXT = "that ends in " + " ".join(VIDEO_SUFFIXES)

LOST_AND_FOUND = "lost+found"
"""A folder that ext file systems have, and that only root can read."""

NO_OPTIONS = "?region="

_OPTION = r"(?:endpoint_override|scheme|region)=[^&?]*"
_S3_LOCATION = re.compile(
    rf"s3://(?P<bucket>[^/?]+)/?(?P<key>.*?)(?P<options>\?{_OPTION}(?:&{_OPTION})*)?", re.DOTALL
)


class OutsideRootError(ValueError):
    """A path of the annotations that would lead out of the data root, or names no file in it."""


class NotAFileError(OSError):
    """A folder, pipe, socket or device where a video should be."""

    def __str__(self) -> str:
        return "is no file but a folder, a pipe or a device"


def is_s3(location: str) -> bool:
    """Whether a location is on S3 rather than in a folder."""
    return location.startswith(S3_SCHEME)


def absolute(location: str) -> str:
    """The same location whatever the working directory."""
    return location if is_s3(location) else os.path.abspath(location)  # noqa: PTH100


def without_options(location: str) -> str:
    """A location without how its store is opened, as paths of the annotations name it."""
    if not is_s3(location):
        return location
    bucket, key, _ = _parse(location)
    return f"{S3_SCHEME}{bucket}/{key}"


def parent(location: str) -> str:
    """The folder that a file lies in."""
    if not is_s3(location):
        return posixpath.dirname(location)
    bucket, key, options = _parse(location)
    return _S3Location(bucket, posixpath.dirname(key), options).text()


def resolve(root: str, path: str) -> str:
    """Where the video `path` of the annotations lies, inside of the data root.

    A local result is absolute, so that FFmpeg takes no "name:rest" for a protocol, and free of
    symbolic links, so that what was checked is what is opened. On S3 the path is a key, whatever
    it holds, and the options are the root's.

    Raises OutsideRootError where the path leads out of the root: by `..`, by naming another
    folder or bucket, or, in a folder, by a symbolic link; and where it can be no file's name.
    """
    if fault := fault_of_name(path):
        raise _no_name(path, fault)
    return _resolve_s3(root, path) if is_s3(root) else _resolve_local(root, path)


def open_media(location: str) -> str | RangeReader:
    """What PyAV opens a video by: the path itself, or a reader of an S3 object to be closed.

    Raises FileNotFoundError where there is no such S3 object, NotAFileError for a path of a folder
    or the like, OSError where S3 does not answer.
    """
    if not is_s3(location):
        check_is_file(location)
        return location
    file_system, path = _open_s3(location)
    return RangeReader(location, file_system.open_input_file(path))


def check_is_file(location: str) -> None:
    """Raises NotAFileError for a folder, pipe or device: who opens a pipe may wait for ever."""
    if is_s3(location):
        return
    try:
        mode = Path(location).stat().st_mode
    except OSError:
        return  # Whoever opens it says what is wrong.
    if not stat.S_ISREG(mode):
        raise NotAFileError


def open_stream(location: str) -> BinaryIO:
    """A file opened to be read once, from its start. Raises OSError."""
    if is_s3(location):
        file_system, path = _open_s3(location)
        return cast("BinaryIO", file_system.open_input_stream(path))
    return Path(location).open("rb")


def open_random_access(location: str) -> Any:
    """A file opened to be read anywhere, as PyArrow opens it. Raises OSError."""
    if is_s3(location):
        file_system, path = _open_s3(location)
        return file_system.open_input_file(path)
    from pyarrow import fs

    return fs.LocalFileSystem().open_input_file(location)


def is_folder(location: str) -> bool:
    """Whether a location is a folder, or, on S3, the start of keys. Raises OSError."""
    if not is_s3(location):
        return Path(location).is_dir()
    file_system, path = _open_s3(location)
    return bool(file_system.get_file_info(path.rstrip("/")).type.name == "Directory")


def videos_below(folder: str) -> Iterator[str]:
    """The paths, relative to a folder and sorted folder by folder, of the videos below it.

    Links to folders are not followed, which is told. Raises OSError.
    """
    if is_s3(folder):
        from pyarrow import fs

        file_system, path = _open_s3(folder)
        found = file_system.get_file_info(fs.FileSelector(path.rstrip("/"), recursive=True))
        files = (entry.path for entry in found if entry.is_file)
        yield from sorted(filter(_is_video, (posixpath.relpath(file, path) for file in files)))
        return

    def refuse(error: OSError) -> None:
        raise error

    links = 0
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name != LOST_AND_FOUND
        )
        links += sum(os.path.islink(os.path.join(place, name)) for name in folders)  # noqa: PTH114, PTH118
        inner = os.path.relpath(place, folder)
        for name in sorted(filter(_is_video, names)):
            yield name if inner == "." else f"{inner}/{name}"
    if links:
        logger.info("%d links to folders below %s are not followed", links, folder)


def _is_video(path: str) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/"))
    return path.lower().endswith(VIDEO_SUFFIXES) and not hidden


def version(location: str) -> str:
    """A text that changes when the file does, from its size and time or ETag. Raises OSError."""
    if is_s3(location):
        file_system, path = _open_s3(location)
        with file_system.open_input_stream(path) as stream:
            facts = stream.metadata()
        # Not every store has ETags.
        tag: bytes = facts.get("ETag") or facts["Last-Modified"]
        return f"{facts['Content-Length'].decode()} {tag.decode()}"
    status = Path(location).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


class _S3Location(NamedTuple):
    bucket: str
    key: str
    options: str
    """From the question mark on; empty where there are none."""

    def text(self) -> str:
        """What `_parse` makes the same of. The last options count, so a key that ends like options
        is followed by some that say nothing."""
        place = f"{S3_SCHEME}{self.bucket}/{self.key}"
        return place + (self.options or (NO_OPTIONS if _parse(place).options else ""))


def _parse(location: str) -> _S3Location:
    match = _S3_LOCATION.fullmatch(location)
    if match is None:
        raise DataError(f"{location!r} names no S3 bucket; write s3://bucket/key")
    return _S3Location(match["bucket"], match["key"], match["options"] or "")


def fault_of_name(path: str) -> str:
    """Why a path can be no file's name, anywhere; empty where it can."""
    if "\0" in path:
        return "holds a NUL character"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "is not Unicode text"
    return ""


def _resolve_local(root: str, path: str) -> str:
    if is_s3(path):
        raise _outside(root, path)
    folder = os.path.realpath(root)
    location = os.path.realpath(os.path.join(folder, path))  # noqa: PTH118
    if os.path.commonpath((folder, location)) != folder:
        raise _outside(root, path, f" (it leads to {location})")
    return location


def _resolve_s3(root: str, path: str) -> str:
    bucket, prefix, options = _parse(root)
    prefix = prefix.strip("/")
    folder = f"{S3_SCHEME}{bucket}/{prefix}/" if prefix else f"{S3_SCHEME}{bucket}/"
    inner = path.removeprefix(folder)
    if is_s3(inner) or inner.startswith("/") or ".." in inner.split("/"):
        raise _outside(root, path)
    if posixpath.basename(inner) in ("", "."):
        raise _no_name(path, "names no file")
    key = posixpath.normpath(posixpath.join(prefix, inner))
    return _S3Location(bucket, key, options).text()


def _no_name(path: str, fault: str) -> OutsideRootError:
    return OutsideRootError(f"{path!r} {fault}; mend the annotations")


def _outside(root: str, path: str, target: str = "") -> OutsideRootError:
    return OutsideRootError(
        f"{path!r} leaves the data root {root}{target}; "
        "set data.root to a folder that holds all videos"
    )


def _open_s3(location: str) -> tuple[Any, str]:
    """The PyArrow file system of an S3 location, and its path there."""
    bucket, key, text = _parse(location)
    if "@" in bucket or ":" in bucket:
        # Not repeated here: what stands before the @ is a password.
        raise DataError(
            "data.annotations or data.root has credentials in it: give them by AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY, and the location as s3://bucket/key"
        )
    options = dict(option.split("=", 1) for option in text[1:].split("&") if option)
    environment = os.environ.get
    endpoint = options.get("endpoint_override") or (
        environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL") or ""
    )
    named_scheme, _, host = endpoint.rpartition("://")
    scheme = options.get("scheme") or named_scheme or "https"
    region = options.get("region") or (
        environment("AWS_REGION") or environment("AWS_DEFAULT_REGION") or ""
    )
    return _file_system(bucket, host.rstrip("/"), scheme, region), f"{bucket}/{key}"


@lru_cache(maxsize=16)
def _file_system(bucket: str, endpoint: str, scheme: str, region: str) -> Any:
    """A connection to S3, kept for the next video of the same bucket."""
    from pyarrow import fs

    if not region and not endpoint:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        endpoint_override=endpoint or None,
        scheme=scheme,
        region=region or None,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
    )
