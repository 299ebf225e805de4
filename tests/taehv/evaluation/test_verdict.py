"""Every limit of the verdict, at it and on both sides of it."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from taehv.evaluation.verdict import Finding, Level, Thresholds, format_verdict, judge, overall
from taehv.losses.reconstruction import LossConfig

GOOD = {"mse": 0.002, "psnr": 30.0, "ssim": 0.95}
BASELINES = {"mean_colour": 14.9, "down_and_up": 24.1}
Row = dict[str, float]


def falling(step: int) -> float:
    return 0.1 * math.exp(-step / 1000)


def run_rows(
    loss: Callable[[int], float] = falling,
    norm: Callable[[int], float] = lambda step: 0.5 + 0.1 * (-1) ** step,
    steps: int = 1500,
    every: int = 1,
) -> list[Row]:
    """The training rows of a run; a healthy one unless told otherwise."""
    return [
        {"step": step, "train/reconstruction_loss": loss(step), "train/gradient_norm": norm(step)}
        for step in range(every, steps + 1, every)
    ]


ROWS = run_rows()


def finding(
    name: str,
    validation: dict[str, float] | None = None,
    rows: list[Row] | None = None,
) -> Finding:
    findings = judge(GOOD | (validation or {}), BASELINES, ROWS if rows is None else rows)
    return {found.name: found for found in findings}[name]


def test_a_good_run_passes_throughout() -> None:
    findings = judge(GOOD, BASELINES, ROWS)
    assert [found.level for found in findings] == ["pass"] * 7
    assert overall(findings) == "pass"


@pytest.mark.parametrize(
    ("name", "key", "figure", "level"),
    [
        ("MSE", "mse", 0.0049, "pass"),
        ("MSE", "mse", 0.005, "warning"),
        ("MSE", "mse", 0.01, "warning"),
        ("MSE", "mse", 0.0101, "failure"),
        ("MSE", "mse", math.nan, "failure"),
        ("PSNR, dB", "psnr", 25.1, "pass"),
        ("PSNR, dB", "psnr", 25.0, "warning"),
        ("PSNR, dB", "psnr", 20.0, "warning"),
        ("PSNR, dB", "psnr", 19.9, "failure"),
        ("PSNR, dB", "psnr", math.inf, "failure"),
        ("SSIM", "ssim", 0.851, "pass"),
        ("SSIM", "ssim", 0.85, "warning"),
        ("SSIM", "ssim", 0.1, "warning"),
        ("SSIM", "ssim", math.nan, "failure"),
        ("PSNR against no network, dB", "psnr", 24.1, "pass"),
        ("PSNR against no network, dB", "psnr", 24.0, "failure"),
        ("PSNR against no network, dB", "psnr", math.nan, "failure"),
    ],
)
def test_limits_of_the_scores(name: str, key: str, figure: float, level: Level) -> None:
    assert finding(name, {key: figure}).level == level


@pytest.mark.parametrize(
    ("psnr", "level"),
    [(28.1, "pass"), (28.0, "pass"), (27.9, "warning"), (24.1, "warning"), (24.0, "failure")],
)
def test_the_linear_limit_stands_above_8x_down_and_up(psnr: float, level: Level) -> None:
    (found,) = [
        found
        for found in judge(GOOD | {"psnr": psnr}, BASELINES | {"linear": 28.0}, ROWS)
        if found.name == "PSNR against no network, dB"
    ]
    assert found.level == level
    assert found.threshold == "linear limit 28.0; failure below 8x down and up 24.1"


@pytest.mark.parametrize("name", [*BASELINES, "linear"])
def test_a_baseline_that_is_no_number_is_not_beaten(name: str) -> None:
    findings = judge(GOOD, BASELINES | {name: math.nan}, ROWS)
    assert {found.name: found.level for found in findings}["PSNR against no network, dB"] == (
        "failure"
    )


@pytest.mark.parametrize(
    ("norm", "level"), [(1.99, "pass"), (2.0, "pass"), (2.01, "warning"), (3.01, "warning")]
)
def test_limits_of_the_gradient_norm(norm: float, level: Level) -> None:
    found = finding("gradient norm", rows=run_rows(norm=lambda _: norm))
    assert found.level == level
    assert found.figure == pytest.approx(norm)
    assert ("UNSTABLE" in found.threshold) == (norm > 3)


@pytest.mark.parametrize(("swing", "level"), [(0.99, "pass"), (1.01, "warning")])
def test_limit_of_the_gradient_norms_spread(swing: float, level: Level) -> None:
    rows = run_rows(norm=lambda step: 1.5 + swing * (-1) ** step)
    found = finding("gradient norm's spread", rows=rows)
    assert found.figure == pytest.approx(swing)
    assert found.level == level


@pytest.mark.parametrize(
    ("reconstruction", "norm", "level"),
    [(1.0, 0.199, "pass"), (1.0, 0.201, "warning"), (50.0, 9.9, "pass"), (50.0, 10.1, "warning")],
)
def test_limits_of_the_gradient_norm_scale_with_the_loss(
    reconstruction: float, norm: float, level: Level
) -> None:
    """As its gradients do: 10 is the weight that the limits are given for."""
    limits = Thresholds().with_gradient_scale(LossConfig(reconstruction).gradient_scale)
    rows = run_rows(norm=lambda step: norm)
    (found,) = [f for f in judge(GOOD, BASELINES, rows, limits) if f.name == "gradient norm"]
    assert found.level == level
    assert ("UNSTABLE" in found.threshold) == (norm > 3 * reconstruction / 10)
    spread = 0.99 * reconstruction / 10
    rows = run_rows(norm=lambda step: (1.5 * reconstruction / 10) + spread * (-1) ** step)
    (found,) = [f for f in judge(GOOD, BASELINES, rows, limits) if "spread" in f.name]
    assert found.level == "pass"


def test_without_a_reconstruction_loss_a_gradient_norm_has_no_limit_but_is_a_number() -> None:
    limits = Thresholds().with_gradient_scale(LossConfig(0.0).gradient_scale)

    def levels(norm: float) -> set[Level]:
        findings = judge(GOOD, BASELINES, run_rows(norm=lambda step: norm), limits)
        return {found.level for found in findings if found.name.startswith("gradient norm")}

    assert levels(1e4) == {"pass"}
    assert levels(math.nan) == {"failure"}


def test_the_gradient_norm_is_judged_by_the_last_thousand_steps() -> None:
    rows = run_rows(norm=lambda step: 50.0 if step <= 500 else 1.0)
    assert finding("gradient norm", rows=rows).figure == 1
    rows = run_rows(norm=lambda step: 50.0 if step <= 501 else 1.0)
    assert finding("gradient norm", rows=rows).figure == pytest.approx(1.049)


def test_a_gradient_norm_that_is_no_number_fails() -> None:
    rows = run_rows(norm=lambda step: math.nan if step == 1400 else 1.0)
    assert finding("gradient norm", rows=rows).level == "failure"
    assert finding("gradient norm's spread", rows=rows).level == "failure"


def test_rows_without_a_gradient_norm_warn() -> None:
    rows = [{"step": 1.0, "val/psnr": 30.0}]
    assert finding("gradient norm", rows=rows).level == "warning"
    assert finding("gradient norm's spread", rows=rows).level == "warning"
    assert finding("reconstruction loss's slope", rows=rows).level == "warning"


def trend(loss: Callable[[int], float], steps: int = 1500, every: int = 1) -> Finding:
    return finding("reconstruction loss's slope", rows=run_rows(loss, steps=steps, every=every))


def test_the_slope_is_that_of_the_moving_average() -> None:
    random = np.random.default_rng(0)
    losses = 0.02 + random.normal(0, 0.001, 1500) - 1e-6 * np.arange(1500)
    # The mean of the 100 losses up to and with each of the last 100 steps, one by one.
    averages = [losses[end - 100 : end].mean() for end in range(1401, 1501)]
    design = np.stack([np.arange(100.0), np.ones(100)], axis=1)
    expected = np.linalg.lstsq(design, np.array(averages))[0][0]

    found = trend(lambda step: float(losses[step - 1]))

    assert found.figure == pytest.approx(expected, rel=1e-6)
    assert found.level == ("pass" if expected < 0 else "warning")


def test_a_straight_line_keeps_its_slope_however_it_is_logged() -> None:
    for every, steps in [(1, 1500), (1, 150), (1, 8), (10, 1500), (100, 1500), (250, 2000)]:
        found = trend(lambda step: 1 - 1e-4 * step, steps, every)
        assert found.figure == pytest.approx(-1e-4)
        assert found.level == "pass"


@pytest.mark.parametrize(
    ("loss", "level"),
    [
        (lambda step: 0.01 - 1e-7 * step, "pass"),
        (lambda step: 0.01, "warning"),
        (lambda step: 0.01 + 1e-7 * step, "warning"),
        # A line from 1 to a: its first and its last average differ by a factor just below a.
        (lambda step: 1 + 0.9 * step / 1500, "warning"),
        (lambda step: 1 + 1.3 * step / 1500, "failure"),
        (lambda step: math.nan if step == 700 else 0.01 - 1e-7 * step, "failure"),
        (lambda step: math.inf if step == 1500 else 0.01 - 1e-7 * step, "failure"),
    ],
)
def test_levels_of_the_trend(loss: Callable[[int], float], level: Level) -> None:
    assert trend(loss).level == level


def test_a_run_that_has_come_down_from_a_peak_has_not_diverged() -> None:
    assert trend(lambda step: 0.01 if step < 500 else 0.1 - 5e-5 * (step - 500)).level == "pass"


def test_too_few_rows_tell_no_trend() -> None:
    found = trend(falling, steps=7)
    assert found.level == "warning"
    assert math.isnan(found.figure)
    assert "too few rows" in found.threshold


def test_other_limits_may_be_set() -> None:
    strict = judge(GOOD, BASELINES, ROWS, Thresholds(psnr_success=35.0))
    assert overall(strict) == "warning"


@pytest.mark.parametrize(
    ("levels", "worst"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "warning", "pass"], "warning"),
        (["failure", "warning", "pass"], "failure"),
    ],
)
def test_overall_is_the_worst(levels: list[Level], worst: Level) -> None:
    assert overall([Finding("x", 1.0, "y", level) for level in levels]) == worst


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(ValueError):
        overall([])
    with pytest.raises(KeyError, match="ssim"):
        judge({"mse": 0.1, "psnr": 10.0}, BASELINES, ROWS)


def test_the_table_is_aligned_and_names_the_worst() -> None:
    findings = judge(GOOD | {"mse": 0.02, "ssim": 0.8}, BASELINES, [])
    lines = format_verdict(findings).splitlines()
    table = [lines[0], *lines[2:-2]]

    assert len(table) == 1 + len(findings)
    column = lines[0].index("verdict")
    assert [line[column:] for line in table[1:]] == [
        found.level if found.level == "pass" else found.level.upper() for found in findings
    ]
    assert all(line[column - 1] == " " for line in table)
    assert lines[-1] == "overall: FAILURE"
    assert all(character.isprintable() for line in lines for character in line)
