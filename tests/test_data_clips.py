"""Clips and batches: what is delivered, whatever the workers, restarts and broken files."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.batches import Batch, Samples, iter_batches
from data_pipeline.clips import ClipSource, Rejection, load_clip, open_sources
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.plan import plan_clip
from tests.data_videos import (
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


def test_a_clip_is_uint8_and_contiguous_and_names_its_video(dataset: Path) -> None:
    training, validation = open_sources(small_config(dataset), seed=0)
    for source in (training, validation):
        clip = load_clip(source, 3)
        assert clip.frames.shape == (5, 3, 16, 24)
        assert clip.frames.dtype == np.uint8
        assert clip.frames.flags.c_contiguous
        assert clip.video in set(source.videos)
        assert clip.rejected == ()


def test_the_clip_holds_the_planned_frames(tmp_path: Path) -> None:
    """At the video's own size nothing is scaled, so the frames can be found in the file."""
    path = write_video(tmp_path / "a.mp4", moving_frames(30, 48, 64), gop=7, lossless=True)
    annotations = write_annotations(tmp_path, ["a.mp4"])
    config = small_config(annotations, height=48, width=64)
    training, validation = open_sources(config, seed=0)
    frames = sequential_frames(path)
    for source, span in ((training, range(0, 22)), (validation, range(22, 30))):
        for sample in range(6):
            plan = plan_clip(0, sample, 1, 0, config, augment=False)
            first = span[0] + int(plan.start * (len(span) - 4))
            clip = load_clip(ClipSource(source.videos, config, 0, augment=False), sample)
            expected = np.stack(frames[first : first + 5]).transpose(0, 3, 1, 2).astype(int)
            assert np.abs(clip.frames - expected).mean() < 1.0
            other = np.stack(frames[first + 1 : first + 6] if first < 25 else frames[:5])
            assert np.abs(clip.frames - other.transpose(0, 3, 1, 2).astype(int)).mean() > 2.0


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_batches_are_the_same_for_any_number_of_workers(dataset: Path, workers: int) -> None:
    source, _ = open_sources(small_config(dataset), seed=1)
    alone = by_sample(list(iter_batches(source, iter(rows(range(4), 0, 1)))))
    together: dict[int, tuple[bytes, str]] = {}
    for rank in range(workers):
        part = by_sample(list(iter_batches(source, iter(rows(range(4), rank, workers)))))
        assert not together.keys() & part.keys()
        together |= part
    assert together == alone
    assert list(alone) == list(range(4 * GLOBAL_BATCH))


def test_a_resumed_stream_goes_on_where_it_stopped(dataset: Path) -> None:
    source, _ = open_sources(small_config(dataset), seed=1)
    whole = by_sample(list(iter_batches(source, iter(rows(range(4), 0, 1)))))
    again, _ = open_sources(small_config(dataset), seed=1)
    resumed = by_sample(list(iter_batches(again, iter(rows(range(2, 4), 0, 1)))))
    assert resumed == {n: clip for n, clip in whole.items() if n >= 2 * GLOBAL_BATCH}


def test_surplus_slots_are_zero_and_read_nothing(tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path, ["absent.mp4", "absent_too.mp4"])
    source, _ = open_sources(small_config(annotations), seed=0)
    [batch] = iter_batches(source, iter([np.array([-1, -1])]))
    assert batch["frames"].shape == (2, 5, 3, 16, 24)
    assert not batch["frames"].any()
    assert batch["sample"].tolist() == [-1, -1]
    assert batch["video"] == ["", ""]
    assert batch["rejected"] == []


def test_unusable_videos_are_replaced_and_reported(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset.parent, tmp_path, dirs_exist_ok=True)
    sound, _ = open_sources(small_config(dataset), seed=2)
    source, _ = open_sources(small_config(tmp_path / dataset.name), seed=2)
    absent, corrupt, short = list(source.videos)[:3]
    (tmp_path / absent).unlink()
    (tmp_path / corrupt).write_bytes(b"nothing of a video")
    write_video(tmp_path / short, moving_frames(3))
    reasons = {absent: "missing", corrupt: "cannot be opened", short: "too short: has 3 frames"}

    seen = set()
    for sample in range(3 * len(source.videos)):
        before, after = load_clip(sound, sample), load_clip(source, sample)
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

    [batch] = iter_batches(source, iter([np.arange(len(source.videos), dtype=np.int64)]))
    assert {rejection["video"] for rejection in batch["rejected"]} == set(reasons)


def test_a_clip_that_no_video_can_give_is_an_error(tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path, [f"absent_{k}.mp4" for k in range(80)])
    source, _ = open_sources(small_config(annotations), seed=0)
    with pytest.raises(DataError) as raised:
        load_clip(source, 5)
    message = str(raised.value)
    count = min(len(source.videos), 64)
    assert f"{count} of {count} videos tried are unusable" in message
    assert message.count(": missing") == 3
    assert "data.root" in message
    assert str(tmp_path) in message
