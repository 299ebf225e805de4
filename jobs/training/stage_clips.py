"""The clips of each stage of a run (`train.stages`): other sizes and batches, the same videos."""

from __future__ import annotations

from dataclasses import replace

from data_pipeline.clips import ClipSource
from jobs.cli.config import Config


def clips_of_stages(source: ClipSource, config: Config) -> list[ClipSource]:
    """The training clips `source`, as each stage of the run has them."""
    return [_clips_of(source, stage) for stage in config.each_stage()]


def _clips_of(source: ClipSource, stage: Config) -> ClipSource:
    clip = {key: getattr(stage.data, key) for key in ("height", "width", "num_frames")}
    order = replace(
        source.order,
        batch=stage.train.global_batch_size,
        config=replace(source.config, **clip),
    )
    return replace(source, order=order)
