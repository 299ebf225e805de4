"""What is said of settings before a run starts."""

from dataclasses import replace

import pytest

from jobs.cli.config import Config
from jobs.training.checks import check
from taehv.model.variants import ModelConfig


@pytest.mark.parametrize(
    ("variant", "num_frames", "warned"),
    [("taecvx", 9, False), ("taecvx", 12, False), ("taecvx", 13, True), ("taehv", 13, False)],
)
def test_clips_that_teach_another_frame_rule_are_told(
    variant: str, num_frames: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config()
    data = replace(config.data, num_frames=num_frames)
    check(replace(config, data=data, model=ModelConfig(variant=variant)))
    told = "clips of 13 frames are 4 latents" in caplog.text
    assert told == warned
