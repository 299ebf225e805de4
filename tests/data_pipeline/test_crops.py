"""The scale at which clips show a video, by formula."""

import math

import pytest

from data_pipeline.crops import mean_scale


@pytest.mark.parametrize(
    ("crops", "expected"),
    [
        ("native", 1.0),
        ("0.5-0.5", 64 / 180),
        # The mean of 64 / side over sides of 288 to 360 pixels.
        ("0.8-1.0", 64 * math.log(360 / 288) / (360 - 288)),
        ("uniform", 64 * math.log(360 / 64) / (360 - 64)),
        # The scale itself is drawn evenly.
        ("mixed", (1 + 64 / 360) / 2),
    ],
)
def test_the_mean_scale_of_a_setting(crops: str, expected: float) -> None:
    """Square clips of 64 pixels, of a video of 640x360."""
    assert mean_scale(crops, (64, 64), (360, 640)) == pytest.approx(expected, rel=1e-4)


def test_a_video_smaller_than_the_clip_is_enlarged() -> None:
    assert mean_scale("mixed", (64, 64), (48, 48)) == pytest.approx(64 / 48)
