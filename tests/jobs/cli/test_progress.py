"""What a log shows of a job's progress."""

import logging

import pytest

from jobs.cli import progress as progress_module
from jobs.cli.progress import TrainingProgress, VideoProgress


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    caplog.set_level(logging.INFO, "jobs")
    return clock


def test_a_resumed_run_s_rate_is_of_the_steps_that_it_made(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    progress = TrainingProgress(100)
    progress.step(40)
    progress.row({"step": 50, "train/reconstruction_loss": 0.25})
    progress.skipped(2)
    clock.now += 5
    progress.step(50)
    clock.now += 15
    progress.step(60)
    progress.close()
    assert caplog.messages == [
        "step 40 of 100",
        # 20 steps in 20 s.
        "step 60 of 100 (1.00 steps/s, 0:40 left), reconstruction loss 0.25000, 2 videos skipped",
    ]


def test_videos_of_before_count_as_done_but_not_for_the_rate(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    progress = VideoProgress(videos=30, done=10)
    clock.now += 20
    progress.add(videos=4, frames=200, unusable=1)
    progress.close()
    # 5 videos in 20 s, 15 to go.
    assert caplog.messages == ["15 of 30 videos (10 frames/s, 1 unusable, 1:00 left)"]
