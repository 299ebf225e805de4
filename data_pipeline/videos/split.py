"""Training and validation videos: a pure function of the seed and of each video's path."""

import hashlib
import logging
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
from data_pipeline.videos.index import (
    BATCH_ENTRIES,
    Hashes,
    Index,
    folder_of,
    open_index,
    open_same,
)
from data_pipeline.videos.split_keys import place_hash

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

    split_by: str = ""
    """What makes several videos one drive, which is on one side: see `data.split_by`."""

    held_out: str = ""
    """List of the videos that are kept out of training, in place of a draw: an absolute path or an
    S3 location."""

    held_out_root: str = ""
    held_out_fingerprint: str = ""


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
        listed = self.split.held_out and self.side == VALIDATION
        return self.split.held_out_root if listed else self.split.root

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
    annotations: str,
    root: str,
    fraction: float,
    seed: int,
    split_by: str = "",
    validation_annotations: str = "",
) -> tuple[VideoSet, VideoSet]:
    """The videos that a list names, for training and for validation.

    `root` is where relative paths start and what no path may leave; empty, it is the folder of
    the annotations, or that folder itself. No video is touched.

    A video belongs to validation where the hash of (seed, file) falls under `fraction`: so the
    order of the list plays no part, a file listed twice stays on one side however its path is
    written, and files that are added later move no other. With `split_by` it is the hash of the
    drive. At least one video is on each side. A lone video is divided in time, into two spans
    without a common frame. With `validation_annotations` that list is validation, and what it names
    is left out of training.

    Raises DataError where a list cannot be read, the root is no folder, or no video is left.
    """
    annotations, own_root = storage.absolute(annotations), root
    root = _root_of(annotations, root)
    index = open_index(annotations, root, split_by, refresh=True)
    if index.duplicates:
        logger.info(
            "%d of the %d entries of %s name a file that an earlier one names: such a file is one "
            "video, on one side of the split",
            index.duplicates,
            len(index),
            annotations,
        )
    split = Split(annotations, root, fraction, seed, index.fingerprint, split_by)
    if validation_annotations:
        held_out = storage.absolute(validation_annotations)
        held_out_root = _root_of(held_out, own_root)
        fingerprint = open_index(held_out, held_out_root, refresh=True).fingerprint
        split = split._replace(
            held_out=held_out, held_out_root=held_out_root, held_out_fingerprint=fingerprint
        )
    elif index.alone:
        logger.warning(
            "data.split_by %s says nothing of %d of %d videos: each of them is a drive by itself",
            split_by,
            index.alone,
            len(index),
        )
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
    if split.held_out:
        left_out = len(index) - len(training)
        logger.info("%d videos of %s are held out by %s", left_out, annotations, split.held_out)
    return training, validation


def _root_of(annotations: str, root: str) -> str:
    """Where the relative paths of a list start. Raises DataError."""
    place = storage.absolute(root) if root else folder_of(annotations)
    if not storage.is_s3(place) and not Path(place).is_dir():
        raise DataError(f"the data folder {place} does not exist; set data.root to the right one")
    return place


def _open_side(split: Split, side: int) -> VideoSet:
    return _open_split(split)[side]


@lru_cache(maxsize=CACHED_SPLITS)
def _open_split(split: Split) -> tuple[VideoSet, VideoSet]:
    """Both sides; made once in a process, whatever number of tasks unpickle them."""
    index = open_same(split.annotations, split.root, split.split_by, split.fingerprint)
    if not split.held_out:
        return _divide(index, split)
    listed = open_same(split.held_out, split.held_out_root, "", split.held_out_fingerprint)
    root, held_out_root = map(storage.without_options, (split.root, split.held_out_root))
    files = {place_hash(held_out_root, str(path)) for path in listed.paths}
    kept = np.fromiter(
        (place_hash(root, str(path)) not in files for path in index.paths),
        np.bool_,
        len(index),
    )
    if not kept.any():
        raise DataError(
            f"{split.held_out} names every video of {split.annotations}: none is left to train on"
        )
    return (
        VideoSet(index.paths, _positions(kept), split, TRAINING),
        VideoSet(listed.paths, None, split, VALIDATION),
    )


def _divide(index: Index, split: Split) -> tuple[VideoSet, VideoSet]:
    extremes = [(int(scores.min()), int(scores.max())) for scores in _scores(index, split.seed)]
    lowest, highest = min(low for low, _ in extremes), max(high for _, high in extremes)
    if lowest == highest and split.split_by and len(index) > index.duplicates + 1:
        raise DataError(
            f"data.split_by {split.split_by} makes one drive of all {len(index)} videos of "
            f"{split.annotations}, and none could be held out: choose one that tells them apart, "
            "or name those to hold out by data.validation_annotations"
        )
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
