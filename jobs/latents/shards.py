"""A shard of latents: how it is written, and how it is read.

A shard has a row per stretch of latents, of about `ROW_BYTES`, each a row group of its own:

    video               path as in the annotation
    first_frame, frames the frames of the file that went into these latents (the last one repeated
                        where the video ended)
    first_latent        place of the first of them in the video
    shape               t, C, h, w
    dtype               float16, bfloat16 or float32
    latents             the values, little-endian, in C order

Where a video is damaged, each stretch of frames that decodes is encoded by itself, as if it were a
video: `first_latent` begins anew at 0.

A shard is written to the side and appears whole. Its footer holds a `Summary`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data_pipeline.videos.storage import open_media
from taehv.errors import TrainingError
from taehv.run.run_folder import RunFolder

SHARDS = "shards"
"""The folder that they lie in."""

ROW_BYTES = 8 * 2**20
"""About the size of a row: what is in memory of a video, however long it is."""

READERS = 16
"""Footers that are read at once: a store takes its time for each."""

SUMMARY_KEY = "taehv"

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

SHARD_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("first_frame", pa.int64()),
        ("frames", pa.int64()),
        ("first_latent", pa.int64()),
        ("shape", pa.list_(pa.int32(), 4)),
        ("dtype", pa.string()),
        ("latents", pa.large_binary()),
    ]
)


@dataclass(frozen=True)
class EncodedVideo:
    """A video in a shard, or a stretch of a damaged one."""

    video: str
    first_row: int
    """Of the shard."""
    rows: int
    frames: int
    latents: int
    height: int
    """Of the frames that were encoded."""
    width: int
    fps: float
    first_frame: int = 0
    """Of the file."""

    @property
    def name(self) -> str:
        """The path, and where the stretch begins unless at the first frame."""
        return f"{self.video}#{self.first_frame}" if self.first_frame else self.video


@dataclass(frozen=True)
class Summary:
    """What a shard holds."""

    videos: list[EncodedVideo]
    """A damaged video has an entry for each stretch, one after the other."""
    unusable: list[dict[str, str]]
    """Each with `video` and `reason`."""
    lost: list[dict[str, str | int]] = field(default_factory=list)
    """Frames of damaged videos: each with `video`, `first_frame`, `end_frame` and `reason`."""

    def by_video(self) -> list[list[EncodedVideo]]:
        """The entries of each video of the list."""
        videos: list[list[EncodedVideo]] = []
        for entry in self.videos:
            last = videos[-1][-1] if videos else None
            if last and last.video == entry.video and last.first_frame < entry.first_frame:
                videos[-1].append(entry)
            else:
                videos.append([entry])
        return videos

    def to_json(self) -> str:
        """As the footer has it: that of sound videos has no word of damage."""
        content = asdict(self)
        for entry in content["videos"]:
            if not entry["first_frame"]:
                del entry["first_frame"]
        if not self.lost:
            del content["lost"]
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: bytes) -> Summary:
        """Raises ValueError, KeyError or TypeError for what is none."""
        found = json.loads(text)
        videos = [EncodedVideo(**entry) for entry in found["videos"]]
        return cls(videos, found["unusable"], found.get("lost", []))


def shard_name(number: int) -> str:
    """Of shard `number`, from the folder."""
    return f"{SHARDS}/latents-{number:08d}.parquet"


class ShardWriter:
    """Writes the rows of one shard, to the side; see `new_shard`."""

    summary: Summary | None = None
    """To be set when all rows are written: without it no shard appears."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = _writer(path)
        self._rows = 0
        self._given_up: set[int] = set()

    @property
    def rows(self) -> int:
        """Rows so far, without those that were given up."""
        return self._rows - len(self._given_up)

    def add(self, row: Mapping[str, Any]) -> None:
        """A row by `SHARD_SCHEMA`, a row group of its own."""
        self._writer.write_table(pa.Table.from_pylist([dict(row)], schema=SHARD_SCHEMA))
        self._rows += 1

    def give_up(self, rows: int) -> None:
        """Leave out the last so many rows: their video turned out to be unusable half-way."""
        self._given_up |= set(range(self._rows - rows, self._rows))

    def close(self) -> None:
        if self.summary is not None:
            if self._given_up:
                self._copy_kept()
            self._writer.add_key_value_metadata({SUMMARY_KEY: self.summary.to_json()})
        self._writer.close()

    def _copy_kept(self) -> None:
        """A Parquet file cannot be written back: the rows that stay go to another one."""
        self._writer.close()
        full = self._path.with_name(self._path.name + ".full")
        self._path.rename(full)
        self._writer = _writer(self._path)
        with pq.ParquetFile(full) as source:
            for row in range(self._rows):
                if row not in self._given_up:
                    self._writer.write_table(source.read_row_group(row))
        full.unlink()


@contextmanager
def new_shard(folder: RunFolder, name: str) -> Iterator[ShardWriter]:
    """A writer of a shard, which appears, whole, at the end, if the writer has been given its
    summary by then.

    Raises OSError where the disk or the store refuses.
    """
    target = folder.local / name
    target.parent.mkdir(parents=True, exist_ok=True)
    # What a killed job left of it.
    for old in target.parent.glob(f".{target.name}.*"):
        old.unlink(missing_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    writer = ShardWriter(unfinished)
    try:
        try:
            yield writer
        finally:
            writer.close()
        if writer.summary is not None:
            with unfinished.open("rb") as written:
                os.fsync(written.fileno())
            unfinished.replace(target)
            folder.publish(name)
            if folder.is_remote:
                target.unlink()
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def open_shard(folder: RunFolder, name: str) -> Iterator[tuple[pq.ParquetFile, Summary]]:
    """Raises TrainingError, naming the shard, where it is damaged, or no shard."""
    address = folder.address_of(name)
    try:
        media = open_media(address)
        file = pq.ParquetFile(media)
        summary = Summary.from_json(file.metadata.metadata[SUMMARY_KEY.encode()])
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{address} cannot be read ({' '.join(str(error).split())}); remove it, and start the "
            "encoding again: it is made anew"
        ) from error
    with file:
        yield file, summary
    if not isinstance(media, str):
        media.close()


def read_summaries(folder: RunFolder, names: Sequence[str]) -> Iterator[tuple[str, Summary]]:
    """Of each shard. Raises TrainingError for one that is damaged."""

    def read(name: str) -> tuple[str, Summary]:
        with open_shard(folder, name) as (_, summary):
            return name, summary

    with ThreadPoolExecutor(READERS) as pool:
        # The pool would read on to the end, whether what it has read is wanted yet or not.
        for first in range(0, len(names), READERS):
            yield from pool.map(read, names[first : first + READERS])


def read_latents(file: pq.ParquetFile, video: EncodedVideo) -> Iterator[Tensor]:
    """The latents of a video of a shard, one after the other, [C, h, w] in their own dtype.

    Raises TrainingError where the rows are not what the summary says.
    """
    expected = 0
    for number in range(video.first_row, video.first_row + video.rows):
        [row] = file.read_row_group(number).to_pylist()
        values = torch.frombuffer(bytearray(row["latents"]), dtype=DTYPES[row["dtype"]])
        if (row["video"], row["first_latent"]) != (video.video, expected):
            raise TrainingError(f"row {number} is not of {video.video}: the shard is damaged")
        yield from values.reshape(row["shape"])
        expected += row["shape"][0]


def to_bytes(latents: Tensor) -> bytes:
    """The values in C order."""
    plain = latents.detach().cpu().contiguous()
    # NumPy has no bfloat16.
    return plain.view(torch.uint8).numpy().tobytes()


def _writer(path: Path) -> pq.ParquetWriter:
    # Latents are close to noise: nothing is gained by compressing them.
    return pq.ParquetWriter(
        path, SHARD_SCHEMA, compression="none", use_dictionary=False, write_statistics=["video"]
    )
