"""The sample order is a pure function, and each epoch visits each video once."""

import dataclasses

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.plan import ClipPlan, plan_clip, visiting_order

CONFIG = DataConfig()


def plan(sample: int, videos: int = 24, attempt: int = 0, seed: int = 0) -> ClipPlan:
    return plan_clip(seed, sample, videos, attempt, CONFIG, augment=True)


@pytest.mark.parametrize("videos", [1, 2, 3, 5, 16, 17, 24, 500])
def test_each_epoch_visits_each_video_once(videos: int) -> None:
    for epoch in (0, 1, 7):
        visited = [plan(epoch * videos + i, videos).video for i in range(videos)]
        assert sorted(visited) == list(range(videos))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(visiting_order(seed, epoch, 500)(i) for i in range(500))
        for seed in range(3)
        for epoch in range(3)
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
    forward = [plan(sample) for sample in range(60)]
    visiting_order.cache_clear()
    backward = [plan(sample) for sample in reversed(range(60))]
    assert forward == backward[::-1]


def test_replacements_try_every_video_once_and_draw_anew() -> None:
    for videos in (1, 2, 7, 64):
        for sample in (0, 3, videos, 5 * videos + 1):
            plans = [plan(sample, videos, attempt) for attempt in range(videos)]
            assert sorted(p.video for p in plans) == list(range(videos))
            assert len({p.start for p in plans}) == videos


def test_draws_fill_their_ranges() -> None:
    plans = [plan(sample) for sample in range(2000)]
    for name, low, high in (
        ("start", 0.0, 1.0),
        ("crop_scale", 0.8, 1.0),
        ("crop_x", 0.0, 1.0),
        ("crop_y", 0.0, 1.0),
        ("brightness", 0.9, 1.1),
        ("contrast", 0.9, 1.1),
        ("saturation", 0.9, 1.1),
        ("hue", -0.05, 0.05),
    ):
        values = np.array([getattr(p, name) for p in plans])
        assert low <= values.min() < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < values.max() <= high, name
        assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low), name
    assert {p.step for p in plans} == {1, 2, 3}
    assert 0.45 < np.mean([p.flip for p in plans]) < 0.55


def test_the_draws_of_neighbouring_samples_are_unrelated() -> None:
    starts = np.array([plan(sample).start for sample in range(2000)])
    assert abs(np.corrcoef(starts[1:], starts[:-1])[0, 1]) < 0.06


def test_validation_is_plain_and_spreads_its_starts() -> None:
    plans = [plan_clip(0, sample, 1, 0, CONFIG, augment=False) for sample in range(50)]
    plain = ClipPlan(0, 0.0, step=1, crop_scale=1.0, crop_x=0.5, crop_y=0.5)
    assert {dataclasses.replace(p, start=0.0) for p in plans} == {plain}
    starts = np.sort([p.start for p in plans])
    # Even spacing would be 0.02; random starts leave gaps of 0.1.
    assert np.diff(starts, prepend=0, append=1).max() < 0.04
