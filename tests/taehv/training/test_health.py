"""Synthetic curves: healthy ones keep quiet, each fault is told when it begins and not before."""

import dataclasses
import math
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from taehv.training.config import TrainingConfig
from taehv.training.health import RECOVERY_STEPS, REMIND_STEPS, Finding, Health
from taehv.training.loss_checks import fitted_fall

Curve = Callable[[int], float]
Row = dict[str, Any]
ONSET = 1500


def falling(step: int) -> float:
    """Down from 0.053 to a plateau at 0.003, below the limit of a success."""
    return 0.003 + 0.05 * math.exp(-step / 600)


def run_rows(
    steps: int = 3000,
    every: int = 10,
    seed: int = 0,
    noise: float = 0.15,
    faults: Mapping[str, Curve] | None = None,
    onset: int = 0,
) -> list[Row]:
    """The rows of a run, healthy but for the metrics in `faults`, from step `onset` on.

    `noise` is the relative deviation of the losses and of the throughput.
    """
    random = np.random.default_rng(seed)
    rows: list[Row] = [{"step": 0, "val/psnr": 13.0, "val_ema/psnr": 13.0}]
    for step in range(every, steps + 1, every):
        vary, wide, jitter = np.exp(random.normal(0, [noise, 0.3, 0.005])).tolist()
        row: Row = {
            "step": step,
            "train/loss": 10 * falling(step) * vary,
            "train/reconstruction_loss": falling(step) * vary,
            "train/seraena_loss": min(1.0, step / 60) * 0.99,
            "train/discriminator_loss": (0.7 + 0.4 * math.exp(-step / 50)) * vary,
            # High at first, and a lone spike.
            "train/gradient_norm": (1 + 8 * math.exp(-step / 50)) * wide
            + 20 * (step // every == 130),
            # The first validation and the first checkpoint take memory once.
            "train/gpu_memory_gb": 10.0 + (step > 500) + 0.5 * (step > 1000),
            # A replay buffer of 1 GB fills.
            "train/host_memory_gb": (5 + min(1.0, step / 1130)) * jitter,
            # Validations fall into some rows, the start of the pipeline into the first.
            "train/clips_per_second": 20 * vary * (0.3 if step % 500 == every else 1),
            "train/data_wait_fraction": 0.9 if step <= every else 0.05 * wide,
        }
        if step % 500 == 0:
            row |= {"val/psnr": 25.0, "val_ema/psnr": 25.0}
        if step >= onset:
            row |= {metric: curve(step) for metric, curve in (faults or {}).items()}
        rows.append(row)
    return rows


def watch(rows: list[Row], every: int = 10, **settings: float) -> list[Finding]:
    health = Health(every, **settings)  # type: ignore[arg-type]
    return [found for row in rows for found in health.observe(row)]


def after_onset(factor: float, per_steps: int) -> Curve:
    return lambda step: falling(ONSET) * factor ** ((step - ONSET) / per_steps)


def uneven(step: int) -> float:
    """Median 0.5, mean 1.2, deviation 1.3."""
    return 3.0 if step * 7919 % 1000 < 280 else 0.5


FAULTS: list[tuple[str, str, Curve, int]] = [
    # What is told, of which metric, how it goes on from step ONSET, and within how many steps.
    ("exploding-loss", "train/reconstruction_loss", after_onset(10, 20), 100),
    ("not-finite", "train/reconstruction_loss", lambda _: math.nan, 0),
    ("not-finite", "train/loss", lambda _: math.inf, 0),
    ("not-finite", "train/gradient_norm", lambda _: math.inf, 0),
    ("start-lost", "val_ema/psnr", lambda _: 11.9, 0),
    ("stagnating-loss", "train/reconstruction_loss", lambda _: falling(600), 1000),
    ("notable-gradient-norm", "train/gradient_norm", lambda _: 2.5, 110),
    ("unstable-gradient-norm", "train/gradient_norm", lambda _: 4.0, 100),
    ("gradient-norm-spread", "train/gradient_norm", uneven, 1000),
    ("growing-gpu-memory", "train/gpu_memory_gb", lambda s: 11.5 + (s - ONSET) / 500, 2000),
    ("growing-host-memory", "train/host_memory_gb", lambda s: 6.1 + (s - ONSET) / 500, 2000),
    ("falling-throughput", "train/clips_per_second", lambda _: 10.0, 150),
    ("data-starvation", "train/data_wait_fraction", lambda _: 0.5, 60),
    ("discriminator-wins", "train/discriminator_loss", lambda _: 0.03, 510),
    ("discriminator-lost", "train/discriminator_loss", lambda _: 1.0, 510),
    ("correction-gone", "train/seraena_loss", lambda _: 1e-4, 510),
]


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_keeps_quiet(seed: int) -> None:
    assert watch(run_rows(seed=seed)) == []


@pytest.mark.parametrize(("every", "steps"), [(1, 1500), (3, 3000), (50, 10_000), (500, 20_000)])
def test_a_healthy_run_keeps_quiet_however_it_is_logged(every: int, steps: int) -> None:
    assert watch(run_rows(steps, every), every) == []


@pytest.mark.parametrize("seed", range(5))
def test_slow_progress_late_in_a_run_is_no_stagnation(seed: int) -> None:
    """3 dB for ten times as many steps, in batches that vary by 30 %, above the plateau's limit."""
    random = np.random.default_rng(seed)
    rows: list[Row] = [
        {
            "step": s,
            "train/reconstruction_loss": 0.015 * (s / 1000) ** -0.3 * random.lognormal(0, 0.3),
        }
        for s in range(10, 10_001, 10)
    ]
    assert watch(rows) == []


@pytest.mark.parametrize(("name", "metric", "curve", "within"), FAULTS)
def test_a_fault_is_told_when_it_begins(name: str, metric: str, curve: Curve, within: int) -> None:
    found = watch(run_rows(ONSET + within, faults={metric: curve}, onset=ONSET))
    assert [finding.name for finding in found] == [name]
    assert ONSET <= found[0].step <= ONSET + within
    assert found[0].diverged == (name in ("exploding-loss", "not-finite"))


@pytest.mark.parametrize(
    ("every", "name", "metric", "curve", "within"),
    [
        (1, "exploding-loss", "train/reconstruction_loss", after_onset(10, 20), 50),
        (50, "exploding-loss", "train/reconstruction_loss", after_onset(10, 20), 300),
        (1, "unstable-gradient-norm", "train/gradient_norm", lambda _: 4.0, 60),
        (50, "unstable-gradient-norm", "train/gradient_norm", lambda _: 4.0, 550),
        (1, "growing-gpu-memory", "train/gpu_memory_gb", lambda s: 11.5 + (s - ONSET) / 500, 2000),
        (50, "growing-gpu-memory", "train/gpu_memory_gb", lambda s: 11.5 + (s - ONSET) / 500, 2000),
        (1, "falling-throughput", "train/clips_per_second", lambda _: 10.0, 150),
        (50, "falling-throughput", "train/clips_per_second", lambda _: 10.0, 600),
    ],
)
def test_a_fault_is_told_however_it_is_logged(
    every: int, name: str, metric: str, curve: Curve, within: int
) -> None:
    rows = run_rows(ONSET + within, every, faults={metric: curve}, onset=ONSET)
    # What a metric does not tell does not matter here, and takes time.
    found = watch([{"step": row["step"], metric: row.get(metric)} for row in rows], every)
    first = [finding.step for finding in found if finding.name == name]
    assert len(first) == 1
    assert ONSET <= first[0] <= ONSET + within
    # A jump of the norm is a spread, too, where few rows make up the 1,000 steps.
    assert {finding.name for finding in found} <= {name, "gradient-norm-spread"}


def test_a_slow_divergence_is_told() -> None:
    curve = after_onset(2, 500)
    found = watch(run_rows(4000, faults={"train/reconstruction_loss": curve}, onset=ONSET))
    [exploding] = [finding for finding in found if finding.name == "exploding-loss"]
    # 4 x the lowest level takes 1,000 steps, and the level lies a little below the last loss.
    assert 2400 <= exploding.step <= 2700
    assert exploding.diverged


@pytest.mark.parametrize(("length", "told"), [(20, False), (21, True)])
def test_a_short_spike_of_the_loss_is_no_divergence(length: int, told: bool) -> None:
    rows: list[Row] = [
        {"step": s, "train/reconstruction_loss": 0.02 if 200 <= s < 200 + length else 0.003}
        for s in range(1, 400)
    ]
    assert [finding.step for finding in watch(rows, 1)] == ([220] if told else [])


def test_a_run_is_in_doubt_before_it_is_lost() -> None:
    health = Health(10)
    doubts = []
    for row in run_rows(
        ONSET + 100, faults={"train/reconstruction_loss": after_onset(10, 20)}, onset=ONSET
    ):
        found = health.observe(row)
        doubts.append(health.divergence_suspected)
        if found:
            break
    assert not any(doubts[:-5])
    assert all(doubts[-5:])


def test_a_warm_up_that_costs_tenths_of_a_start_keeps_quiet() -> None:
    def told(*scores: float) -> list[int]:
        rows = [{"step": 100 * n, "val_ema/psnr": score} for n, score in enumerate(scores)]
        return [finding.step for finding in watch(rows)]

    assert told(28.4, 27.6, 27.4, 28.0, 28.8) == []
    assert told(28.4, 27.3, 26.0, 28.0, 28.8) == [100]
    # Nothing is lost that the start did not have.
    assert told(13.0, 26.0, 20.0) == []


def test_a_plateau_is_stagnation_only_above_the_limit_of_a_success() -> None:
    def plateau(level: float) -> list[str]:
        random = np.random.default_rng(0)
        return [
            finding.name
            for finding in watch(
                [
                    {"step": s, "train/reconstruction_loss": level * random.lognormal(0, 0.05)}
                    for s in range(10, 2501, 10)
                ]
            )
        ]

    assert plateau(0.0045) == []
    assert plateau(0.0055) == ["stagnating-loss"]


def test_the_fitted_fall_and_its_error_are_those_of_least_squares() -> None:
    random = np.random.default_rng(0)
    logs = 2 - 0.01 * np.arange(80.0) + random.normal(0, 0.1, 80)
    line, covariance = np.polyfit(np.arange(80) / 79, logs, 1, cov=True)
    fall, error = fitted_fall(logs)
    assert fall == pytest.approx(-line[0])
    assert error == pytest.approx(math.sqrt(covariance[0, 0]))


@pytest.mark.parametrize("metric", ["train/gpu_memory_gb", "train/host_memory_gb"])
def test_memory_that_steps_up_and_stays_is_no_leak(metric: str) -> None:
    steps_up = {metric: lambda step: 5.0 + 4 * (step > 1300) + 2 * (step > 2100)}
    assert watch(run_rows(5000, faults=steps_up)) == []


def test_memory_that_each_validation_keeps_is_a_leak() -> None:
    leak: dict[str, Curve] = {"train/host_memory_gb": lambda step: 5.0 + step // 500}
    found = watch(run_rows(faults=leak))
    assert [finding.name for finding in found] == ["growing-host-memory"]


def test_growth_of_memory_that_has_ended_is_no_leak() -> None:
    """Ended at step 1000; judged from step 2000 on."""
    grown: dict[str, Curve] = {"train/gpu_memory_gb": lambda step: 5 + min(step, 1000) / 400}
    assert watch(run_rows(5000, faults=grown)) == []


def test_a_replay_buffer_that_fills_is_no_leak() -> None:
    filling: dict[str, Curve] = {"train/host_memory_gb": lambda step: 5 + min(4.0, step / 800)}
    rows = run_rows(3500, faults=filling)
    assert watch(rows, filling_gigabytes=4.0) == []
    assert [finding.name for finding in watch(rows)] == ["growing-host-memory"]


def test_the_limits_of_the_gradient_norm_scale() -> None:
    def told(norm: float, scale: float) -> list[str]:
        rows: list[Row] = [{"step": s, "train/gradient_norm": norm} for s in range(10, 1001, 10)]
        return [finding.name for finding in watch(rows, gradient_scale=scale)]

    assert told(2.0, 1) == []
    assert told(2.01, 1) == ["notable-gradient-norm"]
    assert told(3.01, 1) == ["unstable-gradient-norm"]
    assert told(3.01, 2) == []
    assert told(0.21, 0.1) == ["notable-gradient-norm"]
    assert told(100.0, 0) == []


def test_a_run_without_an_adversary_keeps_quiet() -> None:
    off: dict[str, Curve] = {
        "train/discriminator_loss": lambda _: 0.0,
        "train/seraena_loss": lambda _: 0.0,
    }
    assert watch(run_rows(faults=off)) == []


def test_a_fault_that_lasts_is_told_again_now_and_then() -> None:
    waiting: dict[str, Curve] = {"train/data_wait_fraction": lambda _: 0.6}
    found = watch(run_rows(ONSET + 2 * REMIND_STEPS + 100, faults=waiting, onset=ONSET))
    first = found[0].step
    assert [finding.step - first for finding in found] == [0, REMIND_STEPS, 2 * REMIND_STEPS]


def test_a_fault_that_returns_is_told_anew_after_a_recovery_only() -> None:
    def steps_told(pause: int) -> list[int]:
        """Steps between the tellings of a fault that pauses."""
        rows = [{"step": s, "train/loss": math.nan} for s in (1, 2)]
        rows += [{"step": s, "train/loss": 1.0} for s in range(3, 3 + pause)]
        rows += [{"step": 3 + pause, "train/loss": math.nan}]
        return [finding.step for finding in watch(rows, 1)]

    assert steps_told(RECOVERY_STEPS) == [1]
    assert steps_told(RECOVERY_STEPS + 1) == [1, RECOVERY_STEPS + 4]


def test_open_findings_are_those_that_last() -> None:
    waiting: dict[str, Curve] = {"train/data_wait_fraction": lambda s: 0.6 if s < 2000 else 0.05}
    health = Health(10)
    names = {}
    for row in run_rows(faults=waiting, onset=ONSET):
        health.observe(row)
        names[row["step"]] = health.open_findings
    assert names[ONSET] == ()
    assert names[1900] == ("data-starvation",)
    assert names[2000 + 60 + RECOVERY_STEPS] == ()


@pytest.mark.parametrize("every", [10, 50])
def test_a_resumed_run_says_what_an_uninterrupted_one_says(every: int) -> None:
    faults = {metric: curve for name, metric, curve, _ in FAULTS if name != "not-finite"}
    faults["train/reconstruction_loss"] = lambda s: falling(600) if s < 4200 else s / 1000
    faults["train/loss"] = lambda s: 1.0 if s < 4500 else math.inf
    rows = run_rows(5000, every, faults=faults, onset=ONSET)
    whole = Health(every)
    told = [whole.observe(row) for row in rows]
    names = {finding.name for found in told for finding in found}
    assert {"stagnating-loss", "exploding-loss", "not-finite", "growing-gpu-memory"} < names
    for cut in (0, 1, len(rows) // 3, len(rows) // 2, len(rows) - 3):
        resumed = Health(every)
        resumed.restore(rows[:cut])
        assert [resumed.observe(row) for row in rows[cut:]] == told[cut:]
        assert resumed.open_findings == whole.open_findings


def test_rows_that_lack_metrics_are_passed_over() -> None:
    waiting: dict[str, Curve] = {"train/data_wait_fraction": lambda _: 0.5}
    rows = run_rows(ONSET + 100, faults=waiting, onset=ONSET)
    between: list[Row] = []
    for row in rows:
        between += [row, {"step": row["step"] + 1, "val/psnr": 25.0}, {"step": row["step"] + 2}]
    assert watch(between) == watch(rows)
    assert len(watch(rows)) == 1

    kept = {"step", "train/data_wait_fraction"}
    assert watch([{k: v for k, v in row.items() if k in kept} for row in rows]) == watch(rows)
    assert watch([{k: v if k in kept else None for k, v in row.items()} for row in rows])


def test_memory_is_bounded() -> None:
    rows = run_rows(2000, 1)
    health = Health(500)
    sizes = []
    for number, row in enumerate(rows):
        health.observe(row | {"step": 500 * number})
        if number in (1200, 2000):
            sizes.append(len(pickle.dumps(health)))
    assert abs(sizes[1] - sizes[0]) < 200


def test_findings_say_what_to_do_in_options_that_exist() -> None:
    sections: dict[str, Any] = {
        field.name: getattr(TrainingConfig(), field.name)
        for field in dataclasses.fields(TrainingConfig)
    } | {"data": DataConfig()}
    options = {
        f"--{section}.{field.name.replace('_', '-')}"
        for section, config in sections.items()
        for field in dataclasses.fields(config)
    }
    checks = [check for check, _ in Health(10)._checks]
    assert {check.name for check in checks} == {name for name, *_ in FAULTS}
    for check in checks:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)+", check.name)
        assert set(re.findall(r"--[a-z]+\.[a-z-]+", check.advice)) <= options
        assert "--" in check.advice
        assert "\n" not in check.advice


@pytest.mark.parametrize(("name", "metric", "curve", "within"), FAULTS)
def test_a_message_is_one_line_with_figure_and_limit(
    name: str, metric: str, curve: Curve, within: int
) -> None:
    rows = run_rows(ONSET + within, faults={metric: curve}, onset=ONSET)
    [finding] = watch([{"step": row["step"], metric: row.get(metric)} for row in rows])
    assert finding.message.isprintable()
    assert len(finding.message) < 160
    assert re.search(r"not finite|limit \d|wanted -5%", finding.message)


def test_rows_come_at_least_every_step() -> None:
    with pytest.raises(ValueError, match="log_every"):
        Health(0)


def test_divergence_and_the_start_are_seen_over_stages_and_levels_are_not() -> None:
    """A stage with other clips has another norm of the gradient, and no other loss than 4 x."""
    rows = [
        {"step": step, "train/reconstruction_loss": 0.01, "train/gradient_norm": 0.5}
        for step in range(0, 400, 10)
    ]
    rows[0]["val_ema/psnr"] = 30.0
    health = Health(10, stage_start=400)
    health.restore(rows)
    found = [
        finding.name
        for step in range(400, 500, 10)
        for finding in health.observe(
            {
                "step": step,
                "train/reconstruction_loss": 0.05,
                "train/gradient_norm": 50.0,
                "val_ema/psnr": 28.5,
            }
        )
    ]
    # Of the gradients nothing is told before this stage has settled.
    assert sorted(found) == ["exploding-loss"]
    health = Health(10, stage_start=400)
    health.restore(rows)
    (finding,) = health.observe({"step": 400, "val_ema/psnr": 28.5})
    assert finding.name == "start-lost"
    assert "30.00 dB" in finding.message
