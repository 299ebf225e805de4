"""A run's folder, on a file system or on `s3://`, with the same methods for both.

Files are written to `local`. On a file system that is the run's folder itself. For S3 it is a
temporary folder of this process, and `publish` uploads what was written there, each file as a whole
or not at all. PyArrow finds the store and its credentials in the environment (AWS_*) or in the
address (`s3://bucket/run?endpoint_override=host:port`).
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
"""Bytes per read and write of a copy."""


def resume_options(run_dir: str) -> str:
    """The options that resume the run in `run_dir`, quoted for a shell; all other settings are in
    the run's config.yaml. `run_dir` is empty if the user named no folder; its credentials, which
    no log is to hold, are to be given again, or by the environment."""
    folder = f"--train.run-dir {shlex.quote(without_credentials(run_dir))} " if run_dir else ""
    return f"{folder}--train.resume latest"


class RunFolder:
    """The folder at `address`.

    Every method may raise OSError if the disk or the store fails.
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
        """The address without credentials."""
        return without_credentials(self.address)

    def __reduce__(self) -> tuple[type[RunFolder], tuple[str]]:
        return RunFolder, (self.address,)

    def address_of(self, name: str) -> str:
        """The address of `name`, for messages and for other programs."""
        place, question, options = self.address.partition("?")
        return f"{place.rstrip('/')}/{name}{question}{options}"

    def publish(self, name: str) -> None:
        """Upload the file `name` to the store; a failure leaves an older version unchanged."""
        if self.is_remote:
            with (self.local / name).open("rb") as source:
                send(self._store, self._remote(name), source)

    def retrieve(self, name: str) -> Path:
        """The local path of the file or folder `name`, downloaded if the folder is on a store.

        If the store does not have it, or the download fails, nothing exists at that path.
        """
        path = self.local / name
        if not self.is_remote:
            return path
        _remove(path)
        with tempfile.TemporaryDirectory(dir=self.local, prefix=".unfinished.") as temporary:
            for file in self._files(name):
                target = Path(temporary, file)
                target.parent.mkdir(parents=True, exist_ok=True)
                with (
                    self._store.open_input_stream(self._remote(file)) as source,
                    target.open("wb") as copy,
                ):
                    shutil.copyfileobj(source, copy, CHUNK_BYTES)
            if Path(temporary, name).exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Path(temporary, name).rename(path)
        return path

    def entries(self, name: str) -> list[str]:
        """The sorted names, without their folder, of the entries of the folder `name`."""
        if not self.is_remote:
            folder = self.local / name
            return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        selector = fs.FileSelector(self._remote(name), allow_not_found=True)
        return sorted(info.base_name for info in self._store.get_file_info(selector))

    def sizes(self, name: str) -> dict[str, int]:
        """The bytes of each file in the folder `name`, by its path there."""
        if not self.is_remote:
            folder = self.local / name
            files = [path for path in folder.rglob("*") if path.is_file()]
            return {str(path.relative_to(folder)): path.stat().st_size for path in files}
        remote = self._remote(name)
        selector = fs.FileSelector(remote, allow_not_found=True, recursive=True)
        found = self._store.get_file_info(selector)
        stored = [info for info in found if info.type == fs.FileType.File]
        return {info.path[len(remote) + 1 :]: info.size for info in stored}

    def exists(self, name: str) -> bool:
        """Whether there is a file `name`."""
        if not self.is_remote:
            return (self.local / name).is_file()
        return bool(self._store.get_file_info(self._remote(name)).type == fs.FileType.File)

    def move(self, name: str, target: str) -> None:
        """Rename the file or folder `name` to `target`, which must not exist yet."""
        if not self.is_remote:
            (self.local / target).parent.mkdir(parents=True, exist_ok=True)
            (self.local / name).rename(self.local / target)
            return
        # A store cannot rename, and S3 copies no object above 5 GB on its side. An interruption
        # leaves the original.
        for file in self._files(name):
            copy = target + file.removeprefix(name)
            with self._store.open_input_stream(self._remote(file)) as source:
                send(self._store, self._remote(copy), source)
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove the file or folder `name`, locally and on the store, if it exists."""
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
        """`name` itself if it is a file, else all files in it, as paths in this folder."""
        return [name] if self.exists(name) else [f"{name}/{file}" for file in self.sizes(name)]


def send(store: fs.FileSystem, path: str, source: IO[bytes]) -> None:
    """Copy the rest of `source` to the file `path` of a store, as a whole or not at all.

    After any failure an older file of that name is unchanged. Raises OSError where the source or
    the store does.
    """
    # On S3 an object appears when its upload is completed. Elsewhere half a file would be visible.
    temporary = path
    if not isinstance(store, fs.S3FileSystem):
        folder, _, name = path.rpartition("/")
        temporary = f"{folder}/.{name}.{os.getpid()}"
    target = store.open_output_stream(temporary)
    try:
        shutil.copyfileobj(source, target, CHUNK_BYTES)
        target.close()
    except BaseException:
        _abandon(target)
        if temporary != path:
            store.delete_file(temporary)
        raise
    if temporary != path:
        store.move(temporary, path)


def _abandon(stream: Any) -> None:
    """Keep an upload from ever being completed, even by the interpreter's exit.

    PyArrow cannot abort an upload: both closing its stream and freeing it complete the upload. So
    the stream is kept until the process ends, with the memory of one part (10 MB). For the store
    that is like a killed process; a bucket's rule for incomplete uploads removes the parts.
    """
    # The interpreter's exit would clear a reference in a list.
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
    environment = os.environ
    region = (
        options.get("region")
        or environment.get("AWS_REGION")
        or environment.get("AWS_DEFAULT_REGION")
    )
    # PyArrow reads these two for an address that it parses itself, and not here.
    endpoint = (
        options.get("endpoint_override")
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or ""
    )
    scheme, _, host = endpoint.rpartition("://")
    if not region and not endpoint:
        region = fs.resolve_s3_region(bucket)
    store = fs.S3FileSystem(
        access_key=access_key or None,
        secret_key=secret_key or None,
        region=region or None,
        scheme=options.get("scheme") or scheme or None,
        endpoint_override=host.rstrip("/") or None,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
    )
    return store, f"{bucket}/{unquote(key)}"
