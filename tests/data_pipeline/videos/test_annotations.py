"""The annotation file: which paths it lists, and what is said about one that is wrong."""

import json
import logging
from io import BytesIO
from typing import Any

import pytest

from data_pipeline.errors import DataError
from data_pipeline.videos.annotations import stream_paths


def paths(content: Any) -> list[str]:
    text = content if isinstance(content, str) else json.dumps(content)
    return list(stream_paths(BytesIO(text.encode()), "videos.json"))


def test_a_path_is_that_of_the_entry_and_else_its_full_path() -> None:
    entries = [
        {"path": "a.mp4", "frames": 30, "caption": "rain"},
        {"full_path": "/data/b.mp4", "duration": float("nan")},
        {"path": "c/d.mp4", "full_path": "/elsewhere/d.mp4", "tags": [{"path": "x"}]},
        {"path": None, "full_path": "é 🚗.mp4"},
    ]
    expected = ["a.mp4", "/data/b.mp4", "c/d.mp4", "é 🚗.mp4"]
    assert paths({"total": 4, "list": entries}) == expected
    assert paths({"list": entries}) == expected
    other = {"info": {"list": [1], "path": "no"}, "list": entries, "license": None, "total": 4}
    assert paths(json.dumps(other, indent=4)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"list": [}', r"is not JSON: Expecting value at line 1, column 11"),
        ('{"list":\n [{"path": "a"},]}', r"is not JSON: .* at line 2, column 17"),
        ("", r"is not JSON: .* at line 1, column 1"),
        ('{"list": [{"path": "a"}]} {}', r"is not JSON: Extra data at line 1, column 27"),
        ("3", "holds a number at the top"),
        ("null", "holds null at the top"),
        ('{"videos": []}', r"has no key 'list' \(keys: 'videos'\)"),
        ("{}", r"has no key 'list' \(keys: none\)"),
        ('{"list": {"path": "a"}}', "holds an object as 'list'"),
        ('{"list": true}', "holds true or false as 'list'"),
        ('{"total": 0, "list": []}', "lists no videos"),
        ('{"list": [{"path": "a"}], "list": [{"path": "b"}]}', "has the key 'list' twice"),
        ('{"list": [{"path": "a"}, {"video": "b"}]}', r"entry 1 .* neither 'path' nor 'full_path'"),
        ('{"list": ["a.mp4"]}', "entry 0 .* is a text"),
        ('{"list": [{"path": "a"}, null]}', "entry 1 .* is null"),
        ('{"list": [{"path": 7}]}', "entry 0 .* has 7 as 'path'"),
        ('{"list": [{"path": ""}]}', "entry 0 .* has '' as 'path'"),
        ('{"list": [{"path": "\\udcff.mp4"}]}', "entry 0 .* is not Unicode text"),
    ],
)
def test_a_wrong_file_is_told_apart(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        paths(text)
    assert "the annotation file videos.json" in str(raised.value)


def test_a_message_shows_a_few_of_many_keys() -> None:
    with pytest.raises(DataError, match=r"keys: 'k0', 'k1', 'k2', 'k3', 'k4'\)"):
        paths({f"k{index}": {"path": "a.mp4"} for index in range(1000)})


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(DataError, match="is not JSON: byte 10 is not UTF-8"):
        list(stream_paths(BytesIO(b'{"list": "\xff\xfe"}'), "videos.json"))


def test_a_wrong_total_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        entries = [{"path": "a.mp4"}, {"path": "b.mp4"}]
        assert paths({"total": 2, "list": entries}) == ["a.mp4", "b.mp4"]
        assert not caplog.text
        for text in (
            json.dumps({"total": 500, "list": entries}),
            json.dumps({"list": entries, "total": 500}),
        ):
            caplog.clear()
            assert paths(text) == ["a.mp4", "b.mp4"]
            assert "'total' is 500 and lists 2 videos" in caplog.text
