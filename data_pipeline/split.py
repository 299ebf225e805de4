"""Training and validation videos: a pure function of the seed and of each video's path."""

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

logger = logging.getLogger(__name__)

WHOLE = (0.0, 1.0)
SINGLE_VIDEO_VALIDATION = 0.2
"""Least part of a lone video that is kept for validation: a tenth may be shorter than a clip."""


@dataclass(frozen=True, eq=False)
class VideoSet:
    """Videos, and the part of each that may be read."""

    paths: pa.Array
    """Paths as in the annotation, as Arrow strings."""

    root: str
    """Folder that relative paths start at."""

    span: tuple[float, float] = WHOLE
    """First and last point of the part of each file that is used, as fractions of its frames."""

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths.to_pylist())

    def name(self, index: int) -> str:
        """The path of video `index` as in the annotation."""
        return str(self.paths[index].as_py())

    def location(self, index: int) -> str:
        """The absolute path of video `index`."""
        # Absolute also keeps FFmpeg from taking "name:rest" for a protocol.
        return os.path.abspath(os.path.join(self.root, self.name(index)))  # noqa: PTH100, PTH118


def span_frames(span: tuple[float, float], num_frames: int) -> tuple[int, int]:
    """The frames [first, end) of a span in a file of `num_frames` frames.

    Spans that meet at a fraction share no frame whatever the count, since both sides round the
    same product.
    """
    first, end = (round(fraction * num_frames) for fraction in span)
    return first, end


def split_videos(table: pa.Table, fraction: float, seed: int) -> tuple[VideoSet, VideoSet]:
    """Divide the videos of `read_annotations` into training and validation.

    A video belongs to validation where the hash of (seed, path) falls under `fraction`: so the
    order of the list plays no part, a file listed twice stays on one side, and files that are
    added later move no other. At least one video is on each side. A lone video is divided in
    time, into two spans without a common frame.
    """
    root = table.schema.metadata[b"root"].decode()
    paths = table.column("path").combine_chunks()
    scores = _scores(paths, seed)
    lowest, highest = scores.min(), scores.max()

    if lowest == highest:
        boundary = 1.0 - max(fraction, SINGLE_VIDEO_VALIDATION)
        logger.info(
            "there is only one video (%s): the first %.0f %% of its frames are for training and "
            "the rest for validation; no frame is in both",
            paths[0].as_py(),
            100 * boundary,
        )
        return VideoSet(paths, root, (0.0, boundary)), VideoSet(paths, root, (boundary, 1.0))

    held_out = scores < fraction
    held_out |= scores == lowest
    held_out &= scores != highest
    training = VideoSet(paths.filter(pa.array(~held_out)), root)
    validation = VideoSet(paths.filter(pa.array(held_out)), root)
    logger.info("%d videos for training, %d for validation", len(training), len(validation))
    return training, validation


def _scores(paths: pa.Array, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A number in [0, 1) per path; the same file has the same one however it is spelled."""
    key = str(seed).encode()
    scores = np.empty(len(paths))
    for index, path in enumerate(paths):
        spelling = os.path.normpath(path.as_py()).encode()
        digest = hashlib.blake2b(spelling, digest_size=8, key=key).digest()
        scores[index] = (int.from_bytes(digest, "big") >> 11) / 2**53
    return scores
