"""The work on all shards: spread over workers, shown while it goes on, and stopped by a signal."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.decoding.damage import LostFrames
from jobs.cli.console import stop_signals_to
from jobs.cli.progress import VideoProgress
from jobs.cluster.fan_out import RayConfig, Worker, fan_out

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardDone:
    """What came of a shard."""

    videos: int
    frames: int
    unusable: list[dict[str, str]]
    """Each with `video` and `reason`."""
    lost: list[dict[str, str | int]] = field(default_factory=list)
    """Of `Summary`."""


def lost_line(lost: Mapping[str, str | int]) -> str:
    """An entry of `Summary.lost`, for people."""
    first, end, reason = int(lost["first_frame"]), int(lost["end_frame"]), str(lost["reason"])
    return f"video {lost['video']}: {LostFrames(first, end, reason)}"


class Stopped(BaseException):
    """Ctrl-C or SIGTERM, by its number."""


def stoppable() -> AbstractContextManager[None]:
    """Ctrl-C and SIGTERM raise `Stopped`."""
    return stop_signals_to(_stop)


def _stop(number: signal.Signals) -> None:
    raise Stopped(number)


def work_on(
    shards: Sequence[int],
    worker: Callable[[Any], Worker[int, ShardDone]],
    task: Any,
    config: RayConfig,
    progress: VideoProgress,
    effect: str,
) -> Generator[ShardDone]:
    """What came of each shard, in any order.

    effect: what happens to an unusable video, for the log.
    """
    with (
        closing(progress),
        fan_out(config if shards else RayConfig(use="no")) as workers,
        # Anew: Ray takes SIGTERM over when it starts.
        stoppable(),
        closing(workers.each(worker, task, shards)) as results,
    ):
        for done in results:
            for entry in done.unusable:
                log.warning("video %s is %s: %s", entry["video"], effect, entry["reason"])
            for lost in done.lost:
                log.warning("%s", lost_line(lost))
            progress.add(done.videos, done.frames, len(done.unusable))
            yield done
