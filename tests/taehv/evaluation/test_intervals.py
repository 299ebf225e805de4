"""Intervals: known quantiles, how often they hold the truth, and what a comparison says."""

import math

import numpy as np
import pytest

from taehv.evaluation.compare import FEWEST_VIDEOS, Difference, compare
from taehv.evaluation.intervals import bootstrap, t_quantile
from taehv.evaluation.metrics import psnr_of


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423), (99, 1.9842)],
)
def test_quantiles_of_students_t(freedom: int, quantile: float) -> None:
    """Values of printed tables, at 97.5 %."""
    assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-4)


@pytest.mark.parametrize(("videos", "least"), [(6, 0.9), (20, 0.91), (50, 0.92)])
def test_the_interval_holds_the_truth_as_often_as_it_says(videos: int, least: float) -> None:
    """Clips of one video share its mean: an interval over clips would hold it far less often."""
    random, held, trials = np.random.default_rng(0), 0, 300
    for trial in range(trials):
        means = random.normal(25, 3, size=videos)
        groups = [random.normal(mean, 0.5, size=4).tolist() for mean in means]
        found = bootstrap(groups, seed=trial)
        held += found.low <= 25 <= found.high
    assert least <= held / trials <= 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    groups = np.random.default_rng(0).normal(size=(8, 3)).tolist()
    assert bootstrap(groups, 1) == bootstrap(groups, 1)
    assert bootstrap(groups, 1) != bootstrap(groups, 2)


def test_the_mean_is_over_clips_and_missing_values_are_left_out() -> None:
    found = bootstrap([[1.0, 2.0, 6.0, None], [None], [3.0]])
    assert found.mean == 3
    assert found.low <= 3 <= found.high
    assert found.clips == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_a_number_is_not_left_out(value: float) -> None:
    found = bootstrap([[1.0, 2.0], [value, 3.0], [4.0]])
    assert np.isnan([found.mean, found.low, found.high]).all()
    assert found.clips == 5


def test_one_video_has_no_interval() -> None:
    found = bootstrap([[1.0, 3.0]])
    assert found.mean == 2
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(bootstrap([[None]]).mean)
    assert np.isnan(bootstrap([]).mean)


def test_a_pooled_figure_is_pooled_in_every_resample() -> None:
    """PSNR of the mean MSE, against resampling by hand."""
    random = np.random.default_rng(0)
    mse = random.uniform(1e-4, 1e-2, size=(9, 3))
    found = bootstrap([[(value,) for value in video] for video in mse], 5, psnr_of)
    assert found.mean == pytest.approx(-10 * math.log10(mse.mean()))
    drawn = np.random.default_rng(5).integers(9, size=(2000, 9))
    by_hand = np.sort([-10 * math.log10(mse[videos].mean()) for videos in drawn])
    assert found.low in by_hand or by_hand[0] < found.low < by_hand[100]
    assert by_hand[-100] < found.high <= by_hand[-1]
    assert found.low < -10 * math.log10(mse.mean()) < found.high


def test_the_pooled_psnr_is_compared_and_not_the_mean_over_clips() -> None:
    """Of every video, a flat clip that ours makes 20 dB better, and one it makes 1 dB worse."""
    mine = [[10.0**-6, 10.0**-2.0] for _ in range(8)]
    other = [[10.0**-4, 10.0**-2.1] for _ in range(8)]

    def clips(values: list[list[float]]) -> list[list[dict[str, float]]]:
        return [[{"mse": m, "psnr": -10 * math.log10(m)} for m in video] for video in values]

    found = by_metric(clips(mine), clips(other))
    pooled = -10 * math.log10(np.mean(mine)) + 10 * math.log10(np.mean(other))
    assert found["psnr"].mean == pytest.approx(pooled)
    assert (found["psnr"].outcome, found["psnr_mean"].outcome) == ("worse", "better")
    assert found["psnr_mean"].mean == pytest.approx(9.5)


def scored(psnr: list[float], sharpness: float = 0.5) -> list[list[dict[str, float]]]:
    return [
        [{"psnr": p + k, "mse": 10 ** (-(p + k) / 10), "sharpness": sharpness} for k in range(2)]
        for p in psnr
    ]


def outcomes(ours: list[float], theirs: list[float]) -> dict[str, str]:
    return {d.metric: d.outcome for d in compare(scored(ours), scored(theirs))}


def test_better_worse_and_no_difference_shown() -> None:
    random = np.random.default_rng(0)
    videos = random.normal(25, 5, size=12)
    # Far less than the videos differ among each other: only the pairing shows it.
    better = (videos + random.normal(0.3, 0.1, size=12)).tolist()
    same = (videos + random.normal(0.0, 0.1, size=12)).tolist()
    assert outcomes(better, videos.tolist())["psnr"] == "better"
    assert outcomes(better, videos.tolist())["mse"] == "better"
    assert outcomes(videos.tolist(), better)["psnr"] == "worse"
    assert outcomes(same, videos.tolist())["psnr"] == "no difference shown"


def test_few_videos_show_nothing() -> None:
    few = [20.0 + k for k in range(FEWEST_VIDEOS - 1)]
    assert set(outcomes([p + 3 for p in few], few).values()) == {"no difference shown"}
    enough = [*few, 30.0]
    assert outcomes([p + 3 for p in enough], enough)["psnr"] == "better"


def test_sharpness_is_compared_by_its_distance_from_one() -> None:
    psnr = [25.0] * 8
    ours, theirs = scored(psnr, 0.9), scored(psnr, 1.3)
    found = {d.metric: d for d in compare(ours, theirs)}["sharpness"]
    assert found.outcome == "better"
    assert found.mean == pytest.approx(-0.2)


def with_flicker(videos: dict[int, float], psnr: float = 25.0) -> list[list[dict[str, float]]]:
    """Eight videos of one clip each, of which these have flicker, and the others lack it."""
    return [[{"psnr": psnr + k, "mse": 0.01, "flicker": videos.get(k, math.nan)}] for k in range(8)]


def by_metric(
    ours: list[list[dict[str, float]]], theirs: list[list[dict[str, float]]]
) -> dict[str, Difference]:
    return {found.metric: found for found in compare(ours, theirs)}


def test_what_is_compared_does_not_hang_on_the_first_clip() -> None:
    """The first two of eight clips lack flicker; in the others ours is lower by 0.01."""
    ours = with_flicker({k: 0.02 + 0.001 * k for k in range(2, 8)})
    theirs = with_flicker({k: 0.03 + 0.001 * k for k in range(1, 8)})
    found = by_metric(ours, theirs)["flicker"]
    assert found.mean == pytest.approx(-0.01)
    assert (found.outcome, found.pairs) == ("better", 6)
    assert found.note == "6 of 8 clips have it"
    # Turned about, the last clips lack it: nothing but the sign is another.
    other = by_metric(ours[::-1], theirs[::-1])["flicker"]
    assert (other.outcome, other.pairs, other.note) == (found.outcome, found.pairs, found.note)


def test_videos_without_a_score_do_not_count_towards_the_fewest() -> None:
    few = range(FEWEST_VIDEOS - 1)
    found = by_metric(with_flicker(dict.fromkeys(few, 0.01)), with_flicker(dict.fromkeys(few, 0.5)))
    assert found["flicker"].outcome == "no difference shown"


def test_a_score_that_no_clip_has_is_said_to_be_not_compared() -> None:
    found = by_metric(with_flicker({}), with_flicker({}))["flicker"]
    assert math.isnan(found.mean)
    assert (found.outcome, found.pairs) == ("not compared", 0)
    assert found.note.startswith("no clip has it")


@pytest.mark.parametrize("place", [0, 7])
def test_a_broken_clip_is_never_left_out_of_a_comparison(place: int) -> None:
    """Of a reconstruction that is not a number, flicker is broken too, rather than missing."""
    ours = with_flicker(dict.fromkeys(range(8), 0.02))
    theirs = with_flicker(dict.fromkeys(range(8), 0.03))
    ours[place][0] = dict.fromkeys(ours[place][0], math.nan)
    for found in by_metric(ours, theirs).values():
        assert math.isnan(found.mean)
        assert found.outcome == "not compared"
        assert found.note == "not a number in 1 of 8 clips"


def test_nothing_is_compared_where_there_is_no_clip() -> None:
    assert compare([], []) == []
