"""Videos to latents, and back: `python jobs/encode.py --help` lists every option."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

# Run as a script, Python looks for imports in jobs/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline.errors import DataError
from data_pipeline.videos.index import open_index
from data_pipeline.videos.storage import is_s3
from jobs.cli.console import BAD_CONFIG, DONE, FAILED, log_plainly, refuse, stop_signals_to
from jobs.cli.errors import ConfigError
from jobs.cli.progress import VideoProgress
from jobs.cli.weights import address_of, find_weights
from jobs.cluster.fan_out import RayConfig, fan_out
from jobs.latents.config import EncodeConfig, parse
from jobs.latents.decoding import DecodingTask, DecodingWorker
from jobs.latents.encoding import EncodingTask, EncodingWorker, ShardDone
from jobs.latents.names import names_of
from jobs.latents.shards import (
    INDEX,
    QUARANTINE,
    SHARDS,
    Settings,
    claim_decoded,
    finished_shards,
    read_settings,
    read_summaries,
    shard_name,
    write_index,
    write_settings,
)
from taehv.credentials import without_credentials
from taehv.errors import TrainingError
from taehv.model import TAEHV, build_model
from taehv.model.variants import ModelConfig
from taehv.run.run_folder import RunFolder

log = logging.getLogger("jobs.encode")


class Stopped(BaseException):
    """Ctrl-C or SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit code is that of the project's contract (0, 1, 2, 130, 143)."""
    log_plainly()
    try:
        with _stoppable():
            config = parse(sys.argv[1:] if arguments is None else arguments, __doc__ or "")
            return decode(config) if config.decode else encode(config)
    except ConfigError as error:
        return refuse(error, BAD_CONFIG)
    except (TrainingError, DataError, OSError) as error:
        return refuse(error, FAILED)
    except Stopped as stopped:
        print("stopped; what is finished stays, and the same command goes on", file=sys.stderr)
        return 128 + stopped.number


def encode(config: EncodeConfig) -> int:
    """All videos of the list to shards of latents, an index, and a list of what is unusable."""
    begun = time.perf_counter()
    model, settings = _load(config)
    _check_size(config, model)
    folder = RunFolder(config.output_dir)
    _claim(folder, settings)
    finished, unusable = _finished(folder, config.retry_unusable)
    todo = [n for n in range(settings.num_shards) if shard_name(n) not in finished]
    left = sum(len(settings.rows_of(number)) for number in todo)
    if finished:
        log.info("%d of %d shards are there already", len(finished), settings.num_shards)
    progress = VideoProgress(settings.videos, settings.videos - left)
    task = EncodingTask(model, settings, config.output_dir, config.data.decode_seconds)
    try:
        with (
            fan_out(config.ray if todo else RayConfig(use="no")) as workers,
            _stoppable(),
            closing(workers.each(EncodingWorker, task, todo)) as results,
        ):
            for done in results:
                for entry in done.unusable:
                    log.warning("video %s is skipped: %s", entry["video"], entry["reason"])
                progress.add(done.videos, done.frames, len(done.unusable))
                unusable += len(done.unusable)
                _check_unusable(unusable, settings, config, done)
    finally:
        progress.close()
        _clean(folder)
    _check_unusable(unusable, settings, config)
    names = [shard_name(number) for number in range(settings.num_shards)]
    videos, skipped, frames = write_index(folder, names)
    seconds = time.perf_counter() - begun
    print(
        f"{videos} videos, {frames} frames in {settings.num_shards} shards"
        f"{f', {skipped} videos skipped' if skipped else ''}; {seconds:.0f} s\n"
        f"latents   {_shown(folder, SHARDS)}\nindex     {_shown(folder, INDEX)}"
    )
    if skipped:
        print(f"skipped   {_shown(folder, QUARANTINE)}")
    return DONE


def decode(config: EncodeConfig) -> int:
    """All latents of a folder to videos or pictures."""
    begun = time.perf_counter()
    latents = RunFolder(config.decode)
    settings = read_settings(latents)
    if settings is None:
        raise TrainingError(f"--decode {config.decode}: it holds no latents (no latents.json)")
    weights = find_weights(config.checkpoint)
    digest = _digest(weights)
    if digest != settings.weights_sha256:
        log.warning(
            "these latents were made by other weights (%s): what comes out may not be what went in",
            settings.checkpoint,
        )
    names = finished_shards(latents)
    numbers = [n for n in range(settings.num_shards) if shard_name(n) in names]
    if len(numbers) < settings.num_shards:
        log.warning("%d of %d shards are there", len(numbers), settings.num_shards)
    model = _network(config.model, weights)
    if model.alignment.frame_step != 1 or model.space_upscale != model.space_downscale:
        raise TrainingError(
            f"{weights}: its decoder gives back fewer or smaller frames than went in; choose "
            "weights with full upscaling"
        )
    claim_decoded(RunFolder(config.output_dir), settings, digest, config.decode_to)
    listed = (v.video for _, shard in read_summaries(latents, sorted(names)) for v in shard.videos)
    targets = names_of(listed, settings.root, config.decode_to)
    if targets.contested:
        log.warning(
            "some videos would have the same name, or one that differs in case alone (%d names): "
            "they get a digest of their path beside it (NAME~0123456789abcdef)",
            len(targets.contested),
        )
    task = DecodingTask(model, config.decode, config.output_dir, config.precision, targets)
    progress = VideoProgress(settings.videos, 0)
    videos = frames = refused = 0
    try:
        with (
            fan_out(config.ray) as workers,
            _stoppable(),
            closing(workers.each(DecodingWorker, task, numbers)) as results,
        ):
            for done in results:
                for entry in done.unusable:
                    log.warning("video %s is left out: %s", entry["video"], entry["reason"])
                progress.add(done.videos, done.frames, len(done.unusable))
                videos, frames = videos + done.videos, frames + done.frames
                refused += len(done.unusable)
    finally:
        progress.close()
    seconds = time.perf_counter() - begun
    left_out = f", {refused} videos left out" if refused else ""
    print(f"{videos} videos, {frames} frames{left_out}; {seconds:.0f} s")
    print(f"videos    {without_credentials(config.output_dir)}")
    return DONE


def _shown(folder: RunFolder, name: str) -> str:
    return without_credentials(folder.address_of(name))


def _load(config: EncodeConfig) -> tuple[TAEHV, Settings]:
    """The network, and what all shards have in common."""
    weights = find_weights(config.checkpoint)
    model = _network(config.model, weights)
    data, index = config.data, open_index(config.data.annotations)
    if not is_s3(data.root) and not Path(data.root).is_dir():
        raise DataError(f"the data folder {data.root} does not exist; set data.root to another")
    settings = Settings(
        weights_sha256=_digest(weights),
        # As JSON gives it back.
        model=json.loads(json.dumps(dataclasses.asdict(config.model) | {"pretrained": ""})),
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
    )
    return model, settings


def _network(config: ModelConfig, weights: Path) -> TAEHV:
    model = build_model(dataclasses.replace(config, pretrained=str(weights)))
    return model.eval().requires_grad_(False)


def _digest(weights: Path) -> str:
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_size(config: EncodeConfig, model: TAEHV) -> None:
    for name in ("height", "width"):
        size = getattr(config.data, name)
        if size % model.space_downscale:
            raise ConfigError(
                f"data.{name} is {size}: this network needs a multiple of {model.space_downscale}"
            )


def _claim(folder: RunFolder, settings: Settings) -> None:
    """Make the folder one of these latents. Raises TrainingError where it is one of others."""
    there = read_settings(folder)
    if there is None:
        held = [name for name in folder.entries("") if not name.startswith(".")]
        if held:
            raise TrainingError(
                f"--output-dir {folder} holds something else already ({held[0]}): choose another"
            )
        try:
            write_settings(folder, settings)
        except OSError as error:
            raise TrainingError(
                f"--output-dir {folder} cannot be written: {error.strerror or error}"
            ) from error
    elif there != settings:
        names = [f.name for f in dataclasses.fields(settings) if f.compare]
        different = [n for n in names if getattr(there, n) != getattr(settings, n)]
        raise TrainingError(
            f"--output-dir {folder} holds latents that were made otherwise "
            f"({', '.join(different)} differ; see latents.json there): choose another"
        )


def _finished(folder: RunFolder, retry: bool) -> tuple[set[str], int]:
    """The shards that are there, and how many videos could not be used for them."""
    there = finished_shards(folder)
    unusable = 0
    for name, summary in read_summaries(folder, sorted(there)):
        if retry and summary.unusable:
            folder.remove(name)
            there.discard(name)
        else:
            unusable += len(summary.unusable)
    return there, unusable


def _check_unusable(
    unusable: int, settings: Settings, config: EncodeConfig, last: ShardDone | None = None
) -> None:
    most = config.data.max_bad_fraction
    if unusable <= most * settings.videos:
        return
    told = f"; the last of them is {last.unusable[-1]['video']}" if last and last.unusable else ""
    raise DataError(
        f"{unusable} of {settings.videos} videos cannot be used, more than data.max_bad_fraction "
        f"({most:g}){told}. The shards that are finished stay: mend the list, or raise "
        "--data.max-bad-fraction and start again"
    )


def _clean(folder: RunFolder) -> None:
    """Remove what workers left that were ended."""
    for left in (folder.local / SHARDS).glob(".*"):
        left.unlink(missing_ok=True)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `Stopped`; anew after Ray has started, which takes SIGTERM over."""

    def stop(number: signal.Signals) -> None:
        raise Stopped(number)

    with stop_signals_to(stop):
        yield


if __name__ == "__main__":
    sys.exit(main())
