"""Training and validation videos: a pure function of the seed and of each video's path."""

import hashlib
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.videos import storage
from data_pipeline.videos.index import BATCH_ENTRIES, Hashes, Index, open_index

logger = logging.getLogger(__name__)

WHOLE = (0.0, 1.0)
SINGLE_VIDEO_VALIDATION = 0.2
"""Least part of a lone video that is kept for validation: a tenth may be shorter than a clip."""

TRAINING, VALIDATION = 0, 1
CACHED_SPLITS = 4

Rows = NDArray[np.int32]


class Split(NamedTuple):
    """All that decides which videos are on which side."""

    annotations: str
    """Where the annotation file lies: an absolute path or an S3 location."""

    root: str
    """Where relative paths start: an absolute folder or an S3 location."""

    fraction: float
    """Part of the videos that validation gets, in (0, 1)."""

    seed: int
    """Key of the draw."""

    fingerprint: str
    """Digest of the paths that the annotation file lists."""


@dataclass(frozen=True, eq=False)
class VideoSet:
    """Videos, and the part of each that may be read.

    Pickled, it is a few words: another process maps the index of the annotation file and makes
    the split again. Raises DataError there, if that file lists other videos.
    """

    paths: pa.ChunkedArray
    """The paths of all entries of the annotation file, on either side: mapped, not copied."""

    rows: Rows | None
    """Entries that are in this set, int32, increasing; None for all."""

    split: Split
    """What the set was made from."""

    side: int
    """TRAINING or VALIDATION."""

    span: tuple[float, float] = WHOLE
    """First and last point of the part of each file that is used, as fractions of its frames."""

    def __len__(self) -> int:
        return len(self.paths) if self.rows is None else len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return map(self.name, range(len(self)))

    def __reduce__(self) -> tuple[Callable[..., "VideoSet"], tuple[Any, ...]]:
        return _open_side, (self.split, self.side)

    @property
    def root(self) -> str:
        """Where relative paths start: an absolute folder or an S3 location."""
        return self.split.root

    def name(self, index: int) -> str:
        """The path of video `index` as in the annotation."""
        row = index if self.rows is None else int(self.rows[index])
        return str(self.paths[row].as_py())

    def location(self, index: int) -> str:
        """Where video `index` lies: an absolute path or an S3 location.

        Raises OutsideRootError where its path leads out of the root.
        """
        return storage.resolve(self.root, self.name(index))


def open_videos(
    annotations: str, root: str, fraction: float, seed: int
) -> tuple[VideoSet, VideoSet]:
    """The videos that an annotation file lists, for training and for validation.

    `root` is where relative paths start and what no path may leave; empty, it is the folder of
    the annotations. No video is touched.

    A video belongs to validation where the hash of (seed, path) falls under `fraction`: so the
    order of the list plays no part, a file listed twice stays on one side, and files that are
    added later move no other. At least one video is on each side. A lone video is divided in
    time, into two spans without a common frame.

    Raises DataError where the annotations cannot be read or the root is no folder.
    """
    annotations = storage.absolute(annotations)
    root = storage.absolute(root) if root else storage.parent(annotations)
    if not storage.is_s3(root) and not Path(root).is_dir():
        raise DataError(f"the data folder {root} does not exist; set data.root to the right one")

    split = Split(annotations, root, fraction, seed, open_index(annotations).fingerprint)
    training, validation = _open_split(split)
    if training.span == WHOLE:
        logger.info("%d videos for training, %d for validation", len(training), len(validation))
    else:
        logger.info(
            "there is only one video (%s): the first %.0f %% of its frames are for training and "
            "the rest for validation; no frame is in both",
            training.name(0),
            100 * training.span[1],
        )
    return training, validation


def _open_side(split: Split, side: int) -> VideoSet:
    return _open_split(split)[side]


@lru_cache(maxsize=CACHED_SPLITS)
def _open_split(split: Split) -> tuple[VideoSet, VideoSet]:
    """Both sides; made once in a process, whatever number of tasks unpickle them."""
    index = open_index(split.annotations)
    if index.fingerprint != split.fingerprint:
        raise DataError(
            f"the annotation file {split.annotations} on {socket.gethostname()} lists other "
            "videos than where the run was started; give all machines the same file"
        )
    return _divide(index, split)


def _divide(index: Index, split: Split) -> tuple[VideoSet, VideoSet]:
    extremes = [(int(scores.min()), int(scores.max())) for scores in _scores(index, split.seed)]
    lowest, highest = min(low for low, _ in extremes), max(high for _, high in extremes)
    if lowest == highest:
        boundary = 1.0 - max(split.fraction, SINGLE_VIDEO_VALIDATION)
        return (
            VideoSet(index.paths, None, split, TRAINING, (0.0, boundary)),
            VideoSet(index.paths, None, split, VALIDATION, (boundary, 1.0)),
        )

    # The lowest score is always under the threshold and the highest never.
    threshold = np.uint64(min(max(int(split.fraction * 2**64), lowest + 1), highest))
    held_out = np.concatenate([scores < threshold for scores in _scores(index, split.seed)])
    return (
        VideoSet(index.paths, _positions(~held_out), split, TRAINING),
        VideoSet(index.paths, _positions(held_out), split, VALIDATION),
    )


def _positions(chosen: NDArray[np.bool_]) -> Rows:
    """Where `chosen` is True, found in pieces: NumPy takes eight bytes for each it finds."""
    rows = np.empty(np.count_nonzero(chosen), np.int32)
    filled = 0
    for first in range(0, len(chosen), BATCH_ENTRIES):
        found = np.flatnonzero(chosen[first : first + BATCH_ENTRIES])
        rows[filled : filled + len(found)] = found + first
        filled += len(found)
    return rows


def _scores(index: Index, seed: int) -> Iterator[Hashes]:
    """A number in [0, 2**64) per entry, piece by piece: the finaliser of splitmix64."""
    key = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    for hashes in index.hashes:
        scores = hashes ^ np.uint64(int.from_bytes(key, "little"))
        scores ^= scores >> np.uint64(30)
        scores *= np.uint64(0xBF58476D1CE4E5B9)
        scores ^= scores >> np.uint64(27)
        scores *= np.uint64(0x94D049BB133111EB)
        scores ^= scores >> np.uint64(31)
        yield scores
