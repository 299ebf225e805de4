"""The data section of the configuration."""

import math
from dataclasses import dataclass, replace

from data_pipeline.crops import ALLOWED, is_setting
from data_pipeline.split_by import is_split_by


@dataclass(frozen=True)
class DataConfig:
    """Which videos are read and what a clip of them looks like.

    Raises ValueError, with the key's name, where a value makes no sense.
    """

    annotations: str = ""
    """The videos: a folder, with all videos below it; a MiniDataset file, JSON {"total": N, "list":
    [{"path": "x.mp4"}, ...]}; a JSON list of paths or of such objects, or one of them a line; a
    Parquet file or a table (.csv, .tsv) with a column `path`; or a text with a path a line."""

    root: str = ""
    """Folder that the relative paths start at; empty: the folder that the list lies in, or is."""

    validation_annotations: str = ""
    """List of the videos to hold out, in any of these forms; what it names is never trained on.
    Empty: they are drawn from data.annotations."""

    split_by: str = ""
    """What makes several files one drive, all of which is trained on or held out: a number n, for
    the first n folders of the path; or a regular expression, whose group, or whole match, names the
    drive. Empty: every file is one by itself."""

    stream: int = -1
    """Which of a file's video streams is read, from 0; -1: the one that FFmpeg calls the best."""

    deinterlace: bool = False
    """Rebuild whole frames from the half-pictures of interlaced video, each by itself."""

    height: int = 128
    """Rows of a clip, in pixels."""

    width: int = 128
    """Columns of a clip, in pixels."""

    validation_height: int = 0
    """Rows of a clip of validation, at best more than a training clip has; 0: data.height."""

    validation_width: int = 0
    """Columns of a clip of validation; 0: data.width."""

    num_frames: int = 9
    """Frames of a clip. 8k + 1 suits the CogVideoX teacher, 4k + 1 the network."""

    min_frame_step: int = 1
    """Smallest distance between a clip's frames, in frames of the video."""

    max_frame_step: int = 3
    """Largest distance between a clip's frames; shortened where a video is too short for it."""

    clips_per_window: int = 4
    """Clips that are cut from one stretch of a video, which is decoded once. More cost less."""

    crops: str = "mixed"
    """How large a part of the frame a clip shows: from a crop of the clip's own size, whose pixels
    are the video's, to the largest that fits, scaled down. mixed: the scale at which the video is
    shown is drawn evenly between those two, so that about half of the clips are shrunk to less than
    half. uniform: the side of the crop is drawn evenly, so that most clips of large videos are
    shrunk far. native: always the clip's own size. 0.8-1.0: always whole pictures scaled down, the
    side being drawn between these parts of the largest crop's."""

    flip_probability: float = 0.5
    """Probability that a clip is mirrored left to right."""

    brightness: float = 0.1
    """Brightness is multiplied by a factor drawn from [1 - x, 1 + x]."""

    contrast: float = 0.1
    """The distance to the clip's mean grey is multiplied by a factor from [1 - x, 1 + x]."""

    saturation: float = 0.1
    """The distance to a pixel's own grey is multiplied by a factor from [1 - x, 1 + x]."""

    hue: float = 0.05
    """Hue is turned by an angle drawn from [-x, x], in full turns."""

    validation_fraction: float = 0.1
    """Part of the videos kept out of training; at least one video is."""

    split_seed: int = -1
    """Which videos, and which clips of them, are kept out; -1: as train.seed says. Runs with
    different seeds are compared on the same clips where this is the same."""

    max_bad_fraction: float = 0.05
    """Part of the videos that may turn out unusable; beyond it the run stops and lists them."""

    decode_seconds: float = 60.0
    """Time limit for one window of a video, after which its decoder is taken for hung. Its wait
    for a core does not count."""

    decode_cpus: float = 1.0
    """CPUs that one decoding task reserves; a task runs on one thread."""

    decode_nodes: str = ""
    """Label of the nodes that may decode, as KEY=VALUE, for instance role=decode; empty: any."""

    def __post_init__(self) -> None:
        """Check each value by itself and the three ranges."""
        for name in (
            "height",
            "width",
            "num_frames",
            "min_frame_step",
            "clips_per_window",
        ):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("validation_height", "validation_width"):
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        _require(
            self.max_frame_step >= self.min_frame_step,
            "max_frame_step",
            f"at least data.min_frame_step ({self.min_frame_step})",
            self.max_frame_step,
        )
        _require(self.stream >= -1, "stream", "-1 or more", self.stream)
        _require(
            not self.split_by or is_split_by(self.split_by),
            "split_by",
            "a number of folders from 1, or a regular expression with at most one group",
            self.split_by,
        )
        _require(is_setting(self.crops), "crops", ALLOWED, self.crops)
        _require(
            0 <= self.flip_probability <= 1, "flip_probability", "in [0, 1]", self.flip_probability
        )
        for name in ("brightness", "contrast", "saturation"):
            _require(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        _require(0 <= self.hue <= 0.5, "hue", "in [0, 0.5]", self.hue)
        _require(
            0 < self.validation_fraction < 1,
            "validation_fraction",
            "between 0 and 1, both excluded",
            self.validation_fraction,
        )
        _require(
            0 <= self.max_bad_fraction <= 1,
            "max_bad_fraction",
            "in [0, 1]",
            self.max_bad_fraction,
        )
        for name in ("decode_seconds", "decode_cpus"):
            _require(
                0 < getattr(self, name) < math.inf,
                name,
                "a finite number above 0",
                getattr(self, name),
            )
        if self.split_by and self.validation_annotations:
            raise ValueError("data.split_by has no part in data.validation_annotations: give one")
        key, equals, value = self.decode_nodes.partition("=")
        _require(
            not self.decode_nodes or bool(key and equals and value),
            "decode_nodes",
            "of the form KEY=VALUE",
            self.decode_nodes,
        )

    def of_validation(self) -> "DataConfig":
        """The same, with clips of validation's size."""
        return replace(
            self,
            height=self.validation_height or self.height,
            width=self.validation_width or self.width,
        )

    @property
    def clip_bytes(self) -> int:
        """Size of one clip, uint8."""
        return self.num_frames * 3 * self.height * self.width


def _require(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ValueError(f"data.{name} must be {expected}, not {value}")
