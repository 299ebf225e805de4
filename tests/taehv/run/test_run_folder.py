"""A run's folder on S3: what is sent or fetched half-way is never taken for whole."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from jobs.cli.paths import share
from taehv.errors import TrainingError
from taehv.run import run_folder
from taehv.run.run_folder import RunFolder
from tests.helpers.jobs_run import REPOSITORY
from tests.helpers.s3_server import S3Server, s3_server

SMALL, LARGE = 3 * 2**20, 23 * 2**20
"""Bytes: less than a part of an upload, and two parts and a bit."""

OLD = b"what was there before"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def stored(s3: S3Server, path: str) -> bytes | None:
    """The object at bucket/key, asked of the server itself; None where there is none."""
    store = fs.S3FileSystem(endpoint_override=s3.address, scheme="http", region="us-east-1")
    if store.get_file_info(path).type != fs.FileType.File:
        return None
    with store.open_input_stream(path) as stream:
        content: bytes = stream.read()
    return content


def interrupted(work: Callable[[], object], pipe: Path, size: int) -> None:
    """Do work that reads the pipe. Ctrl-C comes once it has read so many bytes of it."""

    def feed() -> None:
        with pipe.open("wb", buffering=0) as end:
            end.write(bytes(size))
            # A signal that comes just before a read begins does not end it; the next one does.
            while not released.wait(0.1):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def once(number: int, frame: object) -> None:
        if not told.is_set():
            told.set()
            raise KeyboardInterrupt

    told, released = threading.Event(), threading.Event()
    before = signal.signal(signal.SIGINT, once)
    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        released.set()
        feeder.join()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_interrupted_sending_leaves_what_was_there(s3: S3Server, size: int) -> None:
    """The old object, or none; the next sending takes its place."""
    s3.put("bucket/run/weights", OLD)
    folder = RunFolder(f"s3://bucket/run{s3.options}")
    for name, before in (("weights", OLD), ("new", None)):
        path = folder.local / name
        os.mkfifo(path)
        interrupted(lambda name=name: folder.publish(name), path, size)  # type: ignore[misc]
        assert stored(s3, f"bucket/run/{name}") == before
        path.unlink()
        path.write_bytes(bytes(size))
        folder.publish(name)
        assert stored(s3, f"bucket/run/{name}") == bytes(size)
        folder.remove(name)


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise"])
def test_the_end_of_the_process_sends_nothing_more(s3: S3Server, ending: str) -> None:
    """However Python ends, it tidies up what is open: not this."""
    s3.put("bucket/ending/weights", OLD)
    program = f"""
import io, sys
from pyarrow import fs
from taehv.run.run_folder import send
class Failing(io.RawIOBase):
    left = {LARGE}
    def readable(self): return True
    def read(self, size):
        if self.left <= 0: raise OSError("the disk is broken")
        self.left -= size
        return bytes(size)
store, path = fs.FileSystem.from_uri("s3://bucket/ending/weights{s3.options}")
try:
    send(store, path, Failing())
except OSError as error:
    print(error)
    {ending or "pass"}
"""
    words = [sys.executable, "-c", program]
    ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "the disk is broken\n", ended.stderr
    assert ended.returncode == {"": 0, "sys.exit(3)": 3, "raise": 1}[ending]
    assert stored(s3, "bucket/ending/weights") == OLD


def test_a_fetch_that_fails_leaves_nothing(s3: S3Server) -> None:
    """The disk takes half of it: there is no file of that name, and none of the folder's."""
    s3.put("bucket/fetched/step/a", b"a")
    s3.put("bucket/fetched/step/weights", bytes(SMALL))
    program = f"""
import resource
from taehv.errors import TrainingError
from taehv.run import run_folder
from taehv.run.run_folder import RunFolder
folder = RunFolder("s3://bucket/fetched{s3.options}")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for name in ("step/weights", "step"):
    resource.setrlimit(resource.RLIMIT_FSIZE, ({SMALL // 2}, hard))
    try:
        folder.retrieve(name)
    except OSError as error:
        print(error.strerror)
    print([file.name for file in folder.local.rglob("*") if not file.name.startswith(".in_use")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(sorted(file.name for file in folder.retrieve("step").iterdir()))
    folder.retrieve("absent")
    __import__("shutil").rmtree(folder.local / "step")
"""
    words = [sys.executable, "-c", program]
    ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    told = ended.stdout.splitlines()
    assert told == ["File too large", "[]", "['a', 'weights']"] * 2, ended.stderr


@pytest.mark.parametrize("place", ["s3", "folder"])
def test_a_set_is_whole_where_its_annotations_are(s3: S3Server, tmp_path: Path, place: str) -> None:
    """Interrupted in the middle of any of its files, the sharing is done again."""
    made = tmp_path / "set"
    made.mkdir()
    storage = f"s3://bucket/shared{s3.options}" if place == "s3" else str(tmp_path / "shared")
    content = {"a.mp4": b"video", "annotations.json": b'{"list": [{"path": "a.mp4"}]}'}
    for name in content:
        for file, held in content.items():
            (made / file).unlink(missing_ok=True)
            (made / file).write_bytes(held)
        (made / name).unlink()
        os.mkfifo(made / name)
        interrupted(lambda: share(made, storage), made / name, SMALL)
        (made / name).unlink()
        (made / name).write_bytes(content[name])
    share(made, storage)
    for name, held in content.items():
        if place == "s3":
            assert stored(s3, f"bucket/shared/data/set/{name}") == held
        else:
            assert (tmp_path / "shared" / "data" / "set" / name).read_bytes() == held


LOOPBACK = "endpoint_override=127.0.0.1:9&scheme=http"


@pytest.mark.parametrize(
    "address",
    [
        f"s3://bucket/runs/a?{LOOPBACK}",
        f"s3://bucket/with%20space/a+b?{LOOPBACK}&region=eu-west-3",
        f"s3://KEY:with%2Fslash@bucket/a?{LOOPBACK}",
        f"s3://bucket?{LOOPBACK}",
    ],
)
def test_an_address_is_read_as_pyarrow_reads_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the patience that is asked of the store."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    (ours, path), (theirs, their_path) = run_folder._open(address), fs.FileSystem.from_uri(address)
    assert path.rstrip("/") == their_path.rstrip("/")
    _, (said,) = ours.__reduce__()
    _, (expected,) = theirs.__reduce__()
    # An empty token is none.
    assert {k: v or None for k, v in said.items()} == {k: v or None for k, v in expected.items()}


def test_an_option_of_an_address_that_is_not_known_is_named() -> None:
    with pytest.raises(TrainingError, match="there is no option endpoint_overide; known: endpoint"):
        RunFolder("s3://bucket/runs/a?endpoint_overide=127.0.0.1:9")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_environment_names_the_store(
    name: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the nodes of a cluster whose store is not at AWS."""
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, f"http://{s3.address}/")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    folder = RunFolder("s3://bucket/by_environment")
    (folder.local / "config.yaml").write_text("data: {}")
    folder.publish("config.yaml")
    assert stored(s3, "bucket/by_environment/config.yaml") == b"data: {}"
    assert RunFolder("s3://bucket/by_environment").exists("config.yaml")
