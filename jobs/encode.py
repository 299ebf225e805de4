"""Videos to latents, and back: `python jobs/encode.py --help` lists every option."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import closing
from pathlib import Path

# Run as a script, Python looks for imports in jobs/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline.errors import DataError
from jobs.cli.console import BAD_CONFIG, DONE, FAILED, log_plainly, refuse
from jobs.cli.errors import ConfigError
from jobs.cli.progress import VideoProgress
from jobs.latents.config import EncodeConfig, parse
from jobs.latents.decoding import DecodingWorker, plan_decoding
from jobs.latents.encoding import EncodingWorker, check_unusable, plan_encoding
from jobs.latents.folder import (
    INDEX,
    LOST,
    QUARANTINE,
    claim,
    finished_shards,
    kept_shards,
    read_settings,
    remove_unfinished,
    write_index,
)
from jobs.latents.shards import SHARDS, shard_name
from jobs.latents.work import Stopped, lost_line, stoppable, work_on
from taehv.credentials import without_credentials
from taehv.errors import TrainingError
from taehv.run.run_folder import RunFolder

log = logging.getLogger("jobs.encode")

MOST_LINES = 20
"""Of the ranges of frames that are lost, at the end; all of them are in a file."""


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit code is that of the project's contract (0, 1, 2, 130, 143)."""
    log_plainly()
    try:
        with stoppable():
            config = parse(sys.argv[1:] if arguments is None else arguments, __doc__ or "")
            return decode(config) if config.decode else encode(config)
    except ConfigError as error:
        return refuse(error, BAD_CONFIG)
    except (TrainingError, DataError, OSError) as error:
        return refuse(error, FAILED)
    except Stopped as stopped:
        print("stopped; what is finished stays, and the same command goes on", file=sys.stderr)
        return 128 + int(stopped.args[0])


def encode(config: EncodeConfig) -> int:
    """All videos of the list to shards of latents, an index, and a list of what is unusable."""
    begun = time.perf_counter()
    task = plan_encoding(config)
    settings, most_unusable = task.settings, config.data.max_bad_fraction
    folder = RunFolder(config.output_dir)
    claim(folder, settings)
    kept, unusable = kept_shards(folder, config.retry_unusable)
    todo = [n for n in range(settings.num_shards) if shard_name(n) not in kept]
    if kept:
        log.info("%d of %d shards are there already", len(kept), settings.num_shards)
    left = sum(len(settings.rows_of(number)) for number in todo)
    progress = VideoProgress(settings.videos, settings.videos - left)
    work = work_on(todo, EncodingWorker, task, config.ray, progress, "skipped")
    try:
        with closing(work) as results:
            for done in results:
                unusable += len(done.unusable)
                check_unusable(unusable, settings.videos, most_unusable, done.unusable)
    finally:
        remove_unfinished(folder)
    check_unusable(unusable, settings.videos, most_unusable)
    names = [shard_name(number) for number in range(settings.num_shards)]
    found = write_index(folder, names)
    seconds = time.perf_counter() - begun
    print(
        f"{found.videos} videos, {found.frames} frames in {settings.num_shards} shards"
        f"{f', {found.unusable} videos skipped' if found.unusable else ''}; {seconds:.0f} s"
    )
    for lost in found.lost[:MOST_LINES]:
        print(lost_line(lost))
    if len(found.lost) > MOST_LINES:
        print(f"and so on: {len(found.lost)} ranges of frames are lost")
    written = {"latents": SHARDS, "index": INDEX}
    written |= {"skipped": QUARANTINE} if found.unusable else {}
    written |= {"lost": LOST} if found.lost else {}
    for what, name in written.items():
        print(f"{what:<9} {without_credentials(folder.address_of(name))}")
    return DONE


def decode(config: EncodeConfig) -> int:
    """All latents of a folder to videos or pictures."""
    begun = time.perf_counter()
    latents = RunFolder(config.decode)
    settings = read_settings(latents)
    if settings is None:
        raise TrainingError(f"--decode {config.decode}: it holds no latents (no latents.json)")
    finished = finished_shards(latents)
    todo = [n for n in range(settings.num_shards) if shard_name(n) in finished]
    if len(todo) < settings.num_shards:
        log.warning("%d of %d shards are there", len(todo), settings.num_shards)
    task = plan_decoding(config, settings, sorted(finished))
    progress = VideoProgress(settings.videos, 0)
    work = work_on(todo, DecodingWorker, task, config.ray, progress, "left out")
    videos = frames = left_out = 0
    with closing(work) as results:
        for done in results:
            videos, frames = videos + done.videos, frames + done.frames
            left_out += len(done.unusable)
    seconds = time.perf_counter() - begun
    without = f", {left_out} videos left out" if left_out else ""
    print(f"{videos} videos, {frames} frames{without}; {seconds:.0f} s")
    print(f"videos    {without_credentials(config.output_dir)}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
