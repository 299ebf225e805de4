"""A small synthetic driving set in MiniDataset form: `python -m data_pipeline.synthetic --out DIR`.

It is what training starts on where no data is given, and what the tests run on. The same seed
gives the same frames.
"""

import json
import logging
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
from tqdm import tqdm

from data_pipeline.decoding.cores import usable_cores
from data_pipeline.synthetic.scene import Scene

logger = logging.getLogger(__name__)

VERSION = 2
"""Part of the folder's name: a change of the picture makes another set."""

FRAMES_PER_SECOND = 24
ANNOTATIONS = "annotations.json"

SAME_BITS = {"threads": "1", "mbtree": "0"}
"""What makes x264 repeat itself: its rate control by macroblock trees gives other bits now and
then, even on one thread."""

SOON_DECODED = {"tune": "fastdecode"}
"""The set is there to try things out on a few cores, which training needs: half the work for the
decoder, in files an eighth larger."""

REPORTS = 4
"""Lines about the progress where there is no terminal."""

SUMMARY = "Make a small set of synthetic driving videos in MiniDataset form."


@dataclass(frozen=True)
class SyntheticConfig:
    """What is made; ValueError where a value makes no sense."""

    videos: int = 24
    """Number of videos."""

    seed: int = 0
    """Video k is a function of (seed, k)."""

    frames: int = 64
    """Frames of each video, at 24 a second."""

    height: int = 192
    """Rows, even."""

    width: int = 320
    """Columns, even."""

    def __post_init__(self) -> None:
        """Check what the encoder and the scene need."""
        if self.videos < 1 or self.frames < 1 or self.seed < 0:
            raise ValueError("--videos and --frames must be at least 1, --seed at least 0")
        if min(self.height, self.width) < 32 or self.height % 2 or self.width % 2:
            raise ValueError("--height and --width must be even numbers of at least 32")

    @property
    def folder_name(self) -> str:
        """A name of its own for every set."""
        size = f"{self.frames}x{self.height}x{self.width}"
        return f"synthetic_v{VERSION}_{self.videos}x{size}_seed{self.seed}"


def ensure_synthetic(
    cache_dir: Path,
    videos: int = 24,
    seed: int = 0,
    *,
    frames: int = 64,
    height: int = 192,
    width: int = 320,
) -> Path:
    """The annotation file of the set in `cache_dir`, which is made if it is not there yet.

    Several processes may ask at once: each builds aside, and the first to finish is kept.
    """
    config = SyntheticConfig(videos, seed, frames, height, width)
    folder = cache_dir.absolute() / config.folder_name
    annotations = folder / ANNOTATIONS
    if annotations.is_file():
        return annotations
    cache_dir.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{config.folder_name}.", dir=cache_dir))
    try:
        write_synthetic(aside, config)
        aside.chmod(0o755)
        try:
            aside.rename(folder)
        except OSError:
            # A folder that is not empty cannot be renamed over: somebody else was first.
            if not annotations.is_file():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return annotations


def command_to_make(annotations: str) -> str:
    """What makes the embedded set anew whose annotation file was `annotations`; empty where that
    name is not one of this version's set in a local folder."""
    folder = Path(annotations).parent
    if "://" in annotations or folder.name != SyntheticConfig().folder_name:
        return ""
    return f"python -m data_pipeline.synthetic --out {shlex.quote(str(folder))}"


def write_synthetic(folder: Path, config: SyntheticConfig) -> Path:
    """Render and encode the videos into `folder`, the annotations last; returns their path."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"drive_{index:04d}.mp4" for index in range(config.videos)]
    workers = min(config.videos, usable_cores())
    # Spawned, since a forked child of a process with threads may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        render = partial(write_video, config=config)
        jobs = [pool.submit(render, folder / name, index) for index, name in enumerate(names)]
        _report(jobs)
    entries = [{"path": name, "frames": config.frames} for name in names]
    annotations = folder / ANNOTATIONS
    annotations.write_text(json.dumps({"total": len(entries), "list": entries}, indent=1) + "\n")
    return annotations


def write_video(path: Path, index: int, config: SyntheticConfig) -> None:
    """Render and encode video `index` of a set: h264 in mp4."""
    seconds = config.frames / FRAMES_PER_SECOND
    scene = Scene((config.seed, index), config.height, config.width, seconds)
    options = {"crf": "20", "preset": "veryfast", "g": str(FRAMES_PER_SECOND)}
    options |= SAME_BITS | SOON_DECODED
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width, stream.pix_fmt = config.height, config.width, "yuv420p"
        for number in range(config.frames):
            picture = scene.frame(number / FRAMES_PER_SECOND)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _report(jobs: Sequence[Future[None]]) -> None:
    """Wait for the videos: a bar on a terminal, a line now and then elsewhere."""
    label = "making the synthetic driving set"
    on_terminal = sys.stderr.isatty()
    if not on_terminal:
        logger.info("%s: %d videos", label, len(jobs))
    bar = tqdm(as_completed(jobs), label, len(jobs), unit="video", disable=not on_terminal)
    for done, job in enumerate(bar, start=1):
        job.result()
        if not on_terminal and done % max(1, len(jobs) // REPORTS) == 0:
            logger.info("%s: %d of %d videos", label, done, len(jobs))
