"""The answer of a sweep: which configurations are best, and how sure that is."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.sweep.definition import METRICS, Plan
from jobs.sweep.ledger import Ledger, Record
from jobs.sweep.space import with_settings
from taehv.credentials import without_credentials
from taehv.evaluation.intervals import t_quantile
from taehv.interfaces import Row
from taehv.text_table import text_table
from taehv.training.state import to_yaml

LPIPS = "val_ema/lpips"
"""Where its weights were given; no trial has it in its own metrics."""

SHOWN_SCORES = ("psnr", "ssim", "mse", "sharpness")
ABLATION = {
    "mse": "MSE",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "sharpness": "sharpness",
    "encode_seconds": "encode, s a clip",
}
MOST_RANKED = 12

Reference = Mapping[str, float] | None
"""Scores of the reference VAE itself, where it was asked for."""


@dataclass(frozen=True)
class Group:
    """The trials of one configuration, which differ in their seed alone."""

    drawn: dict[str, Any]
    settings: dict[str, Any]
    label: str
    trials: tuple[Record, ...]
    scores: dict[str, list[float]]
    """Final validation scores of the seeds that are finished, by name."""

    def mean(self, metric: str) -> float:
        """Not a number where no trial is finished, or one of them ended with a score that is none:
        a seed that broke is never left out."""
        values = self.scores.get(metric, [])
        return statistics.fmean(values) if values else math.nan

    def half_width(self, metric: str) -> float:
        """Of the interval that holds the mean over all seeds with 95 % confidence (Student's t);
        not a number below two seeds, or where the mean is none."""
        values = self.scores.get(metric, [])
        if len(values) < 2 or not all(map(math.isfinite, values)):
            return math.nan
        return t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))

    @property
    def names(self) -> str:
        """Of its trials, such as "001 004"."""
        return " ".join(record.name for record in self.trials)

    @property
    def seeds(self) -> int:
        """That are finished."""
        return len(self.scores.get(METRICS[0], []))


def groups(ledger: Ledger) -> list[Group]:
    """All configurations, in the order of their first trial."""
    found: dict[str, list[Record]] = {}
    for number in sorted(ledger.records):
        record = ledger.records[number]
        found.setdefault(json.dumps(_without_seed(record.settings)), []).append(record)
    return [_group(ledger, records) for records in found.values()]


def ranked(plan: Plan, ledger: Ledger) -> list[Group]:
    """The configurations with a finished trial and a score, the best first: those with more seeds
    before those with fewer, of which a lucky one may be on top."""
    sign = -1 if plan.sweep.direction == "max" else 1
    finished = [g for g in groups(ledger) if math.isfinite(g.mean(plan.sweep.metric))]
    return sorted(finished, key=lambda g: (-g.seeds, sign * g.mean(plan.sweep.metric)))


def found_best(plan: Plan, ledger: Ledger) -> list[Group]:
    """The configurations that the search has found, the best first, by the seed alone that all of
    them have: those that were confirmed before stand no higher for it."""
    sign = -1 if plan.sweep.direction == "max" else 1
    found = [
        _group(ledger, own)
        for group in groups(ledger)
        if (own := [record for record in group.trials if record.stage == "search"])
    ]
    finished = [group for group in found if math.isfinite(group.mean(plan.sweep.metric))]
    return sorted(finished, key=lambda group: sign * group.mean(plan.sweep.metric))


def format_unranked(plan: Plan, ledger: Ledger) -> str:
    """The finished configurations whose score is not a number; empty where there is none."""
    names = [
        f"trial {group.names}"
        for group in groups(ledger)
        if group.seeds and not math.isfinite(group.mean(plan.sweep.metric))
    ]
    if not names:
        return ""
    return f"not ranked, since {plan.sweep.metric} is not a number: {', '.join(names)}"


def last_scores(rows: Sequence[Row]) -> dict[str, float]:
    """The scores of the last validation; empty where there was none."""
    last = next((row for row in reversed(rows) if METRICS[0] in row), {})
    return {name: value for name, value in last.items() if name.startswith("val")}


def write_csv(plan: Plan, ledger: Ledger) -> None:
    """results.csv: a line for each trial."""
    ranks = {
        record.number: rank
        for rank, group in enumerate(ranked(plan, ledger), start=1)
        for record in group.trials
        if record.status == "finished"
    }
    keys = list(dict.fromkeys(k for r in ledger.records.values() for k in r.settings))
    drawn = [key for key, domain in plan.space.items() if domain.ratio_to]
    header = ["trial", "rank", "status", "stage", "row", *keys]
    header += [f"{key} / {plan.space[key].ratio_to}" for key in drawn]
    header += ["step", "seconds", "attempts", "verdict", *METRICS, LPIPS, "run_folder", "error"]
    path = ledger.folder.local / "results.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for number in sorted(ledger.records):
            record = ledger.records[number]
            scores = last_scores(ledger.rows(record))
            writer.writerow(
                [record.name, ranks.get(number, ""), record.status, record.stage, record.label]
                + [record.settings.get(key, "") for key in keys]
                + [record.drawn.get(key, "") for key in drawn]
                + [record.step, f"{record.seconds:.1f}", record.attempts, record.verdict]
                + [scores.get(name, "") for name in METRICS]
                + ["" if record.lpips is None else record.lpips]
                + [without_credentials(ledger.address(record)), record.error]
            )
    ledger.folder.publish("results.csv")


def write_best(plan: Plan, ledger: Ledger, best: Group) -> None:
    """best_config.yaml: for `jobs/train.py --config`."""
    config = with_settings(plan.base, _without_seed(best.settings))
    train = dataclasses.replace(config.train, run_dir="", resume="")
    tracking = dataclasses.replace(config.tracking, run_name="")
    config = dataclasses.replace(config, train=train, tracking=tracking)
    path = ledger.folder.local / "best_config.yaml"
    path.write_text(
        f"# The best configuration of the sweep {plan.sweep.name} (trials {best.names}):\n"
        f"# {plan.sweep.metric} {best.mean(plan.sweep.metric):.5g}. Train with it by\n"
        "# `python jobs/train.py --config best_config.yaml`.\n" + to_yaml(config)
    )
    ledger.folder.publish("best_config.yaml")


def closing_table(plan: Plan, ledger: Ledger) -> str:
    """The ranking as text, of at most `MOST_RANKED` configurations, and what became of the
    trials."""
    metrics = dict.fromkeys([plan.sweep.metric, *(f"val_ema/{name}" for name in SHOWN_SCORES)])
    rows = [("rank", "trials", *metrics, "settings")]
    for rank, group in enumerate(ranked(plan, ledger)[:MOST_RANKED], start=1):
        means = [format_mean(group, metric) for metric in metrics]
        rows.append((str(rank), group.names, *means, format_settings(group)))
    if len(rows) == 1:
        rows.append(("", "no trial is finished yet", *[""] * (len(rows[0]) - 2)))
    text = text_table(rows, left=(1, len(rows[0]) - 1))
    if unranked := format_unranked(plan, ledger):
        text += f"\n{unranked}"
    counts = Counter(record.status for record in ledger.records.values())
    counted = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"{text}\n\n{counts.total()} trials: {counted}"


def ablation_rows(
    plan: Plan, ledger: Ledger, reference: Reference
) -> list[tuple[str, Group | Mapping[str, float]]]:
    """The rows of a sweep of rows in their order, and the reference VAE."""
    by_label = {group.label: group for group in groups(ledger)}
    rows: list[tuple[str, Group | Mapping[str, float]]] = [
        (label, by_label[label]) for label in plan.rows if label in by_label
    ]
    return rows + ([] if reference is None else [("the reference VAE itself", reference)])


def ablation_table(plan: Plan, ledger: Ledger, reference: Reference) -> str:
    """What each part of the loss brings, beside the reference VAE, as text."""
    rows = [("", *ABLATION.values())]
    for label, found in ablation_rows(plan, ledger, reference):
        if isinstance(found, Group):
            rows.append((label, *(format_mean(found, f"val_ema/{name}") for name in ABLATION)))
        else:
            rows.append((label, *(f"{found[name]:.4g}" for name in ABLATION)))
    return text_table(rows)


def format_mean(group: Group, metric: str) -> str:
    """A mean, with its interval where there is one."""
    if math.isnan(group.mean(metric)):
        return "none"
    half = group.half_width(metric)
    between = f" ±{half:.2g}" if math.isfinite(half) else ""
    return f"{group.mean(metric):.4g}{between}"


def format_settings(group: Group | Record) -> str:
    """What sets a configuration apart."""
    return group.label or "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in _without_seed(group.settings).items()
    )


def _group(ledger: Ledger, records: Sequence[Record]) -> Group:
    scores: dict[str, list[float]] = {}
    # A search may draw the same values twice; the same seed with them says nothing new.
    seeds: set[int] = set()
    for record in records:
        if record.status == "finished" and record.seed not in seeds:
            seeds.add(record.seed)
            last = last_scores(ledger.rows(record))
            lpips = {} if record.lpips is None else {LPIPS: record.lpips}
            for name, value in (last | lpips).items():
                scores.setdefault(name, []).append(value)
    first = records[0]
    drawn, settings = _without_seed(first.drawn), _without_seed(first.settings)
    return Group(drawn, settings, first.label, tuple(records), scores)


def _without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "train.seed"}
