"""The output folder: kept as it is until new results are whole."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from jobs.evaluation.artifact_pictures import picture_artifacts
from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.exhibits import worst_clips, write_samples
from jobs.evaluation.measure import Sampling
from jobs.evaluation.methods import Methods
from jobs.evaluation.page import write_artifacts, write_report
from jobs.evaluation.reading import VideoReader
from jobs.evaluation.scoring import ScoredVideo
from taehv.errors import TrainingError

log = logging.getLogger(__name__)

RESULTS = (
    "metrics.json",
    "summary_report.html",
    "artifacts.html",
    "comparison_videos",
    "latent_visualizations",
    "worst_clips",
    "artifacts",
)
"""All that an evaluation writes."""


def prepare_output(config: EvaluateConfig, methods: Methods) -> Path:
    """The folder for the results.

    Raises TrainingError where results are there already, or none could be written.
    """
    folder = Path(config.output_dir or methods.weights.parent / "evaluation").absolute()
    held = [name for name in RESULTS if (folder / name).exists()]
    if held and not config.overwrite:
        raise TrainingError(
            f"--output-dir {folder} holds results already ({', '.join(held)}): choose another, "
            "or replace them with --overwrite"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable."):
            pass
    except OSError as error:
        raise TrainingError(
            f"--output-dir {folder} cannot be written: {error.strerror or error}"
        ) from error
    return folder


def write_results(
    output: Path,
    results: dict[str, Any],
    began: float,
    scored: Sequence[ScoredVideo],
    sampling: Sampling,
    methods: Methods,
    config: EvaluateConfig,
) -> None:
    """Write metrics.json, then pictures, videos and the report beside it.

    began: the evaluation, by `time.perf_counter`.
    """
    with staged(output) as folder:
        # What took hours is safe before pictures and report, which may fail.
        _write_metrics(folder, results, began)
    try:
        with closing(VideoReader(config.data.decode_seconds)) as read, staged(output) as folder:
            write_samples(scored[: config.num_videos], sampling, methods, read, folder)
            worst = worst_clips(
                scored, sampling, methods, read, folder / "worst_clips", config.worst_clips
            )
            pictures = picture_artifacts(
                results, scored, sampling, methods, read, folder / "artifacts"
            )
            _write_metrics(folder, results, began)
            write_report(folder, results, worst)
            write_artifacts(folder, results, pictures)
    except BaseException:
        log.warning(
            "all scores and the verdict are in %s; the report is not written",
            output / "metrics.json",
        )
        raise


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write results to, which take the place of older ones once all are there.

    After an error, or Ctrl-C, the older ones are still there and the new ones are not.
    """
    with tempfile.TemporaryDirectory(
        dir=folder, prefix=".unfinished.", ignore_cleanup_errors=True
    ) as unfinished:
        yield Path(unfinished)
        for name in RESULTS:
            old, new = folder / name, Path(unfinished, name)
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
            if new.exists():
                new.rename(old)


def _write_metrics(folder: Path, results: dict[str, Any], began: float) -> None:
    results["seconds"] = time.perf_counter() - began
    text = json.dumps(results, indent=1, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n")
