"""The list of unusable videos, over the lives of a run."""

import json
from pathlib import Path

import pytest

from taehv.interfaces import RejectedVideo
from taehv.run.quarantine import NAME, Quarantine
from taehv.run.run_folder import RunFolder


def test_a_later_life_knows_what_is_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(str(tmp_path))
    a, b, c = (RejectedVideo(video=name, reason="missing") for name in ("a", "b", "c"))
    assert Quarantine(run).add([a, b, a]) == [a, b]
    later = Quarantine(run)
    assert len(later) == 2
    assert later.add([b, c]) == [c]
    lines = (tmp_path / NAME).read_text().splitlines()
    assert [json.loads(line)["video"] for line in lines] == ["a", "b", "c"]

    (tmp_path / NAME).write_text("\n".join([*lines, '{"vid']))
    assert len(Quarantine(run)) == 3
    assert "not that of a video" in caplog.text
