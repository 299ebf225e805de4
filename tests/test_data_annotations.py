"""The annotation file: what is read, and what is said about one that cannot be read."""

import json
import logging
from pathlib import Path

import pytest

from data_pipeline.annotations import read_annotations
from data_pipeline.errors import DataError
from tests.data_videos import write_annotations


def test_paths_hints_and_root(tmp_path: Path) -> None:
    file = tmp_path / "annotations.json"
    entries = [
        {"path": "a.mp4", "frames": 30, "caption": "rain"},
        {"full_path": "/data/b.mp4", "duration": 2.0},
        {"path": "c/d.mp4", "full_path": "/elsewhere/d.mp4", "frames": "many"},
    ]
    file.write_text(json.dumps({"total": 3, "list": entries}))
    table = read_annotations(str(file))
    assert table.column("path").to_pylist() == ["a.mp4", "/data/b.mp4", "c/d.mp4"]
    assert table.column("frames").to_pylist() == [30, None, None]
    assert table.schema.metadata[b"root"].decode() == str(tmp_path)


def test_no_video_is_touched(tmp_path: Path) -> None:
    table = read_annotations(str(write_annotations(tmp_path, ["absent.mp4"])))
    assert table.num_rows == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"list": [}', r"is not JSON: .* at line 1, column 11"),
        ('{"list":\n [{"path": "a"},]}', r"is not JSON: .* at line 2, column \d+"),
        ("", r"is not JSON: .* at line 1, column 1"),
        ('["a.mp4"]', r"holds a list at the top; expected \{\"total\""),
        ("3", "holds a number at the top"),
        ('{"videos": []}', r"has no key 'list' \(keys: 'videos'\)"),
        ('{"list": {"path": "a"}}', "holds an object as 'list'"),
        ('{"total": 0, "list": []}', "lists no videos"),
        ('{"list": [{"path": "a"}, {"video": "b"}]}', r"entry 1 .* neither 'path' nor 'full_path'"),
        ('{"list": ["a.mp4"]}', "entry 0 .* is a text"),
        ('{"list": [{"path": 7}]}', "entry 0 .* has 7 as 'path'"),
        ('{"list": [{"path": ""}]}', "entry 0 .* has '' as 'path'"),
    ],
)
def test_a_wrong_file_is_told_apart(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "annotations.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        read_annotations(str(file))
    assert str(file) in str(raised.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "annotations.json"
    file.write_bytes(b'{"list": "\xff\xfe"}')
    with pytest.raises(DataError, match="byte 10 is not UTF-8"):
        read_annotations(str(file))


def test_missing_file_and_folder_name_the_key_to_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json does not exist; set data\.annotations"):
        read_annotations(str(tmp_path / "absent.json"))
    with pytest.raises(DataError, match="cannot be read"):
        read_annotations(str(tmp_path))
    file = write_annotations(tmp_path, ["a.mp4"])
    with pytest.raises(DataError, match=r"nowhere does not exist; set data\.root"):
        read_annotations(str(file), str(tmp_path / "nowhere"))


def test_a_wrong_total_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_annotations(tmp_path, ["a.mp4", "b.mp4"], total=500)
    with caplog.at_level(logging.WARNING):
        assert read_annotations(str(file)).num_rows == 2
    assert "'total' is 500 and lists 2 videos" in caplog.text
