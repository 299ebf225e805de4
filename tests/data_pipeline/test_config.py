"""A value that makes no sense is refused with the name of its key."""

from typing import Any

import pytest

from data_pipeline.config import DataConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("height", 0),
        ("width", -8),
        ("num_frames", 0),
        ("min_frame_step", 0),
        ("max_frame_step", 0),
        ("crops", "nativ"),
        ("crops", "0-1"),
        ("crops", "0.8-1.5"),
        ("crops", "0.8-0.1"),
        ("flip_probability", 1.1),
        ("brightness", 1.0),
        ("contrast", -0.1),
        ("saturation", float("nan")),
        ("hue", 0.6),
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("decode_cpus", 0.0),
        ("decode_cpus", float("inf")),
    ],
)
def test_nonsense_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^data\.{key} must be "):
        DataConfig(**{key: value})


def test_the_defaults_make_sense() -> None:
    assert DataConfig().num_frames == 9
