"""A configuration with all its places made absolute: workers start elsewhere."""

from __future__ import annotations

import dataclasses
import os
from datetime import datetime
from pathlib import Path

from data_pipeline.synthetic import ensure_synthetic
from jobs.cli.config import Config
from jobs.cli.paths import absolute, checkpoint_address, run_address, share


def with_places(config: Config) -> Config:
    """Absolute paths and addresses, with which other machines find the same files. Without
    annotations the synthetic videos are made, and copied to `cluster.storage` where that is set.

    Raises OSError where the storage refuses.
    """
    storage, annotations = config.cluster.storage, config.data.annotations
    run_dir = config.train.run_dir or f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}"
    if not annotations:
        synthetic = ensure_synthetic(_cache_dir())
        annotations = share(synthetic.parent, storage) if storage else str(synthetic)
    run_dir = run_address(run_dir, storage)
    replace = dataclasses.replace
    tracking = config.tracking
    if "://" in run_dir and not (tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        # Beside the run folders, where they are on a file system; a database cannot lie on S3.
        tracking = replace(tracking, uri=f"sqlite:///{Path.home()}/mlflow.db")
    return replace(
        config,
        data=replace(
            config.data,
            annotations=absolute(annotations),
            root=absolute(config.data.root),
            validation_annotations=absolute(config.data.validation_annotations),
        ),
        model=replace(config.model, pretrained=absolute(config.model.pretrained)),
        teacher=replace(config.teacher, path=absolute(config.teacher.path)),
        train=replace(
            config.train,
            run_dir=run_dir,
            resume=checkpoint_address(config.train.resume, config.train.run_dir, storage),
        ),
        tracking=tracking,
    )


def _cache_dir() -> Path:
    """Where the synthetic driving set is kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "taehv"
