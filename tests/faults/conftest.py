"""The setting of the long forms, and the table at the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import record
from tests.faults.bare_setting import Setting, bare_setting


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    with bare_setting(tmp_path) as made:
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = record.table()
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)
    record.write_table()
