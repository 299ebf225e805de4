"""summary_report.html: one page that holds all it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jobs.evaluation import sections
from jobs.evaluation.exhibits import WorstClip
from jobs.report.words import definitions, document, number, outcome, sign
from taehv.evaluation.scores import METRICS

FOOTER = """The definitions of all scores are in taehv/evaluation/metrics.py and
taehv/evaluation/frames.py; all figures of this page, frame by frame, are in metrics.json beside it,
and the videos in comparison_videos."""

WORDS = {
    "pass": "Every figure is on the right side of its limit.",
    "warning": "No figure fails, but some are not where they should be.",
    "failure": "At least one figure fails.",
}

SPLITS = {
    "validation": "{} videos of the validation split",
    "all": "{} videos of the whole list",
}


def write_report(folder: Path, results: Mapping[str, Any], worst: Sequence[WorstClip]) -> None:
    """Write the page beside the other results.

    folder: where `latent_visualizations` lies already. results: as in metrics.json.
    """
    (folder / "summary_report.html").write_text(render(folder, results, worst), encoding="utf-8")


def render(folder: Path, results: Mapping[str, Any], worst: Sequence[WorstClip]) -> str:
    """The page."""
    latents = folder / "latent_visualizations" / "test_0_latents.png"
    whole = results["data"]["mode"] != "clips"
    parts = [
        ("Verdict", sections.verdict(results)),
        ("Figures", sections.figures(results)),
        ("Against others", sections.against_others(results)),
        ("Where it fails", sections.worst(results, worst)),
        (f"Over the {'video' if whole else 'clip'}", sections.over_time(results)),
        ("Spread over the clips", sections.distributions(results)),
        ("Error against motion and brightness", sections.causes(results)),
        ("Rate and latents", sections.rate(results, latents if latents.is_file() else None)),
        ("Time and memory", sections.cost(results)),
        ("Run and data", _identity(results)),
        ("Every clip", sections.every_clip(results)),
    ]
    name = _name(results)
    return document(f"{name}: {results['verdict']['overall']}", _head(name, results), parts, FOOTER)


def _head(name: str, results: Mapping[str, Any]) -> str:
    overall, data = results["verdict"]["overall"], results["data"]
    findings = results["verdict"]["findings"]
    missed = [f["name"] for f in findings if f["level"] != "pass"]
    told = WORDS[overall] + (f" Look at: {', '.join(missed)}." if missed else "")
    return f"""<p class="kicker">Evaluation of a video autoencoder, {results["created"][:10]}</p>
<h1>{escape(name)}</h1>
<p class="soft">{SPLITS[data["split"]].format(data["videos"])}, {_scored(data)}</p>
<div class="verdict {overall}">{sign(overall)}<div><strong>{overall.upper()}</strong>
{escape(told)}</div></div>
<div class="tiles">{_tiles(results)}</div>"""


def _tiles(results: Mapping[str, Any]) -> str:
    """The few figures that are asked for first."""
    scores = results["methods"]["network"]["scores"]

    def interval(name: str) -> str:
        low, high = scores[name]["low"], scores[name]["high"]
        if low is None:
            return METRICS[name].label
        return f"{METRICS[name].label}, 95 %: {number(low)} … {number(high)}"

    (against,) = (d for d in results["differences"]["down_and_up"] if d["metric"] == "psnr")
    plus = "+" if against["mean"] is not None and against["mean"] >= 0 else ""
    sharp = scores["sharpness"]["mean"]
    tiles = [
        (f"{number(scores['psnr']['mean'])} dB", interval("psnr")),
        (number(scores["ssim"]["mean"], 3), interval("ssim")),
        (
            f"{plus}{number(against['mean'], 3)} dB",
            f"over 8x down and up: {outcome(against)}",
        ),
        (
            "−" if sharp is None else f"{100 * sharp:.0f} %",  # noqa: RUF001
            "of the original's fine detail (sharpness)",
        ),
        (
            f"1 / {results['rate']['raw_over_half']:.0f}",
            f"of raw video in fp16 latents; 1 / {results['rate']['raw_over_int8']:.0f} in int8",
        ),
    ]
    return "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(words)}</span></div>'
        for figure, words in tiles
    )


def _identity(results: Mapping[str, Any]) -> str:
    weights, data, machine = (results[k] for k in ("checkpoint", "data", "environment"))
    entries = [
        ("weights", weights["path"]),
        ("SHA-256", weights["sha256"]),
        ("network", f"{weights['variant']}, {weights['parameters'] / 1e6:.2f} M parameters"),
        ("run", weights["run_dir"] or "not known"),
        ("step", str(weights["step"]) if weights["step"] is not None else "not known"),
        ("MLflow run", weights["run_id"] or "not known"),
        ("annotations", data["annotations"]),
        (
            "split",
            f"{data['split']}, seed {data['seed']}, {data['validation_fraction']:g} held out",
        ),
        ("machine", f"{machine['device']}, {machine['precision']}"),
        ("versions", f"Python {machine['python']}, PyTorch {machine['torch']}"),
        ("made", results["created"]),
    ]
    entries += [
        (results["methods"][key]["label"], found["file"])
        for key, found in results["methods"].items()
        if found["file"] and key not in ("network", "int8")
    ]
    entries += [(f"skipped: {s['video']}", s["reason"]) for s in data["skipped"]]
    return definitions(entries)


def _scored(data: Mapping[str, Any]) -> str:
    if data["mode"] != "clips":
        return "every frame in its own size"
    return f"{data['clips']} fixed clips of {data['num_frames']}x{data['height']}x{data['width']}"


def _name(results: Mapping[str, Any]) -> str:
    path = Path(results["checkpoint"]["path"])
    return f"{path.parent.name}/{path.name}"
