"""The videos of an evaluation: which they are, and how they are read."""

from __future__ import annotations

import logging
from collections.abc import Generator

from data_pipeline.clips import Rejection, open_sources
from data_pipeline.decoding.augment import Frames
from data_pipeline.decoding.damage import LostFrames
from data_pipeline.decoding.sandbox import WindowReader
from data_pipeline.decoding.whole_video import VideoFacts, WholeRequest, WholeVideo
from data_pipeline.decoding.window import WindowClips, WindowRequest
from data_pipeline.held_out import HeldOutVideo, choose_videos
from jobs.cli.errors import ConfigError
from jobs.cli.weights import find_weights, run_config
from jobs.evaluation.config import EvaluateConfig

log = logging.getLogger(__name__)


def videos_to_score(config: EvaluateConfig) -> tuple[list[HeldOutVideo], list[Rejection]]:
    """The held-out videos: those that the same seed and fraction keep out of training, or, of a
    list that is a test set of its own, all. Second those whose path leads out of the root."""
    if not config.data.annotations:
        raise ConfigError(
            "--data.annotations is missing: the videos to judge on, and no config.yaml of a run "
            "beside the checkpoint names any"
        )
    training, validation = open_sources(config.data, config.seed, batch=1)
    chosen, refused = choose_videos(validation.videos, config.seed, config.num_samples)
    if config.split == "validation":
        return chosen, refused
    run = run_config(find_weights(config.checkpoint))
    if run and run.data.annotations == config.data.annotations:
        log.warning(
            "--split all on the list that the run was trained on: the figures say how well it "
            "knows its own videos, not how well it does on others"
        )
    drawn = len(chosen) + len(refused)
    left = config.num_samples - drawn
    # Of a list with a single video a part is held out, and there are no others.
    if training.videos.rows is not None and (left or not config.num_samples):
        more, also = choose_videos(training.videos, config.seed, max(left, 0), drawn, chosen)
        chosen, refused = chosen + more, refused + also
    return chosen, refused


class VideoReader:
    """A `data_pipeline.clips.Reader` in a process of its own, which reads whole videos, too."""

    def __init__(self, decode_seconds: float) -> None:
        """decode_seconds: for one window, or one piece of a whole video."""
        self._reader, self._seconds = WindowReader(), decode_seconds

    def __call__(self, request: WindowRequest) -> WindowClips:
        """Raises what `WindowReader.read` raises."""
        return self._reader.read(request, self._seconds)

    def facts(self, location: str, stream: int) -> VideoFacts:
        """Size, rate and length of a video. Raises what `WindowReader.read_whole` raises."""
        whole, pieces = self.whole(WholeRequest(location, multiple=1, limit=1, stream=stream))
        for _ in pieces:
            pass
        return whole.facts

    def whole(self, request: WholeRequest) -> tuple[WholeVideo, Generator[Frames]]:
        """Raises what `WindowReader.read_whole` raises."""
        return self._reader.read_whole(request, self._seconds)

    def kept(self, request: WholeRequest) -> tuple[WholeVideo, Generator[Frames | LostFrames]]:
        """Raises what `WindowReader.read_kept` raises."""
        return self._reader.read_kept(request, self._seconds)

    def close(self) -> None:
        """End its process."""
        self._reader.close()
