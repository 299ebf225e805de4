"""What the output of decoding is named after its video: each video has its own name, inside of the
output folder.

A name follows from the video's path alone. Where it would be that of several videos, each of them
gets a digest of its path beside it: that depends on which videos there are, not on their order or
their shards.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

MAX_NAME_BYTES = 255
"""Of a file's or folder's name, in all common file systems."""

SUFFIXES = {"mp4": ".mp4", "png": ".frames"}
"""By the form of the output."""

_DIGEST = re.compile(r"~[0-9a-f]{16}(\.|$)")


class UnnamedVideoError(ValueError):
    """A video whose path leads out of the data root, or names nothing."""


@dataclass(frozen=True)
class Names:
    """The names of a set of videos; see `names_of`."""

    root: str
    """Data root that the videos were encoded from."""
    form: str
    """mp4 or png."""
    contested: frozenset[int]
    """Keys of names that several videos would have."""

    def of(self, video: str) -> str:
        """Where the video goes, from the output folder. Raises UnnamedVideoError."""
        name = plain_name(video, self.root, self.form)
        folder, last = posixpath.split(name)
        if _key(name) in self.contested or _needs_digest(last):
            stem = posixpath.basename(_path(video, self.root))
            last = _with_digest(stem, _identity(video), SUFFIXES[self.form])
        return posixpath.join(folder, last)


def names_of(videos: Iterable[str], root: str, form: str) -> Names:
    """Names that tell all of these videos apart, on any file system, also where upper and lower
    case are one. Videos of which one lies in a folder that has the other's name count as sharing
    it.

    Memory is 16 bytes a video. Videos without a name are left out.
    """
    folders = set[str]()

    def keys() -> Iterator[tuple[int, int]]:
        for video in videos:
            try:
                name = plain_name(video, root, form)
            except UnnamedVideoError:
                continue
            folders.add(posixpath.dirname(name))
            yield _key(name), int(_digest(_identity(video)), 16)

    # A video that is listed twice is one video.
    pairs = np.unique(np.fromiter(keys(), np.dtype([("name", np.uint64), ("video", np.uint64)])))
    names = pairs["name"]
    shared = names[1:][names[1:] == names[:-1]]
    folders |= {str(above) for folder in folders for above in PurePosixPath(folder).parents}
    folder_keys = {_key(folder) for folder in folders}
    taken = names[np.isin(names, np.array([*folder_keys], np.uint64))]
    return Names(root, form, frozenset(shared.tolist()) | frozenset(taken.tolist()))


def plain_name(video: str, root: str, form: str) -> str:
    """The name of a video that shares it with no other. Raises UnnamedVideoError."""
    *folders, last = _path(video, root).split("/")
    suffix = SUFFIXES[form]
    named = last if form == "mp4" and last.endswith(suffix) else f"{last}{suffix}"
    return "/".join([*(_with_digest(f, f, "") if _needs_digest(f) else f for f in folders), named])


def _path(video: str, root: str) -> str:
    """Free of `.` and `..`, relative, never empty."""
    path = posixpath.normpath(video.removeprefix("s3://").lstrip("/"))
    if path.startswith("../"):
        # Out of the root and, maybe, in again.
        start = posixpath.join("/", root)
        path = posixpath.relpath(posixpath.normpath(posixpath.join(start, video)), start)
    if path in (".", "..") or path.startswith("../"):
        raise UnnamedVideoError(
            f"{video!r} leads out of the data root {root}: nothing inside of a folder can be named "
            "after it; write the path without '..'"
        )
    return path


def _needs_digest(name: str) -> bool:
    """Whether it is too long, or ends like one that has a digest."""
    return len(name.encode()) > MAX_NAME_BYTES or _DIGEST.search(name) is not None


def _with_digest(stem: str, identity: str, suffix: str) -> str:
    """The stem, cut to what fits, and a digest that tells it apart."""
    tail = f"~{_digest(identity)}{suffix}"
    cut = stem.encode()[: MAX_NAME_BYTES - len(tail)].decode(errors="ignore")
    return cut + tail


def _identity(video: str) -> str:
    """The same for spellings of a path that cannot mean different files, as `a/../b` and `b` can
    where `a` is a link."""
    parts = [part for part in video.split("/") if part not in ("", ".")]
    return ("/" if video.startswith("/") else "") + "/".join(parts)


def _key(name: str) -> int:
    """Equal for names that a file system may take for one: of other case, or composed otherwise."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return int(_digest(folded), 16)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
