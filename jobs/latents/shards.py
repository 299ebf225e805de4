"""A folder of latents: what it holds, how it is written, and how it is read.

    latents.json        what all of it has in common: `Settings`
    shards/latents-00000000.parquet, ...
                        the latents of `videos_per_shard` videos of the list, in its order
    index.parquet       a row per video: video, shard, first_row, rows, frames, latents, height,
                        width, fps; written when all shards are there
    quarantine.jsonl    videos that could not be used, each with its reason

A shard has a row per stretch of latents, of about `ROW_BYTES`, each a row group of its own:

    video               path as in the annotation
    first_frame, frames the frames of the file that went into these latents (the last one repeated
                        where the video ended)
    first_latent        place of the first of them in the video
    shape               t, C, h, w
    dtype               float16, bfloat16 or float32
    latents             the values, little-endian, in C order

A shard is written to the side and appears whole. Its footer holds a `Summary`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data_pipeline.videos.storage import open_media
from taehv.atomic import replacing, write_atomically
from taehv.credentials import in_all_texts, without_credentials
from taehv.errors import TrainingError
from taehv.run.run_folder import RunFolder

FORMAT, VERSION = "taehv-latents", 1
SETTINGS, INDEX, QUARANTINE = "latents.json", "index.parquet", "quarantine.jsonl"
SHARDS = "shards"

DECODED = "decoded.json"
"""What a folder of decoded videos is, so that no other videos are taken for them."""

ROW_BYTES = 8 * 2**20
"""About the size of a row: what is in memory of a video, however long it is."""

INDEX_ROWS = 16384
"""Of a row group of the index: what is in memory of a long list."""

READERS = 16
"""Footers that are read at once: a store takes its time for each."""

SUMMARY_KEY = b"taehv"

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

INDEX_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("shard", pa.string()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("frames", pa.int64()),
        ("latents", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Settings:
    """What all shards of a folder have in common; a job that goes on must have the same."""

    weights_sha256: str
    model: dict[str, Any]
    """Section `model` of the configuration."""
    precision: str
    dtype: str
    height: int
    width: int
    """Of `VideosConfig`."""
    annotations_fingerprint: str
    """Digest of the paths that the annotations list."""
    videos: int
    videos_per_shard: int
    checkpoint: str = field(compare=False)
    annotations: str = field(compare=False)
    root: str = field(compare=False)

    @property
    def num_shards(self) -> int:
        return -(-self.videos // self.videos_per_shard)

    def rows_of(self, shard: int) -> range:
        """The entries of the list that a shard holds."""
        first = shard * self.videos_per_shard
        return range(first, min(first + self.videos_per_shard, self.videos))


@dataclass(frozen=True)
class EncodedVideo:
    """A video in a shard."""

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


@dataclass(frozen=True)
class Summary:
    """What a shard holds."""

    videos: list[EncodedVideo]
    unusable: list[dict[str, str]]
    """Each with `video` and `reason`."""


def shard_name(number: int) -> str:
    """Of shard `number`, from the folder."""
    return f"{SHARDS}/latents-{number:08d}.parquet"


def finished_shards(folder: RunFolder) -> set[str]:
    """The shards that are there, each of them whole."""
    return {f"{SHARDS}/{name}" for name in folder.entries(SHARDS) if name.endswith(".parquet")}


def read_settings(folder: RunFolder) -> Settings | None:
    """None where the folder holds no latents. Raises TrainingError where it is not to be read."""
    if not folder.exists(SETTINGS):
        return None
    path = folder.retrieve(SETTINGS)
    try:
        content = json.loads(path.read_text())
        if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
            raise ValueError("another format or version")
        return Settings(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"{folder.address_of(SETTINGS)} cannot be read ({error}): it is not of a folder of "
            "latents that this program wrote"
        ) from error


def write_settings(folder: RunFolder, settings: Settings) -> None:
    """Raises OSError."""
    shown = in_all_texts(without_credentials, asdict(settings))
    content = {"format": FORMAT, "version": VERSION, **shown}
    _write(folder, SETTINGS, json.dumps(content, indent=1) + "\n")


def claim_decoded(folder: RunFolder, settings: Settings, weights_sha256: str, form: str) -> None:
    """Make the folder one of the videos or pictures that these latents and weights give.

    Raises TrainingError where it holds something else, or cannot be written.
    """
    latents = {f.name: getattr(settings, f.name) for f in fields(settings) if f.compare}
    content = {
        "format": "taehv-decoded",
        "latents": latents,
        "weights": weights_sha256,
        "form": form,
    }
    text = json.dumps(content, indent=1) + "\n"
    try:
        if folder.exists(DECODED):
            if folder.retrieve(DECODED).read_text() != text:
                raise TrainingError(
                    f"--output-dir {folder} holds the videos of other latents or weights, or in "
                    f"another form (see {DECODED} there): choose another"
                )
            return
        held = [name for name in folder.entries("") if not name.startswith(".")]
        if held:
            raise TrainingError(
                f"--output-dir {folder} holds something else already ({held[0]}): choose another"
            )
        _write(folder, DECODED, text)
    except OSError as error:
        raise TrainingError(
            f"--output-dir {folder} cannot be written: {error.strerror or error}"
        ) from error


class ShardWriter:
    """Writes the rows of one shard, to the side; see `new_shard`."""

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

    def close(self, summary: Summary | None = None) -> None:
        """With a summary the file is whole."""
        if summary is None:
            self._writer.close()
            return
        if self._given_up:
            self._copy_kept()
        self._writer.add_key_value_metadata({SUMMARY_KEY.decode(): json.dumps(asdict(summary))})
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
def new_shard(folder: RunFolder, name: str) -> Iterator[tuple[ShardWriter, list[Summary]]]:
    """A writer, and a list that takes the summary: with it the shard appears, whole, at the end.

    Raises OSError where the disk or the store refuses.
    """
    target = folder.local / name
    target.parent.mkdir(parents=True, exist_ok=True)
    # What a killed job left of it.
    for old in target.parent.glob(f".{target.name}.*"):
        old.unlink(missing_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    writer, summaries = ShardWriter(aside), list[Summary]()
    try:
        try:
            yield writer, summaries
        finally:
            writer.close(*summaries)
        if summaries:
            with aside.open("rb") as written:
                os.fsync(written.fileno())
            aside.replace(target)
            folder.publish(name)
            if folder.is_remote:
                target.unlink()
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def open_shard(folder: RunFolder, name: str) -> Iterator[tuple[pq.ParquetFile, Summary]]:
    """Raises TrainingError, naming the shard, where it is damaged, or no shard."""
    address = folder.address_of(name)
    try:
        media = open_media(address)
        file = pq.ParquetFile(media)
        found = json.loads(file.metadata.metadata[SUMMARY_KEY])
        videos = [EncodedVideo(**entry) for entry in found["videos"]]
        summary = Summary(videos, found["unusable"])
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


def write_index(folder: RunFolder, names: Sequence[str]) -> tuple[int, int, int]:
    """index.parquet and quarantine.jsonl, from the shards; how many videos, unusable, frames.

    Raises TrainingError where a shard is damaged, OSError where they cannot be written.
    """
    videos = frames = 0
    unusable: list[str] = []
    rows: list[dict[str, Any]] = []
    with replacing(folder.local / INDEX) as temporary:
        with pq.ParquetWriter(temporary, INDEX_SCHEMA) as writer:
            for name, summary in read_summaries(folder, names):
                rows += [asdict(video) | {"shard": name} for video in summary.videos]
                videos += len(summary.videos)
                frames += sum(video.frames for video in summary.videos)
                unusable += [json.dumps(entry) + "\n" for entry in summary.unusable]
                if len(rows) >= INDEX_ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
                    rows.clear()
            writer.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
        _write(folder, QUARANTINE, "".join(unusable))
    folder.publish(INDEX)
    return videos, len(unusable), frames


def _writer(path: Path) -> pq.ParquetWriter:
    # Latents are close to noise: nothing is gained by compressing them.
    return pq.ParquetWriter(
        path, SHARD_SCHEMA, compression="none", use_dictionary=False, write_statistics=["video"]
    )


def _write(folder: RunFolder, name: str, text: str) -> None:
    folder.local.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.local / name, text)
    folder.publish(name)
