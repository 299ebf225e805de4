"""A folder of latents: what it holds, whose it is, and its index.

latents.json        what all of it has in common: `Settings`
shards/latents-00000000.parquet, ...
                    the latents of `videos_per_shard` videos of the list, in its order
index.parquet       a row per video: video, shard, first_row, rows, frames, latents, height,
                    width, fps; written when all shards are there
quarantine.jsonl    videos that could not be used, each with its reason
lost.jsonl          only where videos are damaged: the frames that are lost
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.decoding.media import BEST
from jobs.latents.shards import SHARDS, read_summaries
from taehv.atomic import replacing, write_atomically
from taehv.credentials import in_all_texts, without_credentials
from taehv.errors import TrainingError
from taehv.run.run_folder import RunFolder

FORMAT, VERSION = "taehv-latents", 1
SETTINGS, INDEX, QUARANTINE = "latents.json", "index.parquet", "quarantine.jsonl"
LOST = "lost.jsonl"

DECODED = "decoded.json"
"""What a folder of decoded videos is, so that no other videos are taken for them."""

INDEX_ROWS = 16384
"""Of a row group of the index: what is in memory of a long list."""

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
    stream: int = BEST
    deinterlace: bool = False

    @property
    def compared(self) -> dict[str, Any]:
        """The settings that must be the same; the others only tell where things lay. One that has
        its default is left out, as it is in folders of versions that did not know it."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self) if f.compare}
        return {name: value for name, (value, default) in values.items() if value != default}

    @property
    def num_shards(self) -> int:
        return -(-self.videos // self.videos_per_shard)

    def rows_of(self, shard: int) -> range:
        """The entries of the list that a shard holds."""
        first = shard * self.videos_per_shard
        return range(first, min(first + self.videos_per_shard, self.videos))


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


def claim(folder: RunFolder, settings: Settings) -> None:
    """Make the folder one of these latents.

    Raises TrainingError where it holds something else, or cannot be written.
    """
    with _for_output(folder):
        there = read_settings(folder)
        if there is None:
            _check_empty(folder)
            write_settings(folder, settings)
            return
    keys = [f.name for f in fields(settings) if f.compare]
    different = [key for key in keys if getattr(settings, key) != getattr(there, key)]
    if different:
        raise TrainingError(
            f"--output-dir {folder} holds latents that were made otherwise "
            f"({', '.join(different)} differ; see latents.json there): choose another"
        )


def claim_decoded(folder: RunFolder, settings: Settings, weights_sha256: str, form: str) -> None:
    """Make the folder one of the videos or pictures that these latents and weights give.

    Raises TrainingError where it holds something else, or cannot be written.
    """
    content = {
        "format": "taehv-decoded",
        "latents": settings.compared,
        "weights": weights_sha256,
        "form": form,
    }
    text = json.dumps(content, indent=1) + "\n"
    with _for_output(folder):
        if not folder.exists(DECODED):
            _check_empty(folder)
            _write(folder, DECODED, text)
        elif folder.retrieve(DECODED).read_text() != text:
            raise TrainingError(
                f"--output-dir {folder} holds the videos of other latents or weights, or in "
                f"another form (see {DECODED} there): choose another"
            )


@contextmanager
def _for_output(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"--output-dir {folder} cannot be written: {error.strerror or error}"
        ) from error


def _check_empty(folder: RunFolder) -> None:
    held = [name for name in folder.entries("") if not name.startswith(".")]
    if held:
        raise TrainingError(
            f"--output-dir {folder} holds something else already ({held[0]}): choose another"
        )


def finished_shards(folder: RunFolder) -> set[str]:
    """The shards that are there, each of them whole."""
    return {f"{SHARDS}/{name}" for name in folder.entries(SHARDS) if name.endswith(".parquet")}


def kept_shards(folder: RunFolder, retry_unusable: bool) -> tuple[set[str], int]:
    """The shards that are not to be made again, and how many videos could not be used for them.

    retry_unusable: remove those whose videos could not all be used, or not wholly.
    """
    kept = finished_shards(folder)
    unusable = 0
    for name, summary in read_summaries(folder, sorted(kept)):
        if retry_unusable and (summary.unusable or summary.lost):
            # Rows of the shard will lie elsewhere in it, and the index must not say otherwise.
            folder.remove(INDEX)
            folder.remove(name)
            kept.discard(name)
        else:
            unusable += len(summary.unusable)
    return kept, unusable


def remove_unfinished(folder: RunFolder) -> None:
    """Remove what workers that were ended have left."""
    for left in (folder.local / SHARDS).glob(".*"):
        left.unlink(missing_ok=True)


@dataclass
class Contents:
    """What a folder of latents holds."""

    videos: int = 0
    frames: int = 0
    unusable: int = 0
    lost: list[dict[str, str | int]] = field(default_factory=list)
    """Frames of damaged videos, as in `Summary`."""


def write_index(folder: RunFolder, names: Sequence[str]) -> Contents:
    """index.parquet, quarantine.jsonl and, where frames are lost, lost.jsonl, from the shards.

    Raises TrainingError where a shard is damaged, OSError where they cannot be written.
    """
    contents = Contents()
    unusable: list[str] = []
    rows: list[dict[str, Any]] = []
    with replacing(folder.local / INDEX) as temporary:
        with pq.ParquetWriter(temporary, INDEX_SCHEMA) as writer:
            for name, summary in read_summaries(folder, names):
                rows += [asdict(video) | {"shard": name} for video in summary.videos]
                contents.videos += len(summary.by_video())
                contents.frames += sum(video.frames for video in summary.videos)
                contents.lost += summary.lost
                unusable += [json.dumps(entry) + "\n" for entry in summary.unusable]
                if len(rows) >= INDEX_ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
                    rows.clear()
            writer.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
        _write(folder, QUARANTINE, "".join(unusable))
        if contents.lost:
            _write(folder, LOST, "".join(json.dumps(entry) + "\n" for entry in contents.lost))
        elif folder.exists(LOST):
            # The videos have been mended.
            folder.remove(LOST)
    folder.publish(INDEX)
    contents.unusable = len(unusable)
    return contents


def _write(folder: RunFolder, name: str, text: str) -> None:
    folder.local.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.local / name, text)
    folder.publish(name)
