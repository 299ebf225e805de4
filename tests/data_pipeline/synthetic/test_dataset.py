"""The synthetic set is made once, the same for the same seed, and is plausible as video."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.batches import iter_batches
from data_pipeline.clips import open_sources
from data_pipeline.config import DataConfig
from data_pipeline.synthetic import SyntheticConfig, dataset, ensure_synthetic
from data_pipeline.synthetic.__main__ import main
from data_pipeline.synthetic.dataset import write_video
from data_pipeline.synthetic.scene import Scene
from tests.helpers.data_videos import sequential_frames

TINY = {"frames": 6, "height": 48, "width": 64}


def test_the_command_writes_a_dataset_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [f"--{name}={value}" for name, value in TINY.items()]
    assert main(["--out", str(tmp_path / "set"), "--videos=3", *sizes]) == 0
    annotations = tmp_path / "set" / "annotations.json"
    assert capsys.readouterr().out == f"{annotations}\n"
    assert json.loads(annotations.read_text())["total"] == 3
    config = DataConfig(annotations=str(annotations), height=32, width=32, num_frames=5)
    for source in open_sources(config, seed=0, batch=2):
        (batch,) = iter_batches(source, iter([np.arange(2)]))
        assert batch["rejected"] == []
        assert min(frames.std() for frames in batch["frames"]) > 10


def test_the_seed_decides_the_frames(tmp_path: Path) -> None:
    config = SyntheticConfig(seed=4, **TINY)
    for name, index in (("a", 0), ("b", 0), ("c", 1)):
        write_video(tmp_path / f"{name}.mp4", index, config)
    first, again, other = (sequential_frames(tmp_path / f"{name}.mp4") for name in "abc")
    assert len(first) == config.frames
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_things_come_nearer() -> None:
    scene = Scene(0, 96, 160, seconds=1.0)
    first, soon, later = (scene.frame(time).astype(float) for time in (0.0, 1 / 24, 1.0))
    moved = np.abs(soon - first).mean()
    assert 0.3 < moved < np.abs(later - first).mean()


def test_the_set_is_made_once_and_reused(tmp_path: Path) -> None:
    annotations = ensure_synthetic(tmp_path / "cache", videos=2, **TINY)
    before = {file: file.stat().st_mtime_ns for file in annotations.parent.iterdir()}
    assert ensure_synthetic(tmp_path / "cache", videos=2, **TINY) == annotations
    assert {file: file.stat().st_mtime_ns for file in annotations.parent.iterdir()} == before
    other = ensure_synthetic(tmp_path / "cache", videos=2, seed=1, **TINY)
    assert other.parent != annotations.parent
    assert {folder.name for folder in (tmp_path / "cache").iterdir()} == {
        annotations.parent.name,
        other.parent.name,
    }


def test_two_at_once_end_with_one_whole_set(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: ensure_synthetic(tmp_path, videos=2, **TINY), range(2)))
    assert made[0] == made[1]
    assert [folder.name for folder in tmp_path.iterdir()] == [made[0].parent.name]
    assert sorted(file.name for file in made[0].parent.iterdir()) == [
        "annotations.json",
        "drive_0000.mp4",
        "drive_0001.mp4",
    ]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, config: SyntheticConfig) -> Path:
        (folder / "half.mp4").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(dataset, "write_synthetic", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure_synthetic(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--videos=0", "--frames=0", "--height=47", "--seed=-1"])
def test_nonsense_is_a_command_line_error(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path), option])
    assert stopped.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err
