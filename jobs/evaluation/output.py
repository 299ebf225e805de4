"""The output folder: kept as it is until new results are whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taehv.errors import TrainingError

RESULTS = (
    "metrics.json",
    "summary_report.html",
    "comparison_videos",
    "latent_visualizations",
    "worst_clips",
)
"""All that an evaluation writes."""


def check_output(folder: Path, overwrite: bool) -> None:
    """Raises TrainingError where results are there already, or none could be written."""
    held = [name for name in RESULTS if (folder / name).exists()]
    if held and not overwrite:
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


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write results to, which take the place of older ones once all are there.

    After an error, or Ctrl-C, the older ones are still there and the new ones are not.
    """
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".unfinished."))
    try:
        yield aside
        for name in RESULTS:
            old, new = folder / name, aside / name
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
            if new.exists():
                new.rename(old)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
