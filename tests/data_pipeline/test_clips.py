"""Clips and batches: what is delivered, whatever the workers, restarts and broken files."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.batches import Batch, Samples, iter_batches
from data_pipeline.clips import (
    ClipSource,
    Rejection,
    TransientFailure,
    Window,
    WindowTask,
    load_window,
    open_sources,
)
from data_pipeline.config import DataConfig
from data_pipeline.decoding.sandbox import TimedOutError
from data_pipeline.decoding.window import WindowClips, WindowRequest, read_window
from data_pipeline.errors import DataError
from tests.helpers.data_videos import (
    moving_frames,
    sequential_frames,
    write_annotations,
    write_dataset,
    write_video,
)

GLOBAL_BATCH = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), count=8)


def small_config(annotations: Path, **changes: object) -> DataConfig:
    settings: dict[str, object] = {"height": 16, "width": 24, "num_frames": 5}
    settings["validation_fraction"] = 0.25
    return DataConfig(annotations=str(annotations), **(settings | changes))  # type: ignore[arg-type]


def rows(steps: range, rank: int, workers: int) -> list[Samples]:
    """The samples of one worker: slots are dealt out in turn, and padded to the same number."""
    per_worker = -(-GLOBAL_BATCH // workers)
    schedule = []
    for step in steps:
        slots = np.arange(rank * per_worker, (rank + 1) * per_worker, dtype=np.int64)
        schedule.append(np.where(slots < GLOBAL_BATCH, step * GLOBAL_BATCH + slots, -1))
    return schedule


def by_sample(batches: list[Batch]) -> dict[int, tuple[bytes, str]]:
    return {
        sample: (frames.tobytes(), video)
        for batch in batches
        for sample, frames, video in zip(
            batch["sample"].tolist(), batch["frames"], batch["video"], strict=True
        )
        if sample != -1
    }


def load(source: ClipSource, sample: int) -> Window:
    """The window of a sample, with that clip alone."""
    place = source.order.locate(sample)
    return load_window(source, WindowTask(place.window, (place.clip,), (sample,)), read_window)


def test_a_clip_is_uint8_and_contiguous_and_names_its_video(dataset: Path) -> None:
    for source in open_sources(small_config(dataset), 0, GLOBAL_BATCH):
        window = load(source, 3)
        assert window.frames.shape == (1, 5, 3, 16, 24)
        assert window.frames.dtype == np.uint8
        assert window.frames.flags.c_contiguous
        assert window.video in {source.videos.name(k) for k in range(len(source.videos))}
        assert window.samples == (3,)
        assert window.rejected == ()
        assert window.transient_failures == ()
        assert window.decoded >= 5


def test_the_clips_of_a_window_are_the_same_read_together_or_alone(dataset: Path) -> None:
    source, _ = open_sources(small_config(dataset), 0, GLOBAL_BATCH)
    key = source.order.locate(0).window
    together = load_window(source, WindowTask(key, (0, 1, 2, 3), (0, 1, 2, 3)), read_window)
    for clip in range(4):
        alone = load_window(source, WindowTask(key, (clip,), (clip,)), read_window)
        np.testing.assert_array_equal(alone.frames[0], together.frames[clip])
    assert len({frames.tobytes() for frames in together.frames}) == 4
    assert together.decoded <= source.order.window_frames + 12


def test_the_clip_holds_the_planned_frames(tmp_path: Path) -> None:
    """At the video's own size nothing is scaled, so the frames can be found in the file."""
    path = write_video(tmp_path / "a.mp4", moving_frames(30, 48, 64), gop=7, lossless=True)
    annotations = write_annotations(tmp_path, ["a.mp4"])
    config = small_config(annotations, height=48, width=64)
    training, validation = open_sources(config, 0, GLOBAL_BATCH)
    frames = sequential_frames(path)
    for videos, span in ((training.videos, range(0, 22)), (validation.videos, range(22, 30))):
        plain = ClipSource(videos, dataclasses.replace(validation.order))
        for sample in range(6):
            start = plain.order.window(plain.order.locate(sample).window, 0).start
            first = span[0] + int(start * (len(span) - 4))
            clip = load(plain, sample).frames[0]
            expected = np.stack(frames[first : first + 5]).transpose(0, 3, 1, 2).astype(int)
            assert np.abs(clip - expected).mean() < 1.0
            other = np.stack(frames[first + 1 : first + 6] if first < 25 else frames[:5])
            assert np.abs(clip - other.transpose(0, 3, 1, 2).astype(int)).mean() > 2.0


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_batches_are_the_same_for_any_number_of_workers(dataset: Path, workers: int) -> None:
    source, _ = open_sources(small_config(dataset), 1, GLOBAL_BATCH)
    alone = by_sample(list(iter_batches(source, iter(rows(range(4), 0, 1)))))
    together: dict[int, tuple[bytes, str]] = {}
    for rank in range(workers):
        part = by_sample(list(iter_batches(source, iter(rows(range(4), rank, workers)))))
        assert not together.keys() & part.keys()
        together |= part
    assert together == alone
    assert list(alone) == list(range(4 * GLOBAL_BATCH))


def test_a_resumed_stream_goes_on_where_it_stopped(dataset: Path) -> None:
    source, _ = open_sources(small_config(dataset), 1, GLOBAL_BATCH)
    whole = by_sample(list(iter_batches(source, iter(rows(range(4), 0, 1)))))
    again, _ = open_sources(small_config(dataset), 1, GLOBAL_BATCH)
    resumed = by_sample(list(iter_batches(again, iter(rows(range(2, 4), 0, 1)))))
    assert resumed == {n: clip for n, clip in whole.items() if n >= 2 * GLOBAL_BATCH}


def test_surplus_slots_are_zero_and_read_nothing(tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path, ["absent.mp4", "absent_too.mp4"])
    source, _ = open_sources(small_config(annotations), 0, GLOBAL_BATCH)
    [batch] = iter_batches(source, iter([np.array([-1, -1])]))
    assert batch["frames"].shape == (2, 5, 3, 16, 24)
    assert not batch["frames"].any()
    assert batch["sample"].tolist() == [-1, -1]
    assert batch["video"] == ["", ""]
    assert batch["rejected"] == []


def test_unusable_videos_are_replaced_and_reported(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset.parent, tmp_path, dirs_exist_ok=True)
    sound, _ = open_sources(small_config(dataset), 2, GLOBAL_BATCH)
    source, _ = open_sources(small_config(tmp_path / dataset.name), 2, GLOBAL_BATCH)
    absent, corrupt, short = (source.videos.name(k) for k in range(3))
    (tmp_path / absent).unlink()
    (tmp_path / corrupt).write_bytes(b"nothing of a video")
    write_video(tmp_path / short, moving_frames(3))
    reasons = {absent: "missing", corrupt: "cannot be opened", short: "too short: has 3 frames"}

    seen = set()
    for sample in range(5 * len(source.videos)):
        before, after = load(sound, sample), load(source, sample)
        assert after.video not in reasons
        if before.video in reasons:
            assert after.rejected[0].video == before.video
            seen.add(before.video)
        else:
            # What was learned about one video moves no other sample.
            assert after.rejected == ()
            np.testing.assert_array_equal(before.frames, after.frames)
        for rejection in after.rejected:
            assert isinstance(rejection, Rejection)
            assert rejection.reason.startswith(reasons[rejection.video])
    assert seen == set(reasons)

    [batch] = iter_batches(source, iter([np.arange(40, dtype=np.int64)]))
    assert {rejection["video"] for rejection in batch["rejected"]} == set(reasons)


def test_a_clip_that_no_video_can_give_is_an_error(tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path, [f"absent_{k}.mp4" for k in range(80)])
    source, _ = open_sources(small_config(annotations), 0, GLOBAL_BATCH)
    with pytest.raises(DataError) as raised:
        load(source, 5)
    message = str(raised.value)
    count = min(len(source.videos), 64)
    assert f"{count} of {count} videos tried are unusable" in message
    assert message.count(": missing") == 3
    assert "data.root" in message
    assert str(tmp_path) in message


def test_a_time_out_is_a_verdict_that_is_not_tried_again(dataset: Path) -> None:
    source, _ = open_sources(small_config(dataset), 2, GLOBAL_BATCH)
    place = source.order.locate(0)
    task = WindowTask(place.window, (place.clip,), (0,))
    slow = source.videos.location(source.order.window(place.window, 0).video)
    tried: list[str] = []

    def read(request: WindowRequest) -> WindowClips:
        tried.append(request.location)
        if request.location == slow and len(tried) == 1:
            raise TimedOutError("no clip after 60 s")
        return read_window(request)

    first = load_window(source, task, read)
    assert first.transient_failures == ((*place.window, 0),)
    assert first.rejected[0].reason == "no clip after 60 s"
    # The next life of the run: the video would be quick enough now, and is not asked.
    failures: frozenset[TransientFailure] = frozenset(first.transient_failures)
    again = load_window(dataclasses.replace(source, transient_failures=failures), task, read)
    assert tried == [slow, tried[1], tried[1]]
    assert again.video == first.video
    assert again.transient_failures == first.transient_failures
    np.testing.assert_array_equal(again.frames, first.frames)
