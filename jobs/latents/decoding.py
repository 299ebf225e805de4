"""The worker that turns the latents of a shard back into videos or pictures."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.latents.encoding import ShardDone, autocast_dtype
from jobs.latents.shards import EncodedVideo, open_shard, read_latents, shard_name
from jobs.mp4 import Mp4Writer
from taehv import distributed
from taehv.errors import TrainingError
from taehv.model import TAEHV
from taehv.run_folder import RunFolder
from taehv.whole_video import stream_frames


@dataclass(frozen=True)
class DecodingTask:
    """What is the same for every shard."""

    model: TAEHV
    latents: str
    output: str
    precision: str
    pictures: bool
    """Lossless pictures instead of H.264."""


class DecodingWorker:
    """Decodes one shard after the other; see `jobs.fan_out.Worker`."""

    def __init__(self, task: DecodingTask) -> None:
        self._task = task
        self._device = distributed.device()
        self._model = task.model.to(self._device).eval()
        self._dtype = autocast_dtype(task.precision, self._device)
        self._latents, self._output = RunFolder(task.latents), RunFolder(task.output)

    def __call__(self, number: int) -> ShardDone:
        """Shard `number`; what is there already is left."""
        start = time.perf_counter()
        frames = 0
        with open_shard(self._latents, shard_name(number)) as (file, summary):
            for video in summary.videos:
                name = target_name(video.video, self._task.pictures)
                try:
                    if not self._is_there(name):
                        self._write(file, video, name)
                except OSError as error:
                    raise TrainingError(
                        f"{self._output.address_of(name)} cannot be written: "
                        f"{error.strerror or error}"
                    ) from error
                frames += video.frames
        return ShardDone(number, len(summary.videos), frames, [], time.perf_counter() - start)

    def close(self) -> None:
        pass

    def _is_there(self, name: str) -> bool:
        if self._task.pictures:
            return bool(self._output.entries(name))
        return self._output.exists(name)

    def _write(self, file: pq.ParquetFile, video: EncodedVideo, name: str) -> None:
        """To the side, then to its place."""
        target = self._output.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.unfinished")
        frames = self._frames(file, video)
        try:
            names = [name]
            if self._task.pictures:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                files = [f"{number:06d}.png" for number in range(video.frames)]
                for picture, frame in zip(files, frames, strict=True):
                    Image.fromarray(frame).save(aside / picture)
                names = [f"{name}/{picture}" for picture in files]
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


def target_name(video: str, pictures: bool) -> str:
    """Where a video goes in the output folder. Raises TrainingError for a path that leaves it."""
    path = PurePosixPath(video.removeprefix("s3://").lstrip("/"))
    if not path.parts or ".." in path.parts:
        raise TrainingError(f"{video!r} is no path inside of a folder; these latents are not ours")
    if pictures:
        return f"{path}.frames"
    return str(path) if path.suffix == ".mp4" else f"{path}.mp4"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
