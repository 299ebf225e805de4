"""The worker that turns the latents of a shard back into videos or pictures."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.latents.encoding import ShardDone, autocast_dtype
from jobs.latents.names import Names, UnnamedVideoError
from jobs.latents.shards import EncodedVideo, open_shard, read_latents, shard_name
from jobs.media.mp4 import Mp4Writer
from taehv import distributed
from taehv.errors import TrainingError
from taehv.model import TAEHV
from taehv.model.whole_video import stream_frames
from taehv.run.run_folder import RunFolder


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
        """Shard `number`; what is there already is left, what cannot be named or placed is told."""
        start = time.perf_counter()
        frames = 0
        refused: list[dict[str, str]] = []
        with open_shard(self._latents, shard_name(number)) as (file, summary):
            for video in summary.videos:
                try:
                    name = self._task.names.of(video.video)
                    self._see_to(file, video, name)
                except (UnnamedVideoError, OccupiedError) as error:
                    refused.append({"video": video.video, "reason": str(error)})
                    continue
                except OSError as error:
                    raise TrainingError(
                        f"{self._output.address_of(name)} cannot be written: "
                        f"{error.strerror or error}"
                    ) from error
                frames += video.frames
        videos = len(summary.videos) - len(refused)
        return ShardDone(number, videos, frames, refused, time.perf_counter() - start)

    def close(self) -> None:
        pass

    def _see_to(self, file: pq.ParquetFile, video: EncodedVideo, name: str) -> None:
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
        aside = target.with_name(f".{digest}.unfinished")
        frames = self._frames(file, video)
        try:
            names = [name]
            if self._pictures:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                files = _picture_names(video)
                for picture, frame in zip(files, frames, strict=True):
                    Image.fromarray(frame).save(aside / picture)
                names = [f"{name}/{picture}" for picture in files]
                # What is left of a folder that lost some of its pictures.
                shutil.rmtree(target, ignore_errors=True)
            else:
                with Mp4Writer(aside, video.fps, smallest=1) as writer:
                    for frame in frames:
                        writer.add(frame)
            aside.replace(target)
            for written in names:
                self._output.publish(written)
                if self._output.is_remote:
                    (self._output.local / written).unlink()
        finally:
            _remove(aside)

    def _frames(self, file: pq.ParquetFile, video: EncodedVideo) -> Iterator[NDArray[np.uint8]]:
        """HWC uint8, as many as the video had."""
        latents = (
            latent[None].to(self._device, torch.float32) for latent in read_latents(file, video)
        )
        for frame in stream_frames(self._model, latents, video.frames, self._dtype):
            yield to_picture(frame)


def to_picture(frame: torch.Tensor) -> NDArray[np.uint8]:
    """[1, 3, H, W] in [0, 1] -> HWC uint8."""
    array: NDArray[np.uint8] = (frame[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return array


def _picture_names(video: EncodedVideo) -> list[str]:
    return [f"{number:06d}.png" for number in range(video.frames)]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
