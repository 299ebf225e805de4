"""report.html: the answer of a sweep, at a glance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from jobs.report import words
from jobs.report.words import number
from jobs.sweep import plots
from jobs.sweep.definition import Plan
from jobs.sweep.importance import importance
from jobs.sweep.ledger import Ledger
from jobs.sweep.results import (
    ABLATION,
    LPIPS,
    Group,
    Reference,
    ablation_rows,
    format_settings,
    format_unranked,
    groups,
    last_scores,
    ranked,
)

SHOWN = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "mse": "MSE",
    "sharpness": "sharpness",
    "temporal": "temporal error",
}


def write_report(plan: Plan, ledger: Ledger, reference: Reference) -> None:
    """Write the page into the sweep's folder."""
    path = ledger.folder.local / "report.html"
    path.write_text(render(plan, ledger, reference), encoding="utf-8")
    ledger.folder.publish("report.html")


def render(plan: Plan, ledger: Ledger, reference: Reference) -> str:
    """The page."""
    best, metric = ranked(plan, ledger), plan.sweep.metric
    return words.render(
        "sweep/report.html.j2",
        title=f"Sweep {plan.sweep.name}",
        created=f"{datetime.now():%Y-%m-%d}",
        plan=plan,
        metric=metric,
        best=best,
        figures=_figures(plan, ledger, best),
        unranked=format_unranked(plan, ledger),
        confidence=_confidence(plan, best),
        shown={metric: metric}
        | {f"val_ema/{n}": label for n, label in SHOWN.items() if f"val_ema/{n}" != metric},
        ablation=ablation_rows(plan, ledger, reference) if plan.rows else [],
        ablation_scores=ABLATION,
        curves=_curves(plan, ledger, best),
        lines=_lines(plan, ledger, best) if plan.space else [],
        log_keys={key for key, domain in plan.space.items() if domain.log or domain.ratio_to},
        importance=importance(plan, ledger) if plan.space else None,
        trades=_trades(best),
        trials=[
            (record, last_scores(ledger.rows(record)).get(metric))
            for _, record in sorted(ledger.records.items())
        ],
        folder=str(ledger.folder),
        plots=plots,
        format_settings=format_settings,
        mean=mean,
    )


def mean(group: Group, metric: str, digits: int = 4) -> tuple[str | None, str]:
    """A mean over seeds, or None where it is not a number, and half its interval."""
    value, half = group.mean(metric), group.half_width(metric)
    if not math.isfinite(value):
        return None, ""
    return number(value, digits), f"±{half:.2g}" if math.isfinite(half) else ""


def _figures(plan: Plan, ledger: Ledger, best: Sequence[Group]) -> list[tuple[str, str]]:
    """The few that are asked for first, each with what it is."""
    metric = plan.sweep.metric
    counts = Counter(record.status for record in ledger.records.values())
    counted = ", ".join(
        f"{counts[status]} {status}"
        for status in ("finished", "pruned", "failed", "interrupted")
        if counts[status]
    )
    figures = []
    if best:
        first, seeds = best[0], "seed" if best[0].seeds == 1 else "seeds"
        figures.append((number(first.mean(metric)), f"{metric} of the best configuration"))
        if len(best) > 1:
            means = [group.mean(metric) for group in best]
            gap = max(means) - min(means)
            figures.append((number(gap, 3), "between the best and the worst that were finished"))
        figures.append((str(first.seeds), f"{seeds} of the best configuration"))
    return [*figures, (str(len(ledger.records)), f"trials: {counted}")]


def _confidence(plan: Plan, best: Sequence[Group]) -> str:
    """How sure the first place is, in words; empty where the template says it, of one seed."""
    metric = plan.sweep.metric
    if not best or best[0].seeds < 2:
        return ""
    text = (
        f"± is half the 95 % interval of the mean over {best[0].seeds} seeds (Student's t). "
        "Configurations with fewer seeds stand below."
    )
    if len(best) < 2 or best[1].seeds < 2:
        return text
    gap = abs(best[0].mean(metric) - best[1].mean(metric))
    reach = math.hypot(best[0].half_width(metric), best[1].half_width(metric))
    sure = "is beyond what" if gap > reach else "may be no more than what"
    return f"{text} The first place's lead of {gap:.2g} {sure} seeds explain."


def _curves(plan: Plan, ledger: Ledger, best: Sequence[Group]) -> list[plots.Curve]:
    metric = plan.sweep.metric
    on_top = {record.number for record in best[0].trials} if best else set()
    return [
        plots.Curve(
            f"trial {record.name}",
            tuple((float(row["step"]), float(row[metric])) for row in rows if metric in row),
            record.number in on_top,
            record.status != "finished",
        )
        for record in ledger.records.values()
        for rows in [ledger.rows(record)]
    ]


def _lines(plan: Plan, ledger: Ledger, best: Sequence[Group]) -> list[plots.Line]:
    metric = plan.sweep.metric
    lines = [
        plots.Line(f"trial {group.names}", group.drawn, group.mean(metric), False) for group in best
    ]
    for group in groups(ledger):
        # Those that no seed has finished.
        scores = [last_scores(ledger.rows(record)).get(metric) for record in group.trials]
        known = [score for score in scores if score is not None and math.isfinite(score)]
        if not group.seeds and known:
            shown = max(known) if plan.sweep.direction == "max" else min(known)
            lines.append(plots.Line(f"trial {group.names}", group.drawn, shown, True))
    return lines


def _trades(best: Sequence[Group]) -> list[dict[str, Any]]:
    """What PSNR is weighed against: the points of the plots, and which are the Pareto set."""
    blur = (
        "Blur is rewarded by PSNR; sharpness, the ratio of fine detail to the original's, is "
        "right at 1."
    )
    distance = "LPIPS is a learned distance, and lower is better."
    trades = []
    for name, right, label, reason in (
        ("val_ema/sharpness", 1.0, "sharpness (1 is right)", blur),
        (LPIPS, 0.0, "LPIPS (0 is the original)", distance),
    ):
        points = [
            (group.label or group.trials[0].name, group.mean(name), group.mean("val_ema/psnr"))
            for group in best
        ]
        points = [p for p in points if math.isfinite(p[1]) and math.isfinite(p[2])]
        # A ratio is as far from 1 at 1/2 as at 2.
        if not points or (right and min(x for _, x, _ in points) <= 0):
            continue
        front = plots.pareto([(y, -abs(math.log(x)) if right else -x) for _, x, y in points])
        names = ", ".join(points[k][0] for k in front)
        plot = plots.trade_off(points, front, label, right)
        trades.append({"words": reason, "front": names, "plot": plot})
    return trades
