"""Training and validation never share a video, nor a frame of the same video."""

import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.decoding.window import span_frames
from data_pipeline.errors import DataError
from data_pipeline.videos import split
from data_pipeline.videos.split import VideoSet, open_videos
from data_pipeline.videos.storage import OutsideRootError
from tests.helpers.data_videos import write_annotations

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    split._open_split.cache_clear()
    yield
    split._open_split.cache_clear()


def names(count: int) -> list[str]:
    return [f"folder/{index:05d}.mp4" for index in range(count)]


def divide(folder: Path, paths: list[str], fraction: float, seed: int) -> tuple[VideoSet, VideoSet]:
    return open_videos(str(write_annotations(folder, paths)), "", fraction, seed)


@pytest.mark.parametrize("count", [2, 3, 24, 1000])
@pytest.mark.parametrize("seed", [0, 1, 12345, 2**70])
def test_every_video_is_on_one_side(tmp_path: Path, count: int, seed: int) -> None:
    training, validation = divide(tmp_path, names(count), 0.1, seed)
    assert len(training) >= 1
    assert len(validation) >= 1
    assert sorted([*training, *validation]) == names(count)
    assert list(training) == sorted(training)
    assert training.span == validation.span == (0.0, 1.0)


@pytest.mark.parametrize("fraction", [1e-12, 1 - 1e-12])
def test_the_draw_leaves_no_side_empty(tmp_path: Path, fraction: float) -> None:
    paths = names(50) + names(50)
    training, validation = divide(tmp_path, paths, fraction, 0)
    # One video, listed twice.
    assert min(len(training), len(validation)) == 2
    assert not set(training) & set(validation)


def test_the_fraction_is_kept_on_the_whole(tmp_path: Path) -> None:
    _, validation = divide(tmp_path, names(5000), 0.1, 0)
    # Three standard deviations of a binomial.
    assert abs(len(validation) - 500) < 3 * (5000 * 0.1 * 0.9) ** 0.5


def test_the_order_of_the_list_plays_no_part_and_the_seed_does(tmp_path: Path) -> None:
    _, validation = divide(tmp_path, names(3000), 0.1, 3)
    _, other_seed = divide(tmp_path, names(3000), 0.1, 4)
    (tmp_path / "reordered").mkdir()
    _, reordered = divide(tmp_path / "reordered", names(3000)[::-1], 0.1, 3)
    assert set(validation) == set(reordered)
    # About a tenth of a tenth is in both: the draws are independent.
    assert 10 < len(set(validation) & set(other_seed)) < 60


def test_videos_that_are_added_move_no_other(tmp_path: Path) -> None:
    _, before = divide(tmp_path, names(300), 0.1, 3)
    training, _ = divide(tmp_path, names(900), 0.1, 3)
    assert not set(before) & set(training)


def test_a_file_listed_twice_stays_on_one_side(tmp_path: Path) -> None:
    paths = [*names(50), *(f"./{name}" for name in names(50))]
    training, validation = divide(tmp_path, paths, 0.2, 0)
    assert not {name.removeprefix("./") for name in training} & {
        name.removeprefix("./") for name in validation
    }


def test_the_batches_of_the_index_play_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [list(side) for side in divide(tmp_path, names(200), 0.2, 5)]
    (tmp_path / "annotations.json.index.arrow").unlink()
    split._open_split.cache_clear()
    monkeypatch.setattr("data_pipeline.videos.index.BATCH_ENTRIES", 7)
    monkeypatch.setattr("data_pipeline.videos.split.BATCH_ENTRIES", 11)
    training, validation = divide(tmp_path, names(200), 0.2, 5)
    assert training.paths.num_chunks > 20
    assert [list(training), list(validation)] == expected


@pytest.mark.parametrize("paths", [["a.mp4"], ["a.mp4", "a.mp4", "./a.mp4"]])
def test_a_lone_video_is_divided_in_time(
    tmp_path: Path, paths: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        training, validation = divide(tmp_path, paths, 0.1, 0)
    assert "only one video (a.mp4)" in caplog.text
    assert "no frame is in both" in caplog.text
    assert list(training) == list(validation) == paths
    for frames in range(1, 500):
        first, middle = span_frames(training.span, frames)
        assert (first, span_frames(validation.span, frames)) == (0, (middle, frames))


def test_relative_paths_start_at_the_root_and_none_leaves_it(tmp_path: Path) -> None:
    file = write_annotations(tmp_path, ["a:b.mp4", "../c.mp4", str(tmp_path / "data/d.mp4")])
    (tmp_path / "data").mkdir()
    for root in ("", str(tmp_path)):
        videos = {
            name: (side, index)
            for side in open_videos(str(file), root, 0.3, 0)
            for index, name in enumerate(side)
        }
        side, index = videos["a:b.mp4"]
        assert side.location(index) == str(tmp_path / "a:b.mp4")
        side, index = videos[str(tmp_path / "data/d.mp4")]
        assert side.location(index) == str(tmp_path / "data/d.mp4")
        side, index = videos["../c.mp4"]
        with pytest.raises(OutsideRootError, match=f"leaves the data root {tmp_path}"):
            side.location(index)


def test_a_missing_root_names_the_key_to_set(tmp_path: Path) -> None:
    file = write_annotations(tmp_path, ["a.mp4"])
    with pytest.raises(DataError, match=r"nowhere does not exist; set data\.root"):
        open_videos(str(file), str(tmp_path / "nowhere"), 0.1, 0)


def test_a_pickled_set_is_a_reference(tmp_path: Path) -> None:
    sides = divide(tmp_path, names(5000), 0.1, 7)
    pickled = pickle.dumps(sides)
    assert len(pickled) < 1000
    expected = [list(side) for side in sides]
    assert [list(side) for side in pickle.loads(pickled)] == expected
    split._open_split.cache_clear()
    again = pickle.loads(pickled)
    assert [list(side) for side in again] == expected
    assert [side.root for side in again] == [str(tmp_path)] * 2
    # The two sides, and all copies in a process, share what is mapped.
    assert again[0].paths is again[1].paths is pickle.loads(pickled)[0].paths


def test_a_pickled_lone_video_keeps_its_span(tmp_path: Path) -> None:
    sides = divide(tmp_path, ["a.mp4"], 0.3, 0)
    assert [side.span for side in sides] == [(0.0, 0.7), (0.7, 1.0)]
    assert [side.span for side in pickle.loads(pickle.dumps(sides))] == [(0.0, 0.7), (0.7, 1.0)]


def test_another_process_in_another_folder_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_annotations(tmp_path, names(100))
    monkeypatch.chdir(tmp_path)
    training, _ = open_videos("annotations.json", ".", 0.1, 7)
    program = (
        "import pickle, sys; videos = pickle.load(sys.stdin.buffer); "
        "print(*[videos.location(index) for index in range(len(videos))])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        input=pickle.dumps(training),
        capture_output=True,
        check=True,
    )
    assert result.stdout.decode().split() == [str(tmp_path / name) for name in training]


def test_a_machine_whose_annotations_list_other_videos_is_told(tmp_path: Path) -> None:
    pickled = pickle.dumps(divide(tmp_path, names(10), 0.1, 7))
    split._open_split.cache_clear()
    # Written otherwise, the same list will do.
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"list": [{"path": name} for name in names(10)]}, indent=1))
    assert len(pickle.loads(pickled)[0]) + len(pickle.loads(pickled)[1]) == 10
    split._open_split.cache_clear()
    write_annotations(tmp_path, names(11))
    with pytest.raises(DataError, match=r"annotations\.json on \S+ lists other videos"):
        pickle.loads(pickled)


def test_a_selection_takes_four_bytes_per_video(tmp_path: Path) -> None:
    for side in divide(tmp_path, names(1000), 0.1, 0):
        assert side.rows is not None
        assert side.rows.dtype == np.int32
        assert len(side.rows) == len(side)
