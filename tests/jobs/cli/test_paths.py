"""The place that all nodes of a cluster share."""

import json
from pathlib import Path

import pytest
from pyarrow import fs

from jobs.cli.paths import placed, share
from tests.helpers.s3_server import s3_server


@pytest.mark.parametrize(
    ("path", "storage", "place"),
    [
        ("runs/a", "s3://b/taehv", "s3://b/taehv/runs/a"),
        ("runs/a", "s3://b?scheme=http", "s3://b/runs/a?scheme=http"),
        ("runs/a", "/shared/", "/shared/runs/a"),
        ("/runs/a", "s3://b", "/runs/a"),
        ("s3://c/a", "s3://b", "s3://c/a"),
    ],
)
def test_relative_paths_are_placed(path: str, storage: str, place: str) -> None:
    assert placed(path, storage) == place


def make_set(folder: Path) -> Path:
    folder.mkdir()
    (folder / "annotations.json").write_text(json.dumps({"total": 1, "list": [{"path": "a.mp4"}]}))
    (folder / "a.mp4").write_bytes(b"video")
    return folder


def test_a_set_is_copied_once(tmp_path: Path) -> None:
    made = make_set(tmp_path / "set")
    annotations = share(made, str(tmp_path / "shared"))
    assert annotations == str(tmp_path / "shared" / "data" / "set" / "annotations.json")
    copy = tmp_path / "shared" / "data" / "set" / "a.mp4"
    assert copy.read_bytes() == b"video"
    copy.write_bytes(b"as it was")
    assert share(made, str(tmp_path / "shared")) == annotations
    assert copy.read_bytes() == b"as it was"


def test_a_copy_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    made = make_set(tmp_path / "set")
    half = tmp_path / "shared" / "data" / "set"
    half.mkdir(parents=True)
    (half / "a.mp4").write_bytes(b"vi")
    share(made, str(tmp_path / "shared"))
    assert (half / "a.mp4").read_bytes() == b"video"


def test_on_s3(tmp_path: Path) -> None:
    with s3_server() as server:
        server.put("bucket/there", b"")
        annotations = share(make_set(tmp_path / "set"), f"s3://bucket/taehv{server.options}")
        store, path = fs.FileSystem.from_uri(annotations)
        assert path == "bucket/taehv/data/set/annotations.json"
        with store.open_input_stream("bucket/taehv/data/set/a.mp4") as stream:
            assert stream.read() == b"video"
