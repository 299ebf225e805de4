"""report.html: the answer of a sweep, at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from html import escape

from jobs.report.words import definitions, document, level, number, table
from jobs.sweep import plots
from jobs.sweep.ablation import NONE, Reference, ablation_section, mean_cell
from jobs.sweep.definition import Plan
from jobs.sweep.importance import importance
from jobs.sweep.ledger import Ledger, Record
from jobs.sweep.results import (
    LPIPS,
    Group,
    groups,
    last_scores,
    ranked,
    settings_told,
    unranked_told,
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
    best = ranked(plan, ledger)
    parts = [("Ranking", _ranking(plan, ledger, best))]
    if plan.rows:
        parts.append(("Ablation", ablation_section(plan, ledger, reference)))
    parts += [
        ("Validation", _curves(plan, ledger, best)),
        ("Settings and score", _parallel(plan, ledger, best)),
        ("What decides", _importance(plan, ledger)),
        ("Faithful or sharp", _trade_off(best)),
        ("All trials", _trials(plan, ledger)),
        ("The sweep", _identity(plan, ledger)),
    ]
    footer = (
        "Scores are of clips that no trial was trained on, the same for all. The figures are in "
        "results.csv beside this page, each trial's own in its folder."
    )
    shown = [part for part in parts if part[1]]
    return document(f"Sweep {plan.sweep.name}", _head(plan, ledger, best), shown, footer)


def _head(plan: Plan, ledger: Ledger, best: Sequence[Group]) -> str:
    sweep = plan.sweep
    counts = {
        status: sum(record.status == status for record in ledger.records.values())
        for status in ("finished", "pruned", "failed", "interrupted")
    }
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    tiles = []
    if best:
        first = best[0]
        tiles.append(
            (number(first.mean(sweep.metric)), f"{sweep.metric} of the best configuration")
        )
        if len(best) > 1:
            gap = abs(first.mean(sweep.metric) - best[-1].mean(sweep.metric))
            tiles.append((number(gap, 3), "between the best and the worst that were finished"))
        tiles.append((str(first.seeds), f"{_seeds(first.seeds)} of the best configuration"))
    tiles.append((str(len(ledger.records)), f"trials: {told}"))
    shown = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(words)}</span></div>'
        for figure, words in tiles
    )
    answer = escape(settings_told(best[0])) if best else "No trial is finished."
    return f"""<p class="kicker">Sweep, {datetime.now():%Y-%m-%d}</p>
<h1>{escape(sweep.name)}</h1>
<p class="soft">Best: {answer}</p>
<div class="tiles">{shown}</div>"""


def _seeds(count: int) -> str:
    return "seed" if count == 1 else "seeds"


def _ranking(plan: Plan, ledger: Ledger, best: Sequence[Group]) -> str:
    unranked = unranked_told(plan, ledger)
    left_out = f"<p>{escape(unranked)}</p>" if unranked else ""
    if not best:
        return left_out or "<p>No trial is finished yet.</p>"
    metric = plan.sweep.metric
    header = ["rank", "configuration", "trials", escape(metric)]
    header += [escape(label) for name, label in SHOWN.items() if f"val_ema/{name}" != metric]
    rows = []
    for rank, group in enumerate(best, start=1):
        cells = [str(rank), escape(settings_told(group))]
        cells.append(" ".join(record.name for record in group.trials))
        cells.append(mean_cell(group, metric))
        cells += [
            mean_cell(group, f"val_ema/{name}") for name in SHOWN if f"val_ema/{name}" != metric
        ]
        rows.append(cells)
    shown = table(header, rows, own=0, words=(1,))
    return f"<p>{_confidence(plan, best)}</p>{shown}{left_out}"


def _confidence(plan: Plan, best: Sequence[Group]) -> str:
    """How sure the first place is, in words."""
    metric = plan.sweep.metric
    if best[0].seeds < 2:
        return (
            "Each configuration has one seed: differences as small as those between seeds, which "
            "are not known here, mean nothing. <code>seeds</code> and <code>confirm</code> in the "
            "sweep's file tell."
        )
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


def _curves(plan: Plan, ledger: Ledger, best: Sequence[Group]) -> str:
    metric = plan.sweep.metric
    on_top = {record.number for record in best[0].trials} if best else set()
    shown = []
    for record in ledger.records.values():
        points = tuple(
            (float(row["step"]), float(row[metric])) for row in ledger.rows(record) if metric in row
        )
        early = record.status != "finished"
        shown.append(plots.Curve(f"trial {record.name}", points, record.number in on_top, early))
    words = "The best configuration is drawn strong; a cross is where a trial was stopped."
    return f"<p>{words}</p>{plots.curves(shown, metric)}"


def _parallel(plan: Plan, ledger: Ledger, best: Sequence[Group]) -> str:
    keys, metric = list(plan.space), plan.sweep.metric
    if not keys:
        return ""
    lines = [plots.Line(_names(group), group.drawn, group.mean(metric), False) for group in best]
    for group in groups(plan, ledger):
        # Those that no seed has finished.
        scores = [last_scores(ledger.rows(record)).get(metric) for record in group.trials]
        known = [score for score in scores if score is not None and math.isfinite(score)]
        if not group.seeds and known:
            lines.append(plots.Line(_names(group), group.drawn, max(known), True))
    if not lines:
        return ""
    log_keys = {key for key, domain in plan.space.items() if domain.log or domain.ratio_to}
    words = ["The best configuration is drawn strong"]
    if any(line.ended_early for line in lines):
        words.append("dashed ones were stopped early, and have the score of their end")
    words += [
        f"{escape(key)} is drawn as a factor on {escape(domain.ratio_to)}"
        for key, domain in plan.space.items()
        if domain.ratio_to
    ]
    return f"<p>{'; '.join(words)}.</p>{plots.parallel(keys, log_keys, lines, metric)}"


def _names(group: Group) -> str:
    return "trial " + " ".join(record.name for record in group.trials)


def _importance(plan: Plan, ledger: Ledger) -> str:
    if not plan.space:
        return ""
    found = importance(plan, ledger)
    if found is None:
        return (
            "<p>Too few configurations, or scores too much alike, to tell how much each key "
            "decides.</p>"
        )
    return (
        f"<p>Share of the score's variance over the searched ranges that each key explains "
        f"(functional ANOVA over {found.configurations} configurations, compared at step "
        f"{found.step}, which all reached).</p>{plots.bars(found.by_key)}"
    )


def _trade_off(best: Sequence[Group]) -> str:
    parts = []
    sharp = _scored_both(best, "val_ema/sharpness")
    if sharp and all(x > 0 for _, x, _ in sharp):
        front = plots.pareto([(psnr, -abs(math.log(x))) for _, x, psnr in sharp])
        parts.append(
            "<p>Blur is rewarded by PSNR; sharpness, the ratio of fine detail to the original's, "
            f"is right at 1. {_front_told(sharp, front)}</p>"
            + plots.trade_off(sharp, front, "sharpness (1 is right)", 1.0)
        )
    distance = _scored_both(best, LPIPS)
    if distance:
        front = plots.pareto([(psnr, -x) for _, x, psnr in distance])
        parts.append(
            "<p>LPIPS is a learned distance, and lower is better. "
            f"{_front_told(distance, front)}</p>"
            + plots.trade_off(distance, front, "LPIPS (0 is the original)", 0.0)
        )
    return "".join(parts)


def _scored_both(best: Sequence[Group], other: str) -> list[tuple[str, float, float]]:
    """Name, the other score and PSNR of those that have both."""
    points = [
        (group.label or group.trials[0].name, group.mean(other), group.mean("val_ema/psnr"))
        for group in best
    ]
    return [p for p in points if math.isfinite(p[1]) and math.isfinite(p[2])]


def _front_told(points: Sequence[tuple[str, float, float]], front: Sequence[int]) -> str:
    names = ", ".join(escape(points[k][0]) for k in front)
    return f"Filled: the Pareto set ({names}), of which none is better than another in both."


def _trials(plan: Plan, ledger: Ledger) -> str:
    header = ["trial", "status", "configuration", "seed", "step", plan.sweep.metric, "verdict"]
    rows = [
        (
            record.name,
            _status(record),
            escape(_told(record)),
            str(record.seed),
            str(record.step),
            number(last_scores(ledger.rows(record)).get(plan.sweep.metric)),
            level(record.verdict) if record.verdict else NONE,
        )
        for _, record in sorted(ledger.records.items())
    ]
    body = table(header, rows, words=(2,))
    return f"<details><summary>{len(rows)} trials</summary>{body}</details>"


def _status(record: Record) -> str:
    error = f"<small>{escape(record.error)}</small>" if record.error else ""
    return record.status + error


def _told(record: Record) -> str:
    return settings_told(Group({}, record.settings, record.label, (), {}))


def _identity(plan: Plan, ledger: Ledger) -> str:
    sweep, base = plan.sweep, plan.base
    if plan.points() is None:
        search = f"{sweep.search.algorithm}, {sweep.search.trials} trials, seed {sweep.search.seed}"
    else:
        search = "rows" if plan.rows else "grid"
    entries = [
        ("folder", str(ledger.folder)),
        ("search", search),
        ("scheduler", sweep.scheduler.name),
        ("compared by", f"{sweep.metric}, {sweep.direction}"),
        ("seeds", ", ".join(map(str, sweep.seeds))),
        ("steps of a trial", str(base.train.max_steps)),
        ("annotations", base.data.annotations),
        ("held out", f"{base.train.validation_clips} clips, split seed {base.data.split_seed}"),
        *((key, str(value)) for key, value in sweep.space.items()),
        *((label, str(row)) for label, row in plan.rows.items()),
    ]
    return definitions(entries)
