"""A run's folder, on a file system or on `s3://`, which programs that write files know nothing of.

Files are written to `local`. For a folder of a file system that is the folder itself, and nothing
more is to be done. For one on S3 it is a folder of this process, and `publish` sends what was
written there, each file whole or not at all. The store and its credentials are those that pyarrow
knows: the environment (AWS_*), or the address (`s3://bucket/run?endpoint_override=host:port`).
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, unquote

from pyarrow import fs

from taehv.credentials import without_credentials
from taehv.errors import TrainingError
from taehv.run.scratch import ScratchFolder

S3_SCHEME = "s3://"

CHUNK_BYTES = 2**22
"""Read and sent at a time."""


def go_on_line(run_dir: str) -> str:
    """What is typed to go on with the run in `run_dir`, quoted for a shell; the run's config.yaml
    says the rest. Empty: of a run that was given no folder."""
    folder = f"--train.run-dir {shlex.quote(run_dir)} " if run_dir else ""
    return f"{folder}--train.resume latest"


class RunFolder:
    """The folder at `address`.

    Every method may raise OSError where the disk or the store refuses.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.is_remote = "://" in address
        if not self.is_remote:
            self.local = Path(address)
            return
        self._store, self._base = _open(address)
        self._scratch = ScratchFolder("taehv_run")
        self.local = self._scratch.path

    def __str__(self) -> str:
        """The address as it may be shown: without credentials."""
        return without_credentials(self.address)

    def __reduce__(self) -> tuple[type[RunFolder], tuple[str]]:
        return RunFolder, (self.address,)

    def address_of(self, name: str) -> str:
        """Where `name` is, for the user to read and for others to open."""
        place, question, options = self.address.partition("?")
        return f"{place.rstrip('/')}/{name}{question}{options}"

    def publish(self, name: str) -> None:
        """Send the file `name` to the store, whole; what fails leaves there what was there."""
        if self.is_remote:
            with (self.local / name).open("rb") as source:
                send(self._store, self._remote(name), source)

    def retrieve(self, name: str) -> Path:
        """The local path of the file or folder `name`, brought from the store where it is.

        What the store does not have is not there afterwards, nor what could not be brought whole.
        """
        path = self.local / name
        if not self.is_remote:
            return path
        _remove(path)
        with tempfile.TemporaryDirectory(dir=self.local, prefix=".unfinished.") as aside:
            for file in self._files(name):
                target = Path(aside, file)
                target.parent.mkdir(parents=True, exist_ok=True)
                with (
                    self._store.open_input_stream(self._remote(file)) as source,
                    target.open("wb") as copy,
                ):
                    shutil.copyfileobj(source, copy, CHUNK_BYTES)
            if Path(aside, name).exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Path(aside, name).rename(path)
        return path

    def entries(self, name: str) -> list[str]:
        """The names, without their folder, of what the folder `name` holds; sorted."""
        if not self.is_remote:
            folder = self.local / name
            return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        selector = fs.FileSelector(self._remote(name), allow_not_found=True)
        return sorted(info.base_name for info in self._store.get_file_info(selector))

    def sizes(self, name: str) -> dict[str, int]:
        """The bytes of each file that the folder `name` holds, by its name there."""
        if not self.is_remote:
            folder = self.local / name
            files = [path for path in folder.rglob("*") if path.is_file()]
            return {str(path.relative_to(folder)): path.stat().st_size for path in files}
        remote = self._remote(name)
        selector = fs.FileSelector(remote, allow_not_found=True, recursive=True)
        found = self._store.get_file_info(selector)
        return {
            info.path[len(remote) + 1 :]: info.size
            for info in found
            if info.type == fs.FileType.File
        }

    def exists(self, name: str) -> bool:
        """Whether there is a file `name`."""
        if not self.is_remote:
            return (self.local / name).is_file()
        return bool(self._store.get_file_info(self._remote(name)).type == fs.FileType.File)

    def move(self, name: str, target: str) -> None:
        """Give the file or folder `name` the name `target`, which nothing has yet."""
        if not self.is_remote:
            (self.local / target).parent.mkdir(parents=True, exist_ok=True)
            (self.local / name).rename(self.local / target)
            return
        # A store renames nothing, and S3 itself copies nothing above 5 GB. What is interrupted has
        # left the original.
        for file in self._files(name):
            copy = target + file.removeprefix(name)
            with self._store.open_input_stream(self._remote(file)) as source:
                send(self._store, self._remote(copy), source)
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove the file or folder `name`, here and in the store, if it is there."""
        _remove(self.local / name)
        if self.is_remote:
            kind = self._store.get_file_info(self._remote(name)).type
            if kind == fs.FileType.Directory:
                self._store.delete_dir(self._remote(name))
            elif kind == fs.FileType.File:
                self._store.delete_file(self._remote(name))

    def _remote(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}".rstrip("/")

    def _files(self, name: str) -> list[str]:
        """All files that `name` is or holds, named from this folder."""
        remote = self._remote(name)
        info = self._store.get_file_info(remote)
        if info.type == fs.FileType.File:
            return [name]
        selector = fs.FileSelector(remote, allow_not_found=True, recursive=True)
        found = self._store.get_file_info(selector)
        return [
            name + "/" + entry.path[len(remote) + 1 :]
            for entry in found
            if entry.type == fs.FileType.File
        ]


def send(store: fs.FileSystem, path: str, source: IO[bytes]) -> None:
    """Make what is left of `source` the file `path` of a store: whole, or not at all.

    Where it fails, in whatever way, a file that was there before is still there as it was. Raises
    OSError where the source or the store does.
    """
    # On S3 nothing is there until the upload is completed. Elsewhere half a file would be.
    aside = path
    if not isinstance(store, fs.S3FileSystem):
        folder, _, name = path.rpartition("/")
        aside = f"{folder}/.{name}.{os.getpid()}"
    target = store.open_output_stream(aside)
    try:
        shutil.copyfileobj(source, target, CHUNK_BYTES)
        target.close()
    except BaseException:
        _abandon(target)
        if aside != path:
            store.delete_file(aside)
        raise
    if aside != path:
        store.move(aside, path)


def _abandon(stream: Any) -> None:
    """Never complete an upload, not even when Python tidies up.

    PyArrow cannot abort one: to close the stream is to complete the upload, and so is to let go of
    it. Kept for the life of the process, it takes the memory of one part (10 MB). To the store the
    upload is like that of a process that was killed; a bucket's rule for incomplete uploads removes
    its parts.
    """
    # A reference in a list would be given up when Python ends.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _open(address: str) -> tuple[fs.FileSystem, str]:
    """The store of an address, and the path there.

    S3 is given up after three tries: PyArrow would repeat every request to a store that does not
    answer for 100 s, while training waits for its last save.

    Raises TrainingError for an option that is not known.
    """
    if not address.startswith(S3_SCHEME):
        found, base = fs.FileSystem.from_uri(address)
        return found, str(base)
    place, _, query = address.removeprefix(S3_SCHEME).partition("?")
    options = dict(parse_qsl(query))
    unknown = options.keys() - {"endpoint_override", "scheme", "region"}
    if unknown:
        raise TrainingError(
            f"{without_credentials(address)}: there is no option {', '.join(sorted(unknown))}; "
            "known: endpoint_override, scheme, region"
        )
    netloc, _, key = place.partition("/")
    credentials, _, bucket = netloc.rpartition("@")
    access_key, _, secret_key = map(unquote, credentials.partition(":"))
    known = [
        options.get("region"),
        os.environ.get("AWS_REGION"),
        os.environ.get("AWS_DEFAULT_REGION"),
    ]
    endpoints = [options.get("endpoint_override"), os.environ.get("AWS_ENDPOINT_URL")]
    if not any(known) and not any(endpoints):
        known = [fs.resolve_s3_region(bucket)]
    store = fs.S3FileSystem(
        access_key=access_key or None,
        secret_key=secret_key or None,
        region=next(filter(None, known), None),
        scheme=options.get("scheme"),
        endpoint_override=options.get("endpoint_override"),
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
    )
    return store, f"{bucket}/{unquote(key)}"
