"""What an evaluation hands on: figures, report and weights to MLflow, figures to TensorBoard."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.output import RESULTS
from jobs.tracking.tensorboard import EventFile
from jobs.tracking.tracker import Tracker

log = logging.getLogger(__name__)


def publish(config: EvaluateConfig, weights: Path, output: Path, results: Mapping[str, Any]) -> str:
    """Send everything to the run that made the weights; gives what to type to see it.

    The run is the one whose id lies beside the weights. Without it nothing is sent, unless a store
    was named: then there is a run of its own.
    """
    row, step = figures(results), results["checkpoint"]["step"] or 0
    if config.tracking.tensorboard:
        events = EventFile(output / "tensorboard")
        events.log(row, step)
        events.close()
    made_here = results["checkpoint"]["run_id"] is not None
    named = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not config.tracking.enabled or not (made_here or named):
        return ""
    tracker = Tracker(
        replace(config.tracking, tensorboard=False), weights.parent if made_here else output, {}
    )
    tracker.log(row, step)
    for name in RESULTS:
        place = output / name
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        for file in files:
            tracker.artifact(file, "evaluation" if file == place else f"evaluation/{name}")
    verdict = results["verdict"]
    tracker.tag("verdict", verdict["overall"])
    if config.register_as:
        tracker.register(config.register_as, weights, version_tags(results))
    tracker.finish(tracker.status_before or "FINISHED")
    return tracker.open_hint()


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """`eval/psnr`, `eval/psnr_low`, ... of the network, `eval_teacher/psnr` and so on of others."""
    row: dict[str, float] = {}
    for key, method in results["methods"].items():
        prefix = "eval" if key == "network" else f"eval_{key}"
        for name, found in method["scores"].items():
            if found["clips"]:
                # A mean that is not a number is shown as such.
                row[f"{prefix}/{name}"] = math.nan if found["mean"] is None else found["mean"]
            if key == "network" and found["low"] is not None:
                row[f"{prefix}/{name}_low"] = found["low"]
                row[f"{prefix}/{name}_high"] = found["high"]
        if cost := results["cost"]["methods"].get(key):
            for name in ("encode_seconds", "decode_seconds"):
                row[f"{prefix}/{name}"] = cost[name]
    for name in ("half", "int8"):
        row[f"eval/bits_per_pixel_{name}"] = results["rate"]["bits_per_pixel"][name]
    return row


def version_tags(results: Mapping[str, Any]) -> dict[str, str]:
    """The verdict, line by line, and which weights it is on."""
    tags = {
        "verdict": results["verdict"]["overall"],
        "sha256": results["checkpoint"]["sha256"],
        "variant": results["checkpoint"]["variant"],
        "evaluated": results["created"],
    }
    for finding in results["verdict"]["findings"]:
        figure = "none" if finding["figure"] is None else f"{finding['figure']:.4g}"
        # MLflow allows no commas in a name, among other things.
        name = "".join(c if c.isalnum() else "_" for c in finding["name"])
        tags[f"verdict.{name}"] = f"{finding['level']}: {figure}, wanted {finding['threshold']}"
    return tags
