"""The sample order is a pure function, and each epoch takes each clip of each window once."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.crops import NATIVE
from data_pipeline.plan import CENTRE, ClipPlan, Place, SampleOrder, WindowPlan, visiting_order


def sample_order(
    videos: int = 24, clips: int = 4, batch: int = 4, seed: int = 0, augment: bool = True
) -> SampleOrder:
    config = DataConfig(clips_per_window=clips, crops="0.8-1.0")
    return SampleOrder(seed, videos, batch, config, augment)


def plan(order: SampleOrder, sample: int) -> tuple[WindowPlan, ClipPlan]:
    place = order.locate(sample)
    return order.window(place.window, 0), order.clip(place, 0)


SIZES = [(1, 1, 1), (1, 4, 4), (2, 3, 8), (7, 4, 4), (24, 4, 4), (150, 1, 4), (333, 5, 3)]


@pytest.mark.parametrize(("videos", "clips", "batch"), SIZES)
def test_each_epoch_takes_each_clip_of_each_window_once(
    videos: int, clips: int, batch: int
) -> None:
    order = sample_order(videos, clips, batch)
    size = order.epoch_samples
    for epoch in (0, 1, 7):
        places = [order.locate(epoch * size + i) for i in range(size)]
        assert {place.window.epoch for place in places} == {epoch}
        taken = {(place.window.position, place.clip) for place in places}
        assert taken == {(w, c) for w in range(order.epoch_windows) for c in range(clips)}
        assert len(places) == len(taken)


@pytest.mark.parametrize(("videos", "clips", "batch"), SIZES)
def test_each_epoch_visits_each_video_equally_often(videos: int, clips: int, batch: int) -> None:
    order = sample_order(videos, clips, batch)
    for epoch in (0, 3):
        first = epoch * order.epoch_samples
        windows = {order.locate(first + i).window for i in range(order.epoch_samples)}
        visits = [order.window(window, 0).video for window in windows if window.epoch == epoch]
        assert (
            np.bincount(visits, minlength=videos).tolist()
            == [order.epoch_windows // videos] * videos
        )


def test_few_videos_still_fill_a_group() -> None:
    assert sample_order(videos=1, batch=4).epoch_windows == 64
    assert sample_order(videos=10**6, batch=4).epoch_windows == 10**6


def test_a_step_takes_one_clip_of_a_window() -> None:
    """Always, but in the last group of an epoch; there, seldom."""
    order = sample_order(videos=1000, clips=4, batch=8)
    whole = (order.epoch_windows // order.group_windows - 1) * order.group_windows
    repeats = 0
    for first in range(0, 3 * order.epoch_samples, 8):
        windows = [order.locate(first + slot).window for slot in range(8)]
        if all(window.position < whole for window in windows):
            assert len(set(windows)) == 8
        repeats += 8 - len(set(windows))
    assert repeats / (3 * order.epoch_samples) < 0.005


def test_the_clips_of_a_window_fall_into_one_slot_at_different_steps() -> None:
    order = sample_order(videos=1024, clips=4, batch=8)
    samples: dict[tuple[int, int], list[int]] = {}
    for sample in range(order.epoch_samples):
        samples.setdefault(order.locate(sample).window, []).append(sample)
    for found in samples.values():
        assert len({sample % 8 for sample in found}) == 1
        assert len({sample // 8 for sample in found}) == 4
    gaps = np.concatenate([np.diff(sorted(found)) for found in samples.values()]) / 8
    assert 12 < gaps.mean() < 20


def test_the_videos_of_a_step_do_not_meet_again_in_the_next_round() -> None:
    order = sample_order(videos=1024, clips=4, batch=8)
    step = order.group_windows // 8
    together = [{order.locate(k * 8 + slot).window for slot in range(8)} for k in range(4 * step)]
    met = [len(together[0] & later) for later in together[step:]]
    assert max(met) < 5


def test_large_clips_make_small_groups() -> None:
    large = DataConfig(height=480, width=720, num_frames=49)
    assert SampleOrder(0, 1000, 8, large, augment=True).group_windows == 8


def test_rounds_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(visiting_order(seed, visiting_round, 500)(i) for i in range(500))
        for seed in range(3)
        for visiting_round in range(3)
    }
    assert len(orders) == 9


def test_the_order_looks_random() -> None:
    order = np.array([visiting_order(0, 0, 10_000)(i) for i in range(10_000)])
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.04
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.04


def test_millions_of_videos_cost_no_memory() -> None:
    order = visiting_order(5, 2, 8_000_000)
    reached = [order(i) for i in range(0, 8_000_000, 8_000)]
    assert len(set(reached)) == len(reached)
    assert all(0 <= video < 8_000_000 for video in reached)


def test_a_plan_depends_on_nothing_that_was_asked_before() -> None:
    forward = [plan(sample_order(), sample) for sample in range(60)]
    visiting_order.cache_clear()
    backward = [plan(sample_order(), sample) for sample in reversed(range(60))]
    assert forward == backward[::-1]


def test_replacements_try_every_video_once_and_draw_anew() -> None:
    for videos in (1, 2, 7, 64):
        order = sample_order(videos)
        for sample in (0, 3, videos, 5 * videos + 1):
            key = order.locate(sample).window
            plans = [order.window(key, attempt) for attempt in range(videos)]
            assert sorted(p.video for p in plans) == list(range(videos))
            assert len({p.start for p in plans}) == videos


def test_draws_fill_their_ranges() -> None:
    plans = [plan(sample_order(videos=500), sample) for sample in range(2000)]
    assert len({window.start for window, _ in plans}) == 500
    for name, low, high in (
        ("offset", 0.0, 1.0),
        ("crop", 0.8, 1.0),
        ("crop_x", 0.0, 1.0),
        ("crop_y", 0.0, 1.0),
        ("brightness", 0.9, 1.1),
        ("contrast", 0.9, 1.1),
        ("saturation", 0.9, 1.1),
        ("hue", -0.05, 0.05),
    ):
        drawn = [getattr(clip, name) for _, clip in plans]
        values = np.array([getattr(value, "value", value) for value in drawn])
        assert low <= values.min() < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < values.max() <= high, name
        assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low), name
    assert {clip.step for _, clip in plans} == {1, 2, 3}
    assert 0.45 < np.mean([clip.flip for _, clip in plans]) < 0.55


def test_the_draws_of_neighbours_are_unrelated() -> None:
    order = sample_order(videos=500)
    for offsets in (
        [order.clip(Place(order.locate(n).window, 0), 0).offset for n in range(2000)],
        [order.clip(Place(order.locate(0).window, n), 0).offset for n in range(2000)],
    ):
        values = np.unique(offsets)
        shuffled = [offsets[0], *[b for a, b in itertools.pairwise(offsets) if a != b]]
        assert len(values) >= 250
        assert abs(np.corrcoef(shuffled[1:], shuffled[:-1])[0, 1]) < 0.08


def test_a_window_is_as_long_as_its_clips_together_and_holds_the_longest() -> None:
    config = DataConfig(num_frames=12, max_frame_step=3, clips_per_window=1)
    assert SampleOrder(0, 5, 4, config, augment=True).window_frames == 34
    config = DataConfig(num_frames=12, max_frame_step=3, clips_per_window=4)
    assert SampleOrder(0, 5, 4, config, augment=True).window_frames == 48
    assert SampleOrder(0, 5, 4, config, augment=False).window_frames == 12


def test_validation_is_plain_and_spreads_its_starts_and_places() -> None:
    order = sample_order(videos=1, augment=False)
    windows, clips = zip(*[plan(order, sample) for sample in range(100)], strict=True)
    assert windows[0::2] == windows[1::2]
    assert set(clips[1::2]) == {CENTRE}
    native = clips[0::2]
    assert {replace(clip, crop_x=0.5, crop_y=0.5) for clip in native} == {
        replace(CENTRE, crop=NATIVE)
    }
    for values, largest_gap in (
        ([window.start for window in windows[0::2]], 0.04),
        ([clip.crop_x for clip in native], 0.09),
        ([clip.crop_y for clip in native], 0.09),
    ):
        # Even spacing would be 0.02; random values leave gaps of 0.1.
        assert np.diff(np.sort(values), prepend=0, append=1).max() < largest_gap
    # Every ninth of the frame, in every third of the video, has its turn.
    cells = {
        (int(3 * window.start), int(3 * clip.crop_x), int(3 * clip.crop_y))
        for window, clip in ([plan(order, 2 * visit) for visit in range(200)])
    }
    assert len(cells) == 27


def test_validation_is_the_same_for_every_batch_and_training_setting() -> None:
    orders = [
        SampleOrder(3, 7, batch, DataConfig(clips_per_window=clips, crops=crops), augment=False)
        for batch, clips, crops in ((1, 4, "mixed"), (8, 1, "native"), (6, 2, "0.8-1.0"))
    ]
    plans = [[plan(order, sample) for sample in range(60)] for order in orders]
    assert plans[0] == plans[1] == plans[2]
