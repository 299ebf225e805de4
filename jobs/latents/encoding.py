"""The worker that turns the videos of a shard into latents."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from data_pipeline.decoding.augment import Frames
from data_pipeline.decoding.sandbox import WindowReader, retry_dead_child
from data_pipeline.decoding.whole_video import WholeRequest, WholeVideo
from data_pipeline.errors import DataError, UnusableVideoError
from data_pipeline.videos.index import open_index
from data_pipeline.videos.storage import OutsideRootError, resolve
from jobs.latents.names import UnnamedVideoError, plain_name
from jobs.latents.shards import (
    DTYPES,
    ROW_BYTES,
    EncodedVideo,
    Settings,
    ShardWriter,
    Summary,
    new_shard,
    shard_name,
    to_bytes,
)
from taehv import distributed
from taehv.credentials import hide_credentials
from taehv.errors import TrainingError
from taehv.model import TAEHV
from taehv.model.whole_video import stream_latents
from taehv.run.run_folder import RunFolder


@dataclass(frozen=True)
class EncodingTask:
    """What is the same for every shard."""

    model: TAEHV
    settings: Settings
    output: str
    decode_seconds: float


@dataclass(frozen=True)
class ShardDone:
    """What came of a shard."""

    number: int
    videos: int
    frames: int
    unusable: list[dict[str, str]]
    seconds: float


class EncodingWorker:
    """Makes one shard after the other; see `jobs.cluster.fan_out.Worker`."""

    def __init__(self, task: EncodingTask) -> None:
        self._settings = task.settings
        self._seconds = task.decode_seconds
        self._device = distributed.device()
        self._model = task.model.to(self._device).eval()
        self._dtype = autocast_dtype(task.settings.precision, self._device)
        self._reader = WindowReader()
        self._folder = RunFolder(task.output)
        index = open_index(task.settings.annotations)
        if index.fingerprint != task.settings.annotations_fingerprint:
            raise DataError(
                f"the annotation file {task.settings.annotations} lists other videos here than "
                "where the job was started; give all machines the same file"
            )
        self._paths = index.paths

    def __call__(self, number: int) -> ShardDone:
        """Shard `number`. Raises OSError as TrainingError: the disk or the store refuses."""
        start = time.perf_counter()
        name = shard_name(number)
        try:
            with new_shard(self._folder, name) as (writer, summaries):
                summary = self._write(number, writer)
                summaries.append(summary)
        except OSError as error:
            raise TrainingError(
                f"{self._folder.address_of(name)} cannot be written: {error.strerror or error}"
            ) from error
        frames = sum(video.frames for video in summary.videos)
        seconds = time.perf_counter() - start
        return ShardDone(number, len(summary.videos), frames, summary.unusable, seconds)

    def close(self) -> None:
        self._reader.close()

    def _write(self, number: int, writer: ShardWriter) -> Summary:
        videos: list[EncodedVideo] = []
        unusable: list[dict[str, str]] = []
        for row in self._settings.rows_of(number):
            path = str(self._paths[row].as_py())
            try:
                location = resolve(self._settings.root, path)
                # What is encoded can be decoded.
                plain_name(path, self._settings.root, "mp4")
                encode = partial(self._encode, path, location, writer)
                videos.append(retry_dead_child(encode))
            except (UnusableVideoError, OutsideRootError, UnnamedVideoError) as error:
                unusable.append({"video": path, "reason": hide_credentials(str(error))})
        return Summary(videos, unusable)

    def _encode(self, path: str, location: str, writer: ShardWriter) -> EncodedVideo:
        settings, model = self._settings, self._model
        request = WholeRequest(location, model.space_downscale, settings.height, settings.width)
        video, pieces = self._reader.read_whole(request, self._seconds)
        first_row, count = writer.rows, 0
        frames = _one_by_one(pieces, self._device)
        try:
            latents = stream_latents(model, frames, video.frames, self._dtype)
            for stretch in _stretches(latents, DTYPES[settings.dtype], path):
                writer.add(_row(path, video, count, stretch, model.time_downscale))
                count += len(stretch)
        except UnusableVideoError:
            writer.give_up(writer.rows - first_row)
            raise
        finally:
            pieces.close()
        return EncodedVideo(
            path,
            first_row,
            writer.rows - first_row,
            video.frames,
            count,
            video.height,
            video.width,
            video.facts.fps,
        )


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Of the network's arithmetic; None for float32."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if bf16 else None


def _one_by_one(pieces: Iterable[Frames], device: torch.device) -> Iterator[Tensor]:
    """uint8 [n, 3, H, W] -> [1, 3, H, W] in [0, 1]."""
    for piece in pieces:
        for frame in torch.from_numpy(piece).to(device):
            yield frame[None].float() / 255


def _stretches(latents: Iterable[Tensor], dtype: torch.dtype, video: str) -> Iterator[Tensor]:
    """[1, C, h, w] each -> [t, C, h, w] of about `ROW_BYTES`."""
    waiting: list[Tensor] = []
    for latent in latents:
        kept = latent[0].to(dtype)
        if not torch.isfinite(kept).all():
            remedy = "use --dtype bfloat16 or float32" if latent.isfinite().all() else ""
            raise TrainingError(
                f"{video}: its latents are too large for {dtype}; {remedy}"
                if remedy
                else f"{video}: the network gives latents that are not finite; the weights are bad"
            )
        waiting.append(kept)
        if len(waiting) * kept.nbytes >= ROW_BYTES:
            yield torch.stack(waiting)
            waiting.clear()
    if waiting:
        yield torch.stack(waiting)


def _row(
    path: str, video: WholeVideo, first_latent: int, latents: Tensor, time_downscale: int
) -> dict[str, object]:
    begin = min(first_latent * time_downscale, video.frames)
    end = min((first_latent + len(latents)) * time_downscale, video.frames)
    return {
        "video": path,
        "first_frame": video.first_frame + begin,
        "frames": end - begin,
        "first_latent": first_latent,
        "shape": list(latents.shape),
        "dtype": str(latents.dtype).removeprefix("torch."),
        "latents": to_bytes(latents),
    }
