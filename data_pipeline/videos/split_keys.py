"""What decides on which side of a split a video is: its file, or the drive that it is of."""

import hashlib
import os
import posixpath
import re
from functools import lru_cache

from data_pipeline.videos.storage import is_s3, without_options


def path_hash(path: str) -> bytes:
    """Eight bytes that stand for a path, whatever dots it is written with; the same everywhere."""
    return hashlib.blake2b(posixpath.normpath(path).encode(), digest_size=8).digest()


def place_hash(root: str, path: str) -> bytes:
    """Eight bytes that stand for the file that a path of a list means, through links to folders, by
    which `storage.resolve` goes as well. root: without options."""
    if is_s3(path) or is_s3(root):
        return path_hash(path if is_s3(path) else posixpath.join(root, path))
    folder, name = posixpath.split(posixpath.join(root, path))
    return path_hash(f"{_real_folder(folder)}/{name}")


@lru_cache(maxsize=1 << 16)
def _real_folder(folder: str) -> str:
    # Cached, since millions of videos lie in few folders.
    return os.path.realpath(folder)


class SplitKeys:
    """The keys of the entries of one list, which come in its order.

    A file may be listed as `a.mp4`, as `./a.mp4` and by its full path: all have the key of the path
    as the first entry of the list is written, relative to the root or full.
    """

    def __init__(self, root: str, split_by: str) -> None:
        """split_by: as `data.split_by`, which has been checked."""
        self.root = without_options(root).rstrip("/")
        self.split_by = split_by
        self._levels = int(split_by) if split_by.isdecimal() else 0
        self._pattern = re.compile(split_by) if split_by and not self._levels else None
        self._first_is_full: bool | None = None

    def file(self, path: str) -> str:
        """The path, as it would be written like the first one."""
        is_full = path.startswith("/") or is_s3(path)
        if self._first_is_full is None:
            self._first_is_full = is_full
        if is_full == self._first_is_full:
            return path
        return path.removeprefix(f"{self.root}/") if is_full else f"{self.root}/{path}"

    def key(self, path: str) -> str:
        """What decides on the side of an entry."""
        file = self.file(path)
        return self.key_of(file, self.group(file)) if self.split_by else file

    @staticmethod
    def key_of(file: str, group: str | None) -> str:
        """The same of an entry whose file and group are known: a file without a group is one of its
        own, and never the group of that name."""
        return file if group is None else f"drive:/{group}"

    def group(self, file: str) -> str | None:
        """What `split_by` names the drive of a file; None where it says nothing of it.

        file: what `file` gave.
        """
        if self._pattern is not None:
            match = self._pattern.search(file)
            if match is None:
                return None
            return match[1] if self._pattern.groups else match[0]
        # Of an S3 location this makes one slash of two, on both sides.
        inner = posixpath.normpath(file).removeprefix(f"{posixpath.normpath(self.root)}/")
        folders = inner.split("/")[:-1]
        return "/".join(folders[: self._levels]) if len(folders) >= self._levels else None
