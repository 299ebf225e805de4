"""What a clip costs: against the plain way to load it, the bare decoder, and a pool without Ray.

    python benchmarks/data.py --data.annotations driving/annotations.json --data.root driving/data

The plain way needs OpenCV: `pip install -r benchmarks/requirements.txt`. Times of one process are
CPU seconds; the last table is wall time, so it wants a machine that does nothing else.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np
import ray
from PIL import Image, ImageEnhance

from data_pipeline.batches import Samples, plan_steps
from data_pipeline.clips import ClipSource, Window, WindowTask, load_window, open_sources
from data_pipeline.config import DataConfig
from data_pipeline.decoding.sandbox import WindowReader
from data_pipeline.decoding.window import read_window
from data_pipeline.plan import ClipPlan
from data_pipeline.streaming import stream_batches

BATCH = 8
FRAMES, SIZE = 12, 128
WHOLE_PICTURES = "0.8-1.0"
LARGE = {"720p": (720, 1280), "1080p": (1080, 1920)}
LARGE_FRAMES = 240


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data.annotations", dest="annotations", required=True)
    parser.add_argument("--data.root", dest="root", default="")
    parser.add_argument("--repeats", type=int, default=5, help="medians are taken over so many")
    parser.add_argument("--processes", type=int, default=2, help="of the pool, and tasks of Ray")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run of pool and Ray")
    options = parser.parse_args()

    def source(clips_per_window: int, batch: int = BATCH) -> ClipSource:
        config = DataConfig(
            annotations=options.annotations,
            root=options.root,
            height=SIZE,
            width=SIZE,
            num_frames=FRAMES,
            clips_per_window=clips_per_window,
            crops=WHOLE_PICTURES,
        )
        return open_sources(config, seed=0, batch=batch)[0]

    print(f"clips of {FRAMES} x {SIZE} x {SIZE}, augmented; {options.repeats} repeats, medians\n")
    results = [
        *against_the_plain_way(source, options.repeats),
        *against_the_decoder(source, options.repeats),
        *crops_against_whole_pictures(source(4), options.repeats),
        # Small groups of windows, so that a short run holds many of them.
        against_a_pool(source(4, batch=1), options.processes, options.seconds, options.repeats),
    ]
    repeats_in_a_batch(source(4))
    return 0 if all(results) else 1


# ------------------------------------------------------------------ one process, CPU time


def against_the_plain_way(source: Callable[[int], ClipSource], repeats: int) -> Iterator[bool]:
    """CPU time of a clip; ours with one and with four clips per window."""
    print("CPU ms per clip            median   plain / ours   limit")
    ours = {clips: windows(source(clips), 24) for clips in (1, 4)}
    plain_source = source(1)
    plans = random.Random(0)
    plain, own = [], {1: [], 4: []}
    for _ in range(repeats):
        requests = [plain_request(plain_source, plans) for _ in range(8)]
        plain.append(cpu_ms(partial(plain_clips, requests)) / 8)
        for clips, tasks in ours.items():
            some = tasks[:: max(1, clips // 2)]
            spent = cpu_ms(partial(load_all, source(clips), some))
            own[clips].append(spent / sum(len(task.clips) for task in some))
    baseline = statistics.median(plain)
    print(f"OpenCV and PIL           {baseline:8.1f}")
    for clips, limit in ((1, 2.5), (4, 8.0)):
        ratio = statistics.median(p / o for p, o in zip(plain, own[clips], strict=True))
        print(
            f"{clips} clips per window       {statistics.median(own[clips]):8.1f}   "
            f"{ratio:12.1f}   {limit:5.1f}   {verdict(ratio >= limit)}"
        )
        yield ratio >= limit


def against_the_decoder(source: Callable[[int], ClipSource], repeats: int) -> Iterator[bool]:
    """Frames in clips per CPU second, against frames of a sequential decode of the same file."""
    print("\nframes per CPU second        rate   ours / decoder   limit")
    first = source(4)
    path = first.videos.location(0)
    rates: dict[int, list[float]] = {clips: [] for clips in (1, 4, 8, 16)}
    decoder = []
    for _ in range(repeats):
        count = 0

        def decode() -> None:
            nonlocal count
            count = decode_all(path)

        decoder.append(1e3 / (cpu_ms(decode) / max(1, count)))
        for clips in rates:
            tasks = windows(source(clips), 8)
            spent = cpu_ms(partial(load_all, source(clips), tasks))
            used = sum(len(task.clips) for task in tasks) * FRAMES
            rates[clips].append(1e3 * used / spent)
    print(f"the decoder alone        {statistics.median(decoder):8.0f}")
    best = 0.0
    for clips, measured in rates.items():
        ratio = statistics.median(r / d for r, d in zip(measured, decoder, strict=True))
        best = max(best, ratio)
        print(
            f"{clips:2d} clips per window      {statistics.median(measured):8.0f}   {ratio:14.2f}"
        )
    print(
        f"with enough clips per window                {best:5.2f}    0.70   {verdict(best >= 0.7)}"
    )
    yield best >= 0.7


def crops_against_whole_pictures(source: ClipSource, repeats: int) -> Iterator[bool]:
    """CPU time of a clip of large video: crops from its own pixels up, against whole pictures."""
    print("\nCPU ms per clip            median   over whole pictures   limit")
    with tempfile.TemporaryDirectory() as folder:
        for name, size in LARGE.items():
            enlarge(source.videos.location(0), Path(folder, f"{name}.mp4"), size)
            annotations = Path(folder, f"{name}.txt")
            annotations.write_text(f"{name}.mp4\n")
            sources = {
                crops: open_sources(
                    replace(source.config, annotations=str(annotations), root="", crops=crops),
                    seed=0,
                    batch=BATCH,
                )[0]
                for crops in (WHOLE_PICTURES, "native", "mixed")
            }
            tasks = windows(sources[WHOLE_PICTURES], 6)
            clips = sum(len(task.clips) for task in tasks)
            spent = {
                crops: [
                    cpu_ms(partial(load_all, sources[crops], tasks)) / clips for _ in range(repeats)
                ]
                for crops in sources
            }
            for crops, times in spent.items():
                pairs = zip(times, spent[WHOLE_PICTURES], strict=True)
                ratio = statistics.median(own / whole for own, whole in pairs)
                print(
                    f"{name:>6} {crops:<16} {statistics.median(times):8.1f}   {ratio:19.2f}   "
                    f"{1.1:5.2f}   {verdict(ratio <= 1.1)}"
                )
                yield ratio <= 1.1


def enlarge(path: str, target: Path, size: tuple[int, int]) -> None:
    """The first frames of a video, of another size (height, width), as H.264."""
    with av.open(path) as source, av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number, frame in enumerate(islice(source.decode(video=0), LARGE_FRAMES)):
            large = frame.reformat(width=size[1], height=size[0], format="yuv420p")
            large.pts, large.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(large))
        container.mux(stream.encode(None))


def windows(source: ClipSource, count: int) -> list[WindowTask]:
    """The first windows of an epoch, whole."""
    schedule = (np.arange(k * BATCH, (k + 1) * BATCH) for k in range(10**6))
    tasks = (task for step in plan_steps(schedule, source.order) for task in step.tasks)
    return list(islice(tasks, count))


def load_all(source: ClipSource, tasks: list[WindowTask]) -> None:
    for task in tasks:
        load_window(source, task, read_window)


def plain_clips(requests: list[tuple[str, float, ClipPlan]]) -> None:
    for request in requests:
        plain_clip(*request)


def decode_all(path: str) -> int:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def cpu_ms(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


# ------------------------------------------------------------------ the plain way


def plain_request(source: ClipSource, draw: random.Random) -> tuple[str, float, ClipPlan]:
    place = source.order.locate(draw.randrange(10**6))
    window = source.order.window(place.window, 0)
    return source.videos.location(window.video), window.start, source.order.clip(place, 0)


def plain_clip(path: str, start: float, plan: ClipPlan) -> np.ndarray:
    """Open, seek by frame number, read on, and transform each full frame with PIL."""
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path)
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    first = int(start * (total - (FRAMES - 1) * plan.step))
    capture.set(cv2.CAP_PROP_POS_FRAMES, first)
    clip = []
    for index in range((FRAMES - 1) * plan.step + 1):
        there, frame = capture.read()
        if not there:
            raise RuntimeError(f"{path} ends before frame {first + index}")
        if index % plan.step == 0:
            image = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            clip.append(np.asarray(transform(image, plan)))
    capture.release()
    return np.stack(clip).transpose(0, 3, 1, 2)


def transform(image: Image.Image, plan: ClipPlan) -> Image.Image:
    """Colour jitter and flip of the full frame, then crop and resize."""
    image = ImageEnhance.Brightness(image).enhance(plan.brightness)
    image = ImageEnhance.Contrast(image).enhance(plan.contrast)
    image = ImageEnhance.Color(image).enhance(plan.saturation)
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(plan.hue * 255)) % 256
    image = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value))
    image = image.convert("RGB")
    if plan.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = int(plan.crop.value * min(image.size))
    left = int(plan.crop_x * (image.width - side))
    top = int(plan.crop_y * (image.height - side))
    return image.crop((left, top, left + side, top + side)).resize(
        (SIZE, SIZE), Image.Resampling.BILINEAR
    )


# ------------------------------------------------------------------ many processes, wall time


def against_a_pool(source: ClipSource, processes: int, seconds: float, repeats: int) -> bool:
    """Clips per second through Ray Data and through a pool, into a consumer that does nothing.

    Both are given time to start before the clock runs.
    """
    print(f"\nclips per second, {processes} processes   median   Ray / pool   limit")
    with (
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
    ):
        ray.init(
            num_cpus=processes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=folder,
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}},
        )
        pairs = [
            (rate(through_pool(pool, source), seconds), rate(through_ray(source), seconds))
            for _ in range(min(repeats, 3))
        ]
        ray.shutdown()
    pool_rate, ray_rate = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    ratio = statistics.median(with_ray / plain for plain, with_ray in pairs)
    print(f"plain pool                    {pool_rate:8.1f}")
    print(
        f"Ray Data                      {ray_rate:8.1f}   {ratio:10.2f}    0.85   "
        f"{verdict(ratio >= 0.85)}"
    )
    return ratio >= 0.85


def rate(clips: Iterator[int], seconds: float) -> float:
    """Clips per second after a start of a quarter of the time."""
    start = time.perf_counter()
    counted, began = 0, 0.0
    for count in clips:
        now = time.perf_counter() - start
        if now > seconds * 1.25:
            break
        if now > seconds / 4:
            if not began:
                began = now
            else:
                counted += count
            last = now
    return counted / (last - began)


def through_pool(pool: ProcessPoolExecutor, source: ClipSource) -> Iterator[int]:
    tasks = endless_tasks(source)
    waiting = [pool.submit(pool_window, source, task) for task in islice(tasks, 16)]
    while True:
        window = waiting.pop(0).result()
        waiting.append(pool.submit(pool_window, source, next(tasks)))
        yield len(window.samples)


def through_ray(source: ClipSource) -> Iterator[int]:
    stream = stream_batches(source, endless_schedule())
    try:
        for batch in stream:
            yield len(batch["sample"])
    finally:
        stream.close()


def endless_schedule() -> Iterator[Samples]:
    return (np.array([sample]) for sample in range(10**9))


def endless_tasks(source: ClipSource) -> Iterator[WindowTask]:
    return (task for step in plan_steps(endless_schedule(), source.order) for task in step.tasks)


@lru_cache(maxsize=1)
def pool_reader() -> WindowReader:
    return WindowReader()


def pool_window(source: ClipSource, task: WindowTask) -> Window:
    read = partial(pool_reader().read, seconds=source.config.decode_seconds)
    return load_window(source, task, read)


# ------------------------------------------------------------------ the order


def repeats_in_a_batch(source: ClipSource) -> None:
    """How often a batch holds two clips of one window."""
    order = source.order
    repeated = 0
    batches = 3 * order.epoch_samples // BATCH
    for step in range(batches):
        found = {order.locate(step * BATCH + slot).window for slot in range(BATCH)}
        repeated += len(found) < BATCH
    print(f"\nbatches of {BATCH} that hold two clips of a window: {repeated} of {batches}")


def verdict(passed: bool) -> str:
    return "pass" if passed else "FAIL"


if __name__ == "__main__":
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    sys.exit(main())
