"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from taehv.atomic import replacing, write_atomically


def write_half(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("the disk is full")


def test_after_an_error_the_older_file_is_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(OSError, match="full"):
        write_half(path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file.txt": "old"}
    write_atomically(path, "new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file.txt": "new"}
