"""Which videos an evaluation scores."""

from pathlib import Path

import pytest

from data_pipeline.held_out import choose_videos
from data_pipeline.videos.split import VideoSet, open_videos


@pytest.fixture
def validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VideoSet:
    """Three files, listed three times each: once for each caption."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    names = [f"{name}.mp4" for name in "abc"]
    (tmp_path / "held_out.txt").write_text("\n".join(names * 2 + [f"./{n}" for n in names]))
    (tmp_path / "all.txt").write_text("d.mp4\ne.mp4\n")
    held_out = str(tmp_path / "held_out.txt")
    return open_videos(str(tmp_path / "all.txt"), "", 0.3, 0, validation_annotations=held_out)[1]


def test_a_file_that_is_listed_often_is_scored_once(validation: VideoSet) -> None:
    every, refused = choose_videos(validation, seed=0, limit=0)
    assert sorted(Path(video.location).name for video in every) == ["a.mp4", "b.mp4", "c.mp4"]
    assert [video.number for video in every] == [0, 1, 2]
    assert refused == []
    two, _ = choose_videos(validation, seed=0, limit=2)
    assert two == every[:2]
    others, _ = choose_videos(validation, seed=0, limit=0, first=2, others=two)
    assert others == every[2:]
