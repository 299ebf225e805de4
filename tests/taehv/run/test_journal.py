"""What is read back of a metrics.jsonl that something happened to."""

from pathlib import Path

import pytest

from taehv.run import journal
from taehv.run.run_folder import RunFolder
from tests.helpers.s3_server import s3_server


@pytest.mark.parametrize("line", ['{"step": 2, "train/lo', "3", '{"loss": 1}', "\x00\x00", "null"])
def test_rows_are_read_up_to_the_first_that_is_none(tmp_path: Path, line: str) -> None:
    file = tmp_path / journal.NAME
    file.write_text('{"step": 0}\n{"step": 1}\n' + line + '\n{"step": 3}\n')
    assert [row["step"] for row in journal.read(file)] == [0, 1]


def test_bytes_that_are_no_text_end_it(tmp_path: Path) -> None:
    file = tmp_path / journal.NAME
    file.write_bytes(b'{"step": 0}\n\xff\xfe{"step": 1}\n')
    assert [row["step"] for row in journal.read(file)] == [0]


def test_rows_that_were_merged_are_not_read_twice() -> None:
    with s3_server() as server:
        server.put("bucket/there", b"")
        run = RunFolder(f"s3://bucket/run{server.options}")
        log = journal.Journal(run, -1)
        for step in range(3):
            log.append({"step": step})
            log.publish()
        # The run dies between the two halves of its last act.
        run.publish(journal.NAME)
        assert len(run.entries(journal.PARTS)) == 3
        assert [row["step"] for row in journal.read_run(run)] == [0, 1, 2]
