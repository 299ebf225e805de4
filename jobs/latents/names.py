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
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

MOST_BYTES = 255
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
        if _key(name) in self.contested or _is_taken(last):
            stem = posixpath.basename(_path(video, self.root))
            last = _fitted(stem, _identity(video), SUFFIXES[self.form])
        return posixpath.join(folder, last)


def names_of(videos: Iterable[str], root: str, form: str) -> Names:
    """Names that tell all of these videos apart, on any file system, also where upper and lower
    case are one. Videos of which one lies in a folder that has the other's name count as sharing
    it.

    Memory is 16 bytes a video. Videos without a name are left out.
    """
    found, parents = list[np.ndarray](), set[str]()
    some: list[tuple[int, int]] = []
    for video in videos:
        try:
            name = plain_name(video, root, form)
        except UnnamedVideoError:
            continue
        some.append((_key(name), int(_digest(_identity(video)), 16)))
        parents.add(posixpath.dirname(name))
        if len(some) == 1 << 16:
            found.append(np.array(some, np.uint64))
            some.clear()
    found.append(np.array(some, np.uint64).reshape(-1, 2))
    # A video that is listed twice is one video.
    names = np.unique(np.concatenate(found), axis=0)[:, 0]
    shared = names[1:][names[1:] == names[:-1]]
    folders = {_key(above) for folder in parents for above in _with_parents(folder)}
    kept = np.array(sorted(folders), np.uint64)
    return Names(root, form, frozenset(shared.tolist()) | {*names[np.isin(names, kept)].tolist()})


def plain_name(video: str, root: str, form: str) -> str:
    """The name of a video that shares it with no other. Raises UnnamedVideoError."""
    *folders, last = _path(video, root).split("/")
    suffix = SUFFIXES[form]
    named = last if form == "mp4" and last.endswith(suffix) else f"{last}{suffix}"
    fitting = (_fitted(folder, folder, "") if _is_taken(folder) else folder for folder in folders)
    return "/".join([*fitting, named])


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


def _is_taken(name: str) -> bool:
    """Whether it is too long, or looks like one that has been told apart from others."""
    return len(name.encode()) > MOST_BYTES or _DIGEST.search(name) is not None


def _fitted(stem: str, identity: str, suffix: str) -> str:
    """The stem, cut to what there is room for, and a digest."""
    tail = f"~{_digest(identity)}{suffix}"
    cut = stem.encode()[: MOST_BYTES - len(tail)].decode(errors="ignore")
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


def _with_parents(folder: str) -> Iterable[str]:
    while folder:
        yield folder
        folder = posixpath.dirname(folder)
