"""Hostile lists: what each path comes to. None is read elsewhere, and none ends a run."""

import os
import random
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.decoding.video_file import VideoFile
from data_pipeline.errors import UnusableVideoError
from data_pipeline.videos import storage
from data_pipeline.videos.storage import OutsideRootError, resolve
from tests.helpers.data_videos import moving_frames, write_video
from tests.helpers.s3_server import S3Server, s3_server

FRAMES = 5

OPENED = "opened"
"""As the file or the object of just that name, inside of the root."""

LEAVES, MISSING, NO_FILE = "leaves the data root", "^missing$", "is no file but a folder, a pipe"

TABLE = [
    # Path; what it comes to in a folder; what it comes to on S3.
    ("x.mp4?endpoint_override=HOST&scheme=http", OPENED, OPENED),
    ("x.mp4?scheme=http&endpoint_override=HOST", OPENED, OPENED),
    ("x.mp4?region=", OPENED, OPENED),
    ("x.mp4?endpoint_override=HOST&scheme=http?region=eu-west-1", OPENED, OPENED),
    ("x.mp4#?endpoint_override=HOST&scheme=http", OPENED, OPENED),
    ("x?versionId=1&x=%2F.mp4", OPENED, OPENED),
    ("%2e%2e/x.mp4", OPENED, OPENED),
    ("..%2fx.mp4", OPENED, OPENED),
    ("..\\x.mp4", OPENED, OPENED),
    ("straße nach Köln/日本 🚗+&=;,.mp4", OPENED, OPENED),
    ("escape \x1b[31m tab\t.mp4", OPENED, OPENED),
    # The tests' own server has no keys of two lines.
    ("new\nline.mp4", OPENED, MISSING),
    ("-i", OPENED, OPENED),
    ("concat:x.mp4|y.mp4", OPENED, OPENED),
    ("crypto+file:x.mp4", OPENED, OPENED),
    ("subfile,,start,0,end,9,,:x.mp4", OPENED, OPENED),
    ("pipe:0", MISSING, MISSING),
    ("http://HOST/x.mp4", MISSING, MISSING),
    ("tcp://HOST", MISSING, MISSING),
    ("rtmp://HOST/live", MISSING, MISSING),
    ("file:///etc/passwd", MISSING, MISSING),
    ("~/x.mp4", MISSING, MISSING),
    ("$HOME/x.mp4", MISSING, MISSING),
    ("../x.mp4", LEAVES, LEAVES),
    ("a/../../x.mp4", LEAVES, LEAVES),
    ("/etc/passwd", LEAVES, LEAVES),
    ("/dev/zero", LEAVES, LEAVES),
    ("//HOST/x.mp4", LEAVES, LEAVES),
    ("s3://other/x.mp4", LEAVES, LEAVES),
    ("s3://HOST/data/x.mp4", LEAVES, LEAVES),
    ("s3://bucket?endpoint_override=HOST&scheme=http", LEAVES, LEAVES),
    ("s3://bucket/data/x.mp4?endpoint_override=HOST&scheme=http", LEAVES, OPENED),
    ("nul\0.mp4", "holds a NUL character", "holds a NUL character"),
    ("half \ud800.mp4", "is not Unicode text", "is not Unicode text"),
    ("n" * 10_000 + ".mp4", "File name too long", MISSING),
    ("", NO_FILE, "names no file"),
    (".", NO_FILE, "names no file"),
    ("folder.mp4", NO_FILE, MISSING),
    ("folder.mp4/", NO_FILE, "names no file"),
    ("pipe.mp4", NO_FILE, MISSING),
]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("video") / "v.mp4"
    return write_video(file, moving_frames(FRAMES)).read_bytes()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


class Elsewhere:
    """A port that nobody has any business at."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.visits: list[bytes] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                visitor, _ = self._socket.accept()
            except OSError:
                return
            with visitor:
                self.visits.append(visitor.recv(100))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    port = Elsewhere()
    yield port
    port.close()


def check(root: str, path: str, expected: str) -> None:
    try:
        with VideoFile(resolve(root, path)) as file:
            found = OPENED if file.num_frames == FRAMES else "another video"
    except (UnusableVideoError, OutsideRootError) as error:
        found = str(error)
    assert re.search(expected, found), found[:300]


@pytest.mark.parametrize(("path", "expected"), [row[:2] for row in TABLE])
def test_in_a_folder(
    path: str, expected: str, video: bytes, tmp_path: Path, elsewhere: Elsewhere
) -> None:
    path = path.replace("HOST", elsewhere.host)
    root = tmp_path / "bucket" / "data"
    (root / "folder.mp4").mkdir(parents=True)
    os.mkfifo(root / "pipe.mp4")
    (root.parent / "x.mp4").write_bytes(video)
    if expected == OPENED:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(video)
    check(str(root), path, expected)
    assert not elsewhere.visits


@pytest.mark.parametrize("named", ["by the root", "by the environment"])
@pytest.mark.parametrize(("path", "expected"), [(row[0], row[2]) for row in TABLE])
def test_on_s3(
    path: str,
    expected: str,
    named: str,
    video: bytes,
    s3: S3Server,
    elsewhere: Elsewhere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever the user names the server that the root is on."""
    path = path.replace("HOST", elsewhere.host)
    for key in ("x.mp4", "data", "data/folder.mp4/x"):
        s3.put(f"bucket/{key}", b"no video")
    if expected == OPENED:
        s3.put("bucket/data/" + path.removeprefix("s3://bucket/data/"), video)
    options = s3.options
    if named == "by the environment":
        options = ""
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3.address}")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
    check(f"s3://bucket/data{options}", path, expected)
    assert not elsewhere.visits


def test_every_key_is_told_from_options() -> None:
    """Of keys made of all that has a meaning in a location."""
    pieces = ["?", "&", "=", "#", "%3F", "endpoint_override=h", "scheme=http", "region=", "a", ":"]
    draw = random.Random(0)
    for options in ("", "?region=eu-west-1", "?endpoint_override=there&scheme=http"):
        for _ in range(3000):
            key = "".join(draw.choices(pieces, k=draw.randint(1, 9)))
            found = storage._parse(resolve(f"s3://bucket/data{options}", key))
            assert (found.bucket, found.key) == ("bucket", f"data/{key}")
            assert found.options in (options, options or storage.NO_OPTIONS)
