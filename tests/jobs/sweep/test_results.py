"""The answer of a sweep, from trials that are made up."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from jobs.cli.config import flatten, read_yaml
from jobs.sweep import plots, results
from jobs.sweep.importance import importance
from jobs.sweep.ledger import Ledger, Status
from jobs.sweep.report import render
from taehv.errors import TrainingError
from taehv.run.run_folder import RunFolder
from tests.helpers.sweep_records import add_trial, empty_ledger, made_plan

SPACE = """\
space:
  loss.seraena: {log: [0.001, 1], ratio_to: loss.reconstruction}
  optim.learning_rate: {log: [1.0e-4, 1.0e-2]}
search: {algorithm: random, trials: 40}
seeds: [0, 1, 2]
confirm: 2
"""


def test_a_tiny_weight_does_not_win_by_the_weighted_loss(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, "space:\n  loss.reconstruction: [10, 0.001]\n")
    ledger = empty_ledger(tmp_path / "sweep")
    good = add_trial(plan, ledger, {"loss.reconstruction": 10}, [20, 26], more={"train/loss": 0.03})
    tiny = add_trial(
        plan, ledger, {"loss.reconstruction": 0.001}, [9, 10], more={"train/loss": 1e-4}
    )
    assert ledger.rows(ledger.records[tiny])[-1]["train/loss"] < 0.01
    best = results.ranked(plan, ledger)
    assert [group.trials[0].number for group in best] == [good, tiny]
    results.write_best(plan, ledger, best[0])
    assert read_yaml(tmp_path / "sweep/best_config.yaml").loss.reconstruction == 10


def test_the_interval_is_students_t(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, SPACE)
    ledger = empty_ledger(tmp_path / "sweep")
    drawn = {"loss.seraena": 0.01, "optim.learning_rate": 0.001}
    for seed, psnr in enumerate((24.0, 25.0, 26.0)):
        add_trial(plan, ledger, drawn, [psnr], seed=seed)
    (group,) = results.groups(ledger)
    assert group.seeds == 3
    assert group.mean("val_ema/psnr") == pytest.approx(25.0)
    # 4.303 is the 97.5 % point of Student's t with two degrees of freedom, from printed tables.
    assert group.half_width("val_ema/psnr") == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)


def test_a_lucky_seed_does_not_stand_above_a_confirmed_configuration(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, SPACE)
    ledger = empty_ledger(tmp_path / "sweep")
    lucky = {"loss.seraena": 0.5, "optim.learning_rate": 0.001}
    sure = {"loss.seraena": 0.01, "optim.learning_rate": 0.001}
    add_trial(plan, ledger, lucky, [30.0])
    for seed in range(3):
        add_trial(plan, ledger, sure, [29.0], seed=seed)
    add_trial(plan, ledger, lucky | {"loss.seraena": 0.6}, [35.0], status="pruned")
    add_trial(plan, ledger, lucky | {"loss.seraena": 0.7}, [], status="failed")
    assert [group.drawn for group in results.ranked(plan, ledger)] == [sure, lucky]


def test_values_that_were_drawn_twice_are_no_second_seed(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, SPACE)
    ledger = empty_ledger(tmp_path / "sweep")
    worse = {"loss.seraena": 0.5, "optim.learning_rate": 0.001}
    better = {"loss.seraena": 0.01, "optim.learning_rate": 0.001}
    for _ in range(3):
        add_trial(plan, ledger, worse, [28.0])
    add_trial(plan, ledger, better, [29.0])
    best = results.ranked(plan, ledger)
    assert [(group.drawn, group.seeds) for group in best] == [(better, 1), (worse, 1)]
    assert math.isnan(best[1].half_width("val_ema/psnr"))


def test_what_is_found_after_a_confirmation_is_confirmed_too(tmp_path: Path) -> None:
    """As where a search is given more trials."""
    plan = made_plan(tmp_path, SPACE)
    ledger = empty_ledger(tmp_path / "sweep")
    old = {"loss.seraena": 0.5, "optim.learning_rate": 0.001}
    new = {"loss.seraena": 0.01, "optim.learning_rate": 0.001}
    for seed in range(3):
        add_trial(plan, ledger, old, [29.0], seed=seed, stage="confirm" if seed else "search")
    add_trial(plan, ledger, new, [31.0])
    assert [group.drawn for group in results.ranked(plan, ledger)] == [old, new]
    assert [group.drawn for group in results.found_best(plan, ledger)] == [new, old]


def test_files_hold_what_the_trials_did(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, SPACE)
    ledger = empty_ledger(tmp_path / "sweep")
    drawn = {"loss.seraena": 0.02, "optim.learning_rate": 0.003}
    add_trial(plan, ledger, drawn, [20.0, 21.5])
    add_trial(plan, ledger, drawn | {"loss.seraena": 0.9}, [11.0], status="pruned")
    results.write_csv(plan, ledger)
    with (tmp_path / "sweep/results.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["status"], first["rank"], second["status"], second["rank"]) == (
        *("finished", "1"),
        *("pruned", ""),
    )
    assert float(first["loss.seraena"]) == pytest.approx(0.2)
    assert float(first["loss.seraena / loss.reconstruction"]) == 0.02
    assert float(first["val_ema/psnr"]) == 21.5

    results.write_best(plan, ledger, results.ranked(plan, ledger)[0])
    best = read_yaml(tmp_path / "sweep/best_config.yaml")
    before, after = flatten(plan.base), flatten(best)
    assert {key: after[key] for key in after if after[key] != before[key]} == {
        "loss.seraena": 0.2,
        "optim.learning_rate": 0.003,
    }


def test_importance_ranks_the_planted_key_first(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, SPACE)
    ledger = empty_ledger(tmp_path / "sweep")
    random = np.random.default_rng(0)
    for _ in range(24):
        ratio, rate = 10 ** random.uniform(-3, 0), 10 ** random.uniform(-4, -2)
        psnr = 25 - 4 * abs(math.log10(ratio / 0.01)) + 0.2 * math.log10(rate)
        add_trial(plan, ledger, {"loss.seraena": ratio, "optim.learning_rate": rate}, [psnr])
    found = importance(plan, ledger)
    assert found is not None
    assert list(found.by_key) == ["loss.seraena", "optim.learning_rate"]
    assert found.by_key["loss.seraena"] > 0.8
    assert sum(found.by_key.values()) == pytest.approx(1)


def test_importance_compares_where_all_trials_have_been(tmp_path: Path) -> None:
    """A pruned trial's low score at its end must not be held against a finished one's."""
    plan = made_plan(tmp_path, SPACE)
    ledger = empty_ledger(tmp_path / "sweep")
    for k in range(6):
        drawn = {"loss.seraena": 0.01 * (k + 1), "optim.learning_rate": 0.001 * (1 + k % 2)}
        early = 10.0 + k % 2
        curve = [early, early + 20] if k < 3 else [early]
        add_trial(plan, ledger, drawn, curve, status="finished" if k < 3 else "pruned")
    found = importance(plan, ledger)
    assert found is not None
    assert found.step == 10
    assert next(iter(found.by_key)) == "optim.learning_rate"


def test_pareto_set_against_its_definition() -> None:
    random = np.random.default_rng(1)
    points = [tuple(point) for point in random.integers(0, 6, (40, 2)).tolist()]
    front = plots.pareto(points)
    for k, (a, b) in enumerate(points):
        beaten = any(c >= a and d >= b and (c > a or d > b) for c, d in points)
        assert (k in front) is not beaten


def test_the_ablation_table_has_its_rows_and_the_reference(tmp_path: Path) -> None:
    plan = made_plan(
        tmp_path,
        "rows:\n  plain: {loss.seraena: 0}\n  + Seraena: {loss.seraena: 0.1}\nseeds: [0, 1]\n",
    )
    ledger = empty_ledger(tmp_path / "sweep")
    for seed in (0, 1):
        for label, row in plan.rows.items():
            add_trial(plan, ledger, row, [25.0 + seed], seed=seed, label=label)
    reference = {"mse": 0.001, "psnr": 33.27, "ssim": 0.9, "sharpness": 1.0, "encode_seconds": 9.0}
    text = results.ablation_table(plan, ledger, reference)
    first, plain, seraena, vae = text.splitlines()
    assert first.split() == ["MSE", "PSNR,", "dB", "SSIM", "sharpness", "encode,", "s", "a", "clip"]
    assert plain.startswith("plain ")
    assert "25.5 ±6.4" in plain
    assert seraena.startswith("+ Seraena ")
    assert vae.startswith("the reference VAE itself")
    assert "33.27" in vae
    page = render(plan, ledger, reference)
    assert "<h2>Ablation</h2>" in page
    assert "33.3" in page


def test_the_report_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, SPACE)
    ledger = empty_ledger(tmp_path / "sweep")
    for k in range(5):
        drawn = {"loss.seraena": 0.01 * (k + 1), "optim.learning_rate": 0.001 * (1 + k % 2)}
        status: Status = "failed" if k == 4 else "finished"
        add_trial(plan, ledger, drawn, [20.0 + k, 22.0 + k], status=status)
    ledger.update(5, error="<b>it broke</b>")
    page = render(plan, ledger, None)
    for heading in ("Ranking", "Validation", "Settings and score", "What decides", "All trials"):
        assert f"<h2>{heading}</h2>" in page
    assert "<b>it broke</b>" not in page
    assert "it broke" in page
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in page.replace("http://www.w3.org", "")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    ledger = empty_ledger(tmp_path / "sweep")
    plan = made_plan(tmp_path, SPACE)
    add_trial(plan, ledger, {"loss.seraena": 0.1, "optim.learning_rate": 0.001}, [20.0])
    again = Ledger(RunFolder(str(tmp_path / "sweep")))
    assert again.records == ledger.records
    (tmp_path / "sweep/trials/001/trial.json").write_text('{"number": 1')
    with pytest.raises(TrainingError, match=r"trials/001/trial.json is damaged"):
        Ledger(RunFolder(str(tmp_path / "sweep")))


def test_a_seed_that_is_no_number_is_never_left_out(tmp_path: Path) -> None:
    """Neither from its configuration's mean nor from what is told; and the answer is written."""
    plan = made_plan(tmp_path, SPACE)
    ledger = empty_ledger(tmp_path / "sweep")
    for k, psnr in enumerate([20.0, 21.0, 24.0, 22.0]):
        add_trial(
            plan, ledger, {"loss.seraena": 0.01 * (k + 1), "optim.learning_rate": 1e-3}, [psnr]
        )
    broken = {"loss.seraena": 0.5, "optim.learning_rate": 1e-3}
    for seed, psnr in enumerate([30.0, math.nan]):
        add_trial(plan, ledger, broken, [psnr], seed=seed)
    best = results.ranked(plan, ledger)
    assert broken not in [group.drawn for group in best]
    assert len(best) == 4
    text, page = results.closing_table(plan, ledger), render(plan, ledger, None)
    for shown in (text, page):
        assert "not ranked, since val_ema/psnr is not a number: trial 005 006" in shown
    found = importance(plan, ledger)
    assert found is not None
    assert found.configurations == 4
    # A score that trials are not ranked by has no interval, rather than an error.
    (group,) = [g for g in results.groups(ledger) if g.drawn == broken]
    assert math.isnan(group.half_width("val_ema/psnr"))


def test_a_row_that_is_no_number_stands_in_the_table_of_rows(tmp_path: Path) -> None:
    plan = made_plan(
        tmp_path, "rows:\n  a: {loss.seraena: 0}\n  b: {loss.seraena: 1}\nseeds: [0, 1]\n"
    )
    ledger = empty_ledger(tmp_path / "sweep")
    for seed, psnr in enumerate([30.0, math.nan]):
        add_trial(plan, ledger, {"loss.seraena": 0}, [psnr], seed=seed, label="a")
        add_trial(plan, ledger, {"loss.seraena": 1}, [25.0 + seed], seed=seed, label="b")
    (line,) = [
        x for x in results.ablation_table(plan, ledger, None).splitlines() if x.startswith("a ")
    ]
    assert "none" in line
    assert "not ranked" in render(plan, ledger, None)
