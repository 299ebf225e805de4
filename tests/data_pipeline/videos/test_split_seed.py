"""`data.split_seed`: the same held-out clips, whatever seed the run itself has."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipeline.batches import iter_batches
from data_pipeline.clips import open_sources
from data_pipeline.config import DataConfig
from tests.helpers.data_videos import write_dataset


def _frames(config: DataConfig, seed: int, split: int) -> np.ndarray:
    source = open_sources(config, seed, batch=2)[split]
    (batch,) = iter_batches(source, iter([np.arange(4)]))
    return batch["frames"]


def test_held_out_clips_follow_the_split_seed_alone(tmp_path: Path) -> None:
    annotations = write_dataset(tmp_path, 10, 14)
    config = DataConfig(
        annotations=str(annotations),
        height=32,
        width=32,
        num_frames=5,
        validation_fraction=0.3,
        split_seed=3,
    )
    assert np.array_equal(_frames(config, 0, split=1), _frames(config, 9, split=1))
    assert not np.array_equal(_frames(config, 0, split=0), _frames(config, 9, split=0))
    # Left to itself, the split is that of the run's own seed.
    own = replace(config, split_seed=-1)
    assert np.array_equal(_frames(own, 3, split=1), _frames(config, 9, split=1))
