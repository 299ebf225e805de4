"""Training and validation never share a video, nor a frame of the same video."""

import logging

import pyarrow as pa
import pytest

from data_pipeline.annotations import SCHEMA
from data_pipeline.split import span_frames, split_videos


def table_of(paths: list[str]) -> pa.Table:
    schema = SCHEMA.with_metadata({"root": "/data"})
    return pa.table({"path": paths, "frames": [None] * len(paths)}, schema=schema)


def names(count: int) -> list[str]:
    return [f"folder/{index:05d}.mp4" for index in range(count)]


@pytest.mark.parametrize("count", [2, 3, 24, 1000])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_every_video_is_on_one_side(count: int, seed: int) -> None:
    training, validation = split_videos(table_of(names(count)), 0.1, seed)
    assert len(training) >= 1
    assert len(validation) >= 1
    assert sorted([*training, *validation]) == names(count)
    assert training.span == validation.span == (0.0, 1.0)


def test_the_fraction_is_kept_on_the_whole() -> None:
    _, validation = split_videos(table_of(names(5000)), 0.1, 0)
    # Three standard deviations of a binomial.
    assert abs(len(validation) - 500) < 3 * (5000 * 0.1 * 0.9) ** 0.5


def test_the_order_of_the_list_plays_no_part_and_the_seed_does() -> None:
    paths = names(300)
    _, validation = split_videos(table_of(paths), 0.1, 3)
    _, reordered = split_videos(table_of(paths[::-1]), 0.1, 3)
    _, other_seed = split_videos(table_of(paths), 0.1, 4)
    assert set(validation) == set(reordered)
    assert set(validation) != set(other_seed)


def test_videos_that_are_added_move_no_other() -> None:
    _, before = split_videos(table_of(names(300)), 0.1, 3)
    training, _ = split_videos(table_of(names(900)), 0.1, 3)
    assert not set(before) & set(training)


def test_a_file_listed_twice_stays_on_one_side() -> None:
    paths = [*names(50), *(f"./{name}" for name in names(50))]
    training, validation = split_videos(table_of(paths), 0.2, 0)
    assert not {name.removeprefix("./") for name in training} & {
        name.removeprefix("./") for name in validation
    }


@pytest.mark.parametrize("paths", [["a.mp4"], ["a.mp4", "a.mp4", "./a.mp4"]])
def test_a_lone_video_is_divided_in_time(
    paths: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        training, validation = split_videos(table_of(paths), 0.1, 0)
    assert "only one video (a.mp4)" in caplog.text
    assert "no frame is in both" in caplog.text
    assert list(training) == list(validation) == paths
    for frames in range(1, 500):
        first, middle = span_frames(training.span, frames)
        assert (first, span_frames(validation.span, frames)) == (0, (middle, frames))


def test_relative_paths_start_at_the_root_and_full_ones_do_not() -> None:
    training, _ = split_videos(table_of(["a:b.mp4"]), 0.1, 0)
    assert training.location(0) == "/data/a:b.mp4"
    training, _ = split_videos(table_of(["/elsewhere/c.mp4"]), 0.1, 0)
    assert training.location(0) == "/elsewhere/c.mp4"
