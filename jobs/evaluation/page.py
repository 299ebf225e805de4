"""summary_report.html and artifacts.html: pages that hold all they show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.evaluation import plots
from jobs.evaluation.artifact_pictures import Pictures
from jobs.evaluation.exhibits import WorstClip
from jobs.evaluation.table import flat_line, scale_line
from jobs.report.words import interval, number, outcome, picture, render
from taehv.evaluation.artifact_verdict import ARTIFACTS, EXPLAINED
from taehv.evaluation.compare import FEWEST_VIDEOS
from taehv.evaluation.scores import METRICS

Results = Mapping[str, Any]


def write_report(folder: Path, results: Results, worst: Sequence[WorstClip]) -> None:
    """Write the page beside the other results.

    folder: where `latent_visualizations` lies already. results: as in metrics.json.
    """
    path = Path(results["checkpoint"]["path"])
    name, overall = f"{path.parent.name}/{path.name}", results["verdict"]["overall"]
    latents = folder / "latent_visualizations" / "test_0_latents.png"
    differences = [found for of_one in results["differences"].values() for found in of_one]
    scores = results["methods"]["network"]["scores"]
    # Those that any clip of the network has.
    shown = [n for n in METRICS if n in scores and scores[n]["clips"]]
    # A clip's own mean is its PSNR.
    of_clip = [n for n in shown if n != "psnr_mean"]
    page = render(
        "evaluation/report.html.j2",
        title=f"{name}: {overall}",
        name=name,
        overall=overall,
        results=results,
        figures=_figures(results),
        worst=worst,
        latents=latents if latents.is_file() else None,
        shown=shown,
        of_clip=of_clip,
        labels=[METRICS[n].label for n in of_clip],
        # int8 would lie on the network, the mean colour far below.
        drawn=[key for key in results["methods"] if key not in ("int8", "mean_colour")][:5],
        clips=sorted(plots.clips_of(results), key=_badness),
        reach={name: plots.reach_of(differences, name) for name in METRICS},
        fewest_videos=FEWEST_VIDEOS,
        metrics=METRICS,
        flat_line=flat_line,
        scale_line=scale_line,
        plots=plots,
        interval=interval,
        outcome=outcome,
        picture=picture,
    )
    (folder / "summary_report.html").write_text(page, encoding="utf-8")


def write_artifacts(folder: Path, results: Results, pictures: Pictures) -> None:
    """Write the page of the artifacts."""
    found, limits = results["artifacts"], results["verdict"]["thresholds"]
    path = Path(results["checkpoint"]["path"])
    methods = [*found["figures"]]
    # As in the verdict.
    levels = {f["name"]: f["level"] for f in results["verdict"]["findings"]}
    page = render(
        "evaluation/artifacts.html.j2",
        title=f"{path.parent.name}/{path.name}: artifacts",
        name=f"{path.parent.name}/{path.name}",
        results=results,
        found=found,
        methods=methods,
        labels={key: results["methods"][key]["label"] for key in methods},
        artifacts={
            name: (artifact, f"{'above' if artifact.above else 'below'} {limits[artifact.limit]:g}")
            for name, artifact in ARTIFACTS.items()
            if name in found["figures"]["network"]
        },
        levels=levels,
        explained=EXPLAINED,
        pictures=pictures,
        plots=plots,
        picture=picture,
    )
    (folder / "artifacts.html").write_text(page, encoding="utf-8")


def _badness(entry: tuple[str, Mapping[str, Any]]) -> float:
    """By PSNR; what is not a number comes before the lowest."""
    psnr = entry[1]["scores"]["network"]["psnr"]
    return -math.inf if psnr is None else float(psnr)


def _figures(results: Results) -> list[tuple[str, str]]:
    """The few that are asked for first, each with what it is."""
    scores, rate = results["methods"]["network"]["scores"], results["rate"]

    def ends(name: str) -> str:
        low, high = scores[name]["low"], scores[name]["high"]
        between = "" if low is None else f", 95 %: {number(low)} … {number(high)}"
        return METRICS[name].label + between

    def gain(key: str, of_what: str) -> tuple[str, str]:
        (against,) = (d for d in results["differences"][key] if d["metric"] == "psnr")
        plus = "+" if against["mean"] is not None and against["mean"] >= 0 else ""
        return f"{plus}{number(against['mean'], 3)} dB", f"over {of_what}: {outcome(against)}"

    start = "the weights that the run started from"
    gains = [gain("baseline", start)] if "baseline" in results["differences"] else []
    sharp = scores["sharpness"]["mean"]
    return [
        (f"{number(scores['psnr']['mean'])} dB", ends("psnr")),
        (number(scores["ssim"]["mean"], 3), ends("ssim")),
        *gains,
        gain("down_and_up", "8x down and up"),
        (
            "−" if sharp is None else f"{100 * sharp:.0f} %",  # noqa: RUF001
            "of the original's fine detail (sharpness)",
        ),
        (
            f"1 / {rate['raw_over_half']:.0f}",
            f"of raw video in fp16 latents; 1 / {rate['raw_over_int8']:.0f} in int8",
        ),
    ]
