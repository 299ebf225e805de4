"""The worker that turns the videos of a shard into latents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.decoding.augment import Frames
from data_pipeline.decoding.damage import LostFrames
from data_pipeline.decoding.sandbox import WindowReader, retry_dead_child
from data_pipeline.decoding.whole_video import Stretch, WholeRequest, WholeVideo, stretches
from data_pipeline.errors import DataError, UnusableVideoError
from data_pipeline.videos.index import open_index, open_same
from data_pipeline.videos.storage import OutsideRootError, is_s3, resolve
from jobs.cli.errors import ConfigError
from jobs.cli.weights import address_of, digest_of, find_weights
from jobs.latents.config import EncodeConfig
from jobs.latents.folder import Settings
from jobs.latents.names import UnnamedVideoError, plain_name
from jobs.latents.shards import (
    DTYPES,
    ROW_BYTES,
    EncodedVideo,
    ShardWriter,
    Summary,
    new_shard,
    shard_name,
    to_bytes,
)
from jobs.latents.work import ShardDone
from taehv import distributed
from taehv.credentials import hide_credentials
from taehv.errors import TrainingError
from taehv.model import TAEHV, ModelConfig, build_model
from taehv.model.whole_video import stream_latents
from taehv.precision import autocast_dtype
from taehv.run.run_folder import RunFolder


@dataclass(frozen=True)
class EncodingTask:
    """What is the same for every shard."""

    model: TAEHV
    settings: Settings
    output: str
    decode_seconds: float


def plan_encoding(config: EncodeConfig) -> EncodingTask:
    """The network, and what all shards have in common.

    Raises TrainingError, DataError or ConfigError for weights, videos or a size that do not serve.
    """
    weights = find_weights(config.checkpoint)
    model = load_network(config.model, weights)
    data = config.data
    index = open_index(data.annotations, data.root, refresh=True)
    if not is_s3(data.root) and not Path(data.root).is_dir():
        raise DataError(f"the data folder {data.root} does not exist; set data.root to another")
    for name, size in (("height", data.height), ("width", data.width)):
        if size % model.space_downscale:
            raise ConfigError(
                f"data.{name} is {size}: this network needs a multiple of {model.space_downscale}"
            )
    settings = Settings(
        weights_sha256=digest_of(weights),
        # As JSON gives it back.
        model=json.loads(json.dumps(asdict(config.model) | {"pretrained": ""})),
        precision=config.precision,
        dtype=config.dtype,
        height=data.height,
        width=data.width,
        annotations_fingerprint=index.fingerprint,
        videos=len(index),
        videos_per_shard=config.shard_size(len(index)),
        checkpoint=address_of(weights, config.checkpoint),
        annotations=data.annotations,
        root=data.root,
        stream=data.stream,
        deinterlace=data.deinterlace,
    )
    return EncodingTask(model, settings, config.output_dir, data.decode_seconds)


def load_network(config: ModelConfig, weights: Path) -> TAEHV:
    """With these weights, for inference."""
    model = build_model(replace(config, pretrained=str(weights)))
    return model.eval().requires_grad_(False)


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
        settings = task.settings
        fingerprint = settings.annotations_fingerprint
        self._paths = open_same(settings.annotations, settings.root, "", fingerprint).paths

    def __call__(self, number: int) -> ShardDone:
        """Shard `number`. Raises OSError as TrainingError: the disk or the store refuses."""
        name = shard_name(number)
        try:
            with new_shard(self._folder, name) as writer:
                writer.summary = summary = self._write(number, writer)
        except OSError as error:
            raise TrainingError(
                f"{self._folder.address_of(name)} cannot be written: {error.strerror or error}"
            ) from error
        frames = sum(video.frames for video in summary.videos)
        return ShardDone(len(summary.by_video()), frames, summary.unusable, summary.lost)

    def close(self) -> None:
        self._reader.close()

    def _write(self, number: int, writer: ShardWriter) -> Summary:
        videos: list[EncodedVideo] = []
        unusable: list[dict[str, str]] = []
        lost: list[dict[str, str | int]] = []
        for row in self._settings.rows_of(number):
            path = str(self._paths[row].as_py())
            try:
                location = resolve(self._settings.root, path)
                # What is encoded can be decoded.
                plain_name(path, self._settings.root, "mp4")
                encode = partial(self._encode, path, location, writer)
                kept, gaps = retry_dead_child(encode)
                videos += kept
                lost += [
                    {
                        "video": path,
                        "first_frame": gap.first,
                        "end_frame": gap.end,
                        "reason": hide_credentials(gap.reason),
                    }
                    for gap in gaps
                ]
            except (UnusableVideoError, OutsideRootError, UnnamedVideoError) as error:
                unusable.append({"video": path, "reason": hide_credentials(str(error))})
        return Summary(videos, unusable, lost)

    def _encode(
        self, path: str, location: str, writer: ShardWriter
    ) -> tuple[list[EncodedVideo], list[LostFrames]]:
        settings = self._settings
        multiple = self._model.space_downscale
        request = WholeRequest(
            location,
            multiple,
            settings.height,
            settings.width,
            stream=settings.stream,
            deinterlace=settings.deinterlace,
        )
        video, items = self._reader.read_kept(request, self._seconds)
        before = writer.rows
        lost: list[LostFrames] = []
        try:
            kept = [
                self._encode_stretch(path, video, stretch, writer)
                for stretch in stretches(video, items, lost)
            ]
        except UnusableVideoError:
            writer.give_up(writer.rows - before)
            raise
        finally:
            items.close()
        return kept, lost

    def _encode_stretch(
        self, path: str, video: WholeVideo, stretch: Stretch, writer: ShardWriter
    ) -> EncodedVideo:
        model, first_row, count, frames = self._model, writer.rows, 0, 0

        def read() -> Iterator[Tensor]:
            nonlocal frames
            for frame in _one_by_one(stretch.pieces, self._device):
                frames += 1
                yield frame

        latents = stream_latents(model, read(), self._dtype)
        for part in _parts(latents, DTYPES[self._settings.dtype], path):
            # Of the frames that have been read, which the latents of the end go beyond.
            begin, end = (
                stretch.first_frame + min(place * model.time_downscale, frames)
                for place in (count, count + len(part))
            )
            writer.add(_row(path, range(begin, end), count, part))
            count += len(part)
        rows, size = writer.rows - first_row, (video.height, video.width)
        fps, first_frame = video.facts.fps, stretch.first_frame
        return EncodedVideo(path, first_row, rows, frames, count, *size, fps, first_frame)


def _one_by_one(pieces: Iterable[Frames], device: torch.device) -> Iterator[Tensor]:
    """uint8 [n, 3, H, W] -> [1, 3, H, W] in [0, 1]."""
    for piece in pieces:
        for frame in torch.from_numpy(piece).to(device):
            yield frame[None].float() / 255


def _parts(latents: Iterable[Tensor], dtype: torch.dtype, video: str) -> Iterator[Tensor]:
    """[1, C, h, w] each -> [t, C, h, w] of about `ROW_BYTES`."""
    waiting: list[Tensor] = []
    for latent in latents:
        kept = latent[0].to(dtype)
        if not torch.isfinite(kept).all():
            if not latent.isfinite().all():
                fault = "the network gives latents that are not finite; the weights are bad"
            else:
                fault = f"its latents are too large for {dtype}; use --dtype bfloat16 or float32"
            raise TrainingError(f"{video}: {fault}")
        waiting.append(kept)
        if len(waiting) * kept.nbytes >= ROW_BYTES:
            yield torch.stack(waiting)
            waiting.clear()
    if waiting:
        yield torch.stack(waiting)


def _row(path: str, frames: range, first_latent: int, latents: Tensor) -> dict[str, object]:
    return {
        "video": path,
        "first_frame": frames.start,
        "frames": len(frames),
        "first_latent": first_latent,
        "shape": list(latents.shape),
        "dtype": str(latents.dtype).removeprefix("torch."),
        "latents": to_bytes(latents),
    }


def check_unusable(
    unusable: int, videos: int, max_fraction: float, last: Sequence[Mapping[str, str]] = ()
) -> None:
    """Raises DataError where more of the videos turned out to be unusable than may.

    last: the latest of them.
    """
    if unusable <= max_fraction * videos:
        return
    latest = f"; the last of them is {last[-1]['video']}" if last else ""
    raise DataError(
        f"{unusable} of {videos} videos cannot be used, more than data.max_bad_fraction "
        f"({max_fraction:g}){latest}. The shards that are finished stay: mend the list, or raise "
        "--data.max-bad-fraction and start again"
    )
