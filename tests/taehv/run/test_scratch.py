"""Temporary folders go with their process, or with the next one."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from taehv.run.scratch import ScratchFolder
from tests.helpers.jobs_run import REPOSITORY

HOLD = """
import sys
from taehv.run.scratch import ScratchFolder
folder = ScratchFolder("scratch_test")
(folder.path / "large").write_text("x")
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def hold() -> tuple["subprocess.Popen[str]", Path]:
    """A process with such a folder, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_killed_process_folder_goes_with_the_next_and_a_living_ones_stays() -> None:
    (killed, abandoned), (living, held) = hold(), hold()
    killed.kill()
    killed.wait()
    assert (abandoned / "large").exists()
    other_kind = ScratchFolder("another_kind")
    assert abandoned.exists()
    ours = ScratchFolder("scratch_test")
    assert not abandoned.exists()
    assert (held / "large").exists()
    assert other_kind.path.is_dir()
    living.communicate("")
    assert living.returncode == 0
    assert not held.exists()
    ours.remove()
    ours.remove()
    assert not ours.path.exists()


def test_a_folder_goes_with_its_object() -> None:
    folder = ScratchFolder("scratch_test")
    path = folder.path
    assert path.is_dir()
    del folder
    assert not path.exists()
