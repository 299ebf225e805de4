"""The setting of the long forms, and the table at the end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import record
from tests.faults.bare_setting import Setting, bare_setting
from tests.faults.job import make_videos, undisturbed


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    with bare_setting(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What jobs through Ray train on."""
    return make_videos(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="session")
def reference(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a job that nothing happened to."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    undisturbed(videos, run)
    return run


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist hands over what its tests have noted."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = record.trials()


def pytest_testnodedown(node: Any) -> None:
    """... and the one that prints the table takes it."""
    record.add(getattr(node, "workeroutput", {}).get("faults", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = record.table()
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)
    record.write_table()
