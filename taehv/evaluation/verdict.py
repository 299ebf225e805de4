"""The verdict on a finished run: its figures against the limits its users judge by.

`judge` compares, `overall` takes the worst, `format_verdict` prints. Every finding is one of
"pass", "warning" and "failure":

- MSE, PSNR: pass on the success side of its limit, failure beyond the failure limit, warning
  between the two.
- SSIM: pass on the success side, else warning. It has no failure limit, since a reconstruction bad
  enough to fail by it fails by PSNR.
- gradient norm, and its spread: warning beyond the limit, never failure: an unstable run may still
  end well, and then the other figures say so.
- reconstruction loss: pass while its moving average falls, warning where it stagnates or is too
  short to tell, failure where it diverges.
- against what needs no network: failure below 8x down and up (or the mean colour), warning below
  the linear limit (see `taehv.evaluation.linear`), where there is one.

A figure that is not finite is a failure, whatever it measures. Speed, and the comparison with the
teacher, are judged in `taehv.evaluation.judgement`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from taehv.text_table import text_table

Level = Literal["pass", "warning", "failure"]
LEVELS: tuple[Level, ...] = ("pass", "warning", "failure")

FEWEST_ROWS = 4
"""A slope is taken over no fewer logged rows than this."""


@dataclass(frozen=True)
class Thresholds:
    """The limits. Those of the gradient norm hold at the default loss weights; for a run with
    others they are multiplied (see `with_gradient_scale`)."""

    mse_success: float = 0.005
    """MSE below this is a success."""
    mse_failure: float = 0.01
    """MSE above this is a failure."""
    psnr_success: float = 25.0
    """PSNR above this is a success, dB."""
    psnr_failure: float = 20.0
    """PSNR below this is a failure, dB."""
    ssim_success: float = 0.85
    """SSIM above this is a success."""
    gradient_norm_notable: float = 2.0
    """Mean gradient norm above this is worth a look."""
    gradient_norm_unstable: float = 3.0
    """Mean gradient norm above this marks unstable training."""
    gradient_norm_spread: float = 1.0
    """The standard deviation of the gradient norm should stay below this."""
    gradient_norm_steps: int = 1000
    """Steps at the end of the run over which the gradient norm is judged."""
    trend_steps: int = 100
    """Steps of the loss's moving average, and of the stretch at the end whose slope is taken."""
    divergence: float = 2.0
    """A moving average that ends this many times above its lowest value has diverged."""
    encode_seconds: float = 0.12
    """Encoding a clip of 12x128x128 on a GPU in less is a success, s."""
    decode_seconds: float = 0.15
    """Decoding it in less is a success, s."""
    seconds_failure: float = 0.5
    """Either of the two above this is a failure, s."""
    teacher_gap: float = 0.05
    """PSNR may lie below the teacher's by this part of it."""
    teacher_speed_gain: float = 2.0
    """Encoding and decoding should be faster than the teacher's by more than this many times its
    speed: 2, or 200 %, is three times as fast."""
    artifact_phase: float = 1.5
    """The gain over 8x down and up may differ by so much between the frames of a latent, dB."""
    artifact_border: float = 1.5
    """At the border it may be less by so much than inside, dB."""
    artifact_gain: float = 0.0
    """It should be more than this where something moves, and where it is dark or bright, dB."""
    artifact_grid: float = 3.0
    """The error's energy at periods of 8, 4 and 2 pixels may be so far above that beside it, dB."""
    artifact_flat_grey: float = 0.02
    """A clip of one grey may be off by so much, root mean square."""
    artifact_flat_colour: float = 0.1
    """The same of a saturated colour."""
    artifact_shimmer: float = 0.01
    """What stands still may change by so much from frame to frame, root mean square."""
    artifact_size: float = 0.5
    """The same pixels may be worse by so much in a large frame than in a small one, dB."""

    def with_gradient_scale(self, scale: float) -> "Thresholds":
        """The limits for a run whose gradients are so many times larger (see
        `LossConfig.gradient_scale`). At 0 nothing is known of a healthy norm, so it has none."""
        scale = scale or math.inf
        return dataclasses.replace(
            self,
            gradient_norm_notable=scale * self.gradient_norm_notable,
            gradient_norm_unstable=scale * self.gradient_norm_unstable,
            gradient_norm_spread=scale * self.gradient_norm_spread,
        )


@dataclass(frozen=True)
class Finding:
    """One figure, compared with its limit."""

    name: str
    """What was judged."""
    figure: float
    """Its value; NaN where there was too little data."""
    threshold: str
    """What was wanted, in words."""
    level: Level
    """The result of the comparison."""


def judge(
    validation: Mapping[str, float],
    baselines: Mapping[str, float],
    rows: Sequence[Mapping[str, float]],
    limits: Thresholds = Thresholds(),
) -> list[Finding]:
    """Compare a run's figures with the limits.

    validation: mean scores on held-out clips under the names of
    `taehv.evaluation.metrics.score_clips` ("mse", "psnr", "ssim"; others are ignored).
    baselines: PSNR of `mean_colour` and `down_and_up`, and of `linear` where there is a linear
    limit, on the same clips, dB.
    rows: the training rows of metrics.jsonl in the order of their "step"; rows without
    `train/reconstruction_loss` or `train/gradient_norm` are passed over.

    Raises KeyError where a figure is missing.
    """
    return judge_scores(validation, baselines, limits) + judge_training(rows, limits)


def judge_scores(
    validation: Mapping[str, float], baselines: Mapping[str, float], limits: Thresholds
) -> list[Finding]:
    """The findings about the scores; see `judge`."""
    mse, psnr, ssim = (float(validation[name]) for name in ("mse", "psnr", "ssim"))
    return [
        Finding(
            "MSE",
            mse,
            f"below {limits.mse_success:g}; failure above {limits.mse_failure:g}",
            level_of(mse, mse < limits.mse_success, mse > limits.mse_failure),
        ),
        Finding(
            "PSNR, dB",
            psnr,
            f"above {limits.psnr_success:g}; failure below {limits.psnr_failure:g}",
            level_of(psnr, psnr > limits.psnr_success, psnr < limits.psnr_failure),
        ),
        Finding(
            "SSIM",
            ssim,
            f"above {limits.ssim_success:g}",
            level_of(ssim, ssim > limits.ssim_success, failed=False),
        ),
        _judge_baselines(psnr, baselines),
    ]


def judge_training(rows: Sequence[Mapping[str, float]], limits: Thresholds) -> list[Finding]:
    """The findings about the training; see `judge`."""
    return [*_judge_gradient_norm(rows, limits), _judge_trend(rows, limits)]


def overall(findings: Sequence[Finding]) -> Level:
    """The worst level among the findings. Raises ValueError where there are none."""
    return max((finding.level for finding in findings), key=LEVELS.index)


def format_verdict(findings: Sequence[Finding]) -> str:
    """An aligned plain-text table, one finding a line, the overall level last."""
    rows = [("check", "figure", "wanted", "verdict")]
    for finding in findings:
        figure = f"{finding.figure:.4g}" if math.isfinite(finding.figure) else "none"
        # Capitals carry what a colour would.
        level = finding.level if finding.level == "pass" else finding.level.upper()
        rows.append((finding.name, figure, finding.threshold, level))
    header, *lines = text_table(rows, left=(0, 2, 3)).splitlines()
    rule = "-" * max(map(len, [header, *lines]))
    return "\n".join([header, rule, *lines, rule, f"overall: {overall(findings).upper()}"])


def level_of(figure: float, passed: bool, failed: bool) -> Level:
    """The level of a figure; one that is not finite is a failure."""
    if failed or not math.isfinite(figure):
        return "failure"
    return "pass" if passed else "warning"


def _judge_baselines(psnr: float, baselines: Mapping[str, float]) -> Finding:
    floor = max(float(baselines[name]) for name in ("down_and_up", "mean_colour"))
    linear = baselines.get("linear")
    wanted = "no linear limit" if linear is None else f"linear limit {linear:.1f}"
    # A baseline that is not a number is beaten by nothing.
    failed = any(map(math.isnan, baselines.values())) or not psnr >= floor
    return Finding(
        "PSNR against no network, dB",
        psnr,
        f"{wanted}; failure below 8x down and up {float(baselines['down_and_up']):.1f}",
        level_of(psnr, linear is None or psnr >= linear, failed),
    )


def _judge_gradient_norm(
    rows: Sequence[Mapping[str, float]], limits: Thresholds
) -> tuple[Finding, Finding]:
    """Mean and standard deviation over the last steps of the run."""
    steps, norms = _series(rows, "train/gradient_norm")
    last = norms[steps > steps[-1] - limits.gradient_norm_steps] if len(steps) else norms
    mean, spread = (float(last.mean()), float(last.std())) if len(last) else (math.nan, math.nan)
    notable, unstable = limits.gradient_norm_notable, limits.gradient_norm_unstable
    over = f"over {limits.gradient_norm_steps} steps"
    wanted_mean = f"mean {over} to {notable:g}; unstable above {unstable:g}"
    wanted_spread = f"deviation {over} below {limits.gradient_norm_spread:g}"
    if not len(last):
        return (
            Finding("gradient norm", mean, f"{wanted_mean}; none was logged", "warning"),
            Finding("gradient norm's spread", spread, wanted_spread, "warning"),
        )
    if mean > unstable:
        wanted_mean += ": UNSTABLE"
    return (
        Finding("gradient norm", mean, wanted_mean, level_of(mean, mean <= notable, failed=False)),
        Finding(
            "gradient norm's spread",
            spread,
            wanted_spread,
            level_of(spread, spread < limits.gradient_norm_spread, failed=False),
        ),
    )


def _judge_trend(rows: Sequence[Mapping[str, float]], limits: Thresholds) -> Finding:
    """Slope per step of the loss's moving average over the last steps.

    A run too short for window and stretch takes half of itself for each; one logged so rarely
    that the stretch would hold fewer than `FEWEST_ROWS` rows takes a longer stretch.
    """
    name = "reconstruction loss's slope"
    wanted = f"below 0 over {limits.trend_steps} steps; failure when diverging"
    steps, losses = _series(rows, "train/reconstruction_loss")
    if not np.isfinite(losses).all():
        return Finding(name, math.nan, "finite throughout", "failure")
    if len(steps) < 2 * FEWEST_ROWS:
        return Finding(name, math.nan, f"{wanted}; too few rows were logged to tell", "warning")

    spacing = (steps[-1] - steps[0]) / (len(steps) - 1)
    half = (steps[-1] - steps[0] + spacing) / 2
    window = min(max(limits.trend_steps, FEWEST_ROWS * spacing), half)
    average = _moving_average(steps, losses, window)
    # Windows that reach back beyond the first row are short and noisy.
    whole = steps >= steps[0] + window - spacing
    recent = whole & (steps > steps[-1] - window)
    slope = float(np.polyfit(steps[recent] - steps[-1], average[recent], deg=1)[0])
    diverged = slope > 0 and average[-1] > limits.divergence * average[whole].min()
    return Finding(name, slope, wanted, level_of(slope, slope < 0, bool(diverged)))


def _series(
    rows: Sequence[Mapping[str, float]], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of one name, in the order of the rows."""
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _moving_average(
    steps: NDArray[np.float64], values: NDArray[np.float64], window: float
) -> NDArray[np.float64]:
    """Mean over the rows of (step - window, step], for every row."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(steps, steps - window, side="right")
    end = np.arange(1, len(steps) + 1)
    averages: NDArray[np.float64] = (sums[end] - sums[first]) / (end - first)
    return averages
