"""The worker that turns the latents of a shard back into videos or pictures."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b

import pyarrow.parquet as pq
import torch
from PIL import Image
from pydantic import TypeAdapter

from jobs.cli.weights import digest_of, find_weights
from jobs.latents.config import EncodeConfig
from jobs.latents.encoding import load_network
from jobs.latents.folder import Settings, claim_decoded
from jobs.latents.names import Names, UnnamedVideoError, names_of
from jobs.latents.shards import EncodedVideo, open_shard, read_latents, read_summaries, shard_name
from jobs.latents.work import ShardDone
from jobs.media.mp4 import Mp4Writer, Picture
from jobs.media.pictures import picture_of
from taehv import distributed
from taehv.errors import TrainingError
from taehv.model import TAEHV, ModelConfig
from taehv.model.whole_video import stream_frames
from taehv.precision import autocast_dtype
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)


class OccupiedError(Exception):
    """Something else lies where a video's pictures go."""


@dataclass(frozen=True)
class DecodingTask:
    """What is the same for every shard."""

    model: TAEHV
    latents: str
    output: str
    precision: str
    names: Names
    """Of what is written: H.264 or lossless pictures, by their form."""


def plan_decoding(config: EncodeConfig, settings: Settings, shards: Sequence[str]) -> DecodingTask:
    """The network, and what each video of these shards is called; the output folder is claimed.

    Raises TrainingError for weights that do not serve, or a folder that holds something else.
    """
    weights = find_weights(config.checkpoint)
    digest = digest_of(weights)
    if digest != settings.weights_sha256:
        log.warning(
            "these latents were made by other weights (%s): what comes out may not be what went in",
            settings.checkpoint,
        )
    model = load_network(config.model, weights)
    if model.alignment.frame_step != 1 or model.space_upscale != model.space_downscale:
        raise TrainingError(
            f"{weights}: its decoder gives back fewer or smaller frames than went in; choose "
            "weights with full upscaling"
        )
    theirs = TypeAdapter(ModelConfig).validate_python(settings.model).architecture
    ours = config.model.architecture
    for name in ("latent_channels", "time_downscale", "space_downscale", "trims_even"):
        if getattr(ours, name) != getattr(theirs, name):
            raise TrainingError(
                f"{weights}: the latents of {config.decode} are of another form: {name} is "
                f"{getattr(theirs, name)} (--model.variant {settings.model['variant']}), and "
                f"{getattr(ours, name)} with {config.model.variant}"
            )
    claim_decoded(RunFolder(config.output_dir), settings, digest, config.decode_to)
    summaries = read_summaries(RunFolder(config.decode), shards)
    videos = (entry.name for _, summary in summaries for entry in summary.videos)
    names = names_of(videos, settings.root, config.decode_to)
    if names.contested:
        log.warning(
            "some videos would have the same name, or one that differs in case alone (%d names): "
            "they get a digest of their path beside it (NAME~0123456789abcdef)",
            len(names.contested),
        )
    return DecodingTask(model, config.decode, config.output_dir, config.precision, names)


class DecodingWorker:
    """Decodes one shard after the other; see `jobs.cluster.fan_out.Worker`."""

    def __init__(self, task: DecodingTask) -> None:
        self._task = task
        self._device = distributed.device()
        self._model = task.model.to(self._device).eval()
        self._dtype = autocast_dtype(task.precision, self._device)
        self._pictures = task.names.form == "png"
        self._latents, self._output = RunFolder(task.latents), RunFolder(task.output)

    def __call__(self, number: int) -> ShardDone:
        """Shard `number`, without what is there already and what cannot be named or placed."""
        videos = frames = 0
        refused: list[dict[str, str]] = []
        with open_shard(self._latents, shard_name(number)) as (file, summary):
            for stretches in summary.by_video():
                before = len(refused)
                for video in stretches:
                    try:
                        name = self._task.names.of(video.name)
                        self._write_missing(file, video, name)
                    except (UnnamedVideoError, OccupiedError) as error:
                        refused.append({"video": video.name, "reason": str(error)})
                        continue
                    except OSError as error:
                        raise TrainingError(
                            f"{self._output.address_of(name)} cannot be written: "
                            f"{error.strerror or error}"
                        ) from error
                    frames += video.frames
                videos += len(refused) == before
        return ShardDone(videos, frames, refused)

    def close(self) -> None:
        pass

    def _write_missing(self, file: pq.ParquetFile, video: EncodedVideo, name: str) -> None:
        """Write the video, unless all of it is there. Raises OccupiedError."""
        if not self._pictures:
            if not self._output.exists(name):
                self._write(file, video, name)
            return
        there, wanted = {*self._output.entries(name)}, {*_picture_names(video)}
        if wanted <= there:
            return
        if foreign := sorted(there - wanted):
            raise OccupiedError(
                f"{self._output.address_of(name)} holds {foreign[0]}, which is none of its "
                f"pictures, and not all of those: move it away, and start again"
            )
        self._write(file, video, name)

    def _write(self, file: pq.ParquetFile, video: EncodedVideo, name: str) -> None:
        """To the side, then to its place."""
        target = self._output.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own length might be too long.
        digest = blake2b(target.name.encode(), digest_size=8).hexdigest()
        unfinished = target.with_name(f".{digest}.unfinished")
        frames = self._frames(file, video)
        try:
            names = [name]
            if self._pictures:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                files = _picture_names(video)
                for picture, frame in zip(files, frames, strict=True):
                    Image.fromarray(frame).save(unfinished / picture)
                names = [f"{name}/{picture}" for picture in files]
                # What is left of a folder that lost some of its pictures.
                shutil.rmtree(target, ignore_errors=True)
            else:
                with Mp4Writer(unfinished, video.fps, smallest=1) as writer:
                    for frame in frames:
                        writer.add(frame)
            unfinished.replace(target)
            for written in names:
                self._output.publish(written)
                if self._output.is_remote:
                    (self._output.local / written).unlink()
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            with suppress(OSError):
                unfinished.unlink()

    def _frames(self, file: pq.ParquetFile, video: EncodedVideo) -> Iterator[Picture]:
        """HWC uint8, as many as the video had."""
        latents = (
            latent[None].to(self._device, torch.float32) for latent in read_latents(file, video)
        )
        # [1, 3, H, W] in [0, 1].
        for frame in stream_frames(self._model, latents, video.frames, self._dtype):
            yield picture_of(frame)


def _picture_names(video: EncodedVideo) -> list[str]:
    """Numbered as the frames of the file are."""
    frames = range(video.first_frame, video.first_frame + video.frames)
    return [f"{number:06d}.png" for number in frames]
