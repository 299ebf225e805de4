"""The windows of one decoding task: requested as text, delivered as a table with a row per clip.

The `facts` of a window, as JSON, are repeated in the rows of its clips.
"""

import json
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.clips import ClipSource, Rejection, Window, WindowTask, load_window
from data_pipeline.decoding.sandbox import WindowReader
from data_pipeline.errors import DataError
from data_pipeline.plan import WindowKey


def to_text(tasks: list[WindowTask]) -> str:
    """The request that a decoding task is sent."""
    return json.dumps([(task.key, task.clips, task.samples) for task in tasks])


def to_tasks(text: str) -> list[WindowTask]:
    """The inverse of `to_text`."""
    return [
        WindowTask(WindowKey(*key), tuple(clips), tuple(samples))
        for key, clips, samples in json.loads(text)
    ]


@lru_cache(maxsize=1)
def _reader() -> WindowReader:
    """This process's decoder, kept until the process ends."""
    return WindowReader()


def decode_block(source: ClipSource, tasks: list[WindowTask]) -> dict[str, Any]:
    """The clips of some windows, a row each.

    A DataError travels as text, since Ray would wrap an exception and might try again.
    """
    config = source.config
    read = partial(_reader().read, seconds=config.decode_seconds)
    frames, facts = [], []
    for task in tasks:
        try:
            window = load_window(source, task, read)
        except DataError as error:
            shape = (len(task.clips), config.num_frames, 3, config.height, config.width)
            frames.append(np.zeros(shape, np.uint8))
            fact: dict[str, Any] = {"failure": str(error)}
        else:
            frames.append(window.frames)
            fact = {
                "video": window.video,
                "decoded": window.decoded,
                "is_interlaced": window.is_interlaced,
                "rejected": [[r.video, r.reason] for r in window.rejected],
                "transient_failures": window.transient_failures,
            }
        facts += [json.dumps(fact)] * len(task.clips)
    return {
        "frames": frames[0] if len(frames) == 1 else np.concatenate(frames),
        "sample": np.array([sample for task in tasks for sample in task.samples], np.int64),
        "facts": np.array(facts, dtype=object),
    }


def windows_of(tasks: list[WindowTask], block: pa.Table | None) -> Iterator[Window]:
    """The windows of a delivered block; no frames are copied.

    Raises RuntimeError if they are not those of `tasks`, DataError if one could not be made.
    """
    requested = [sample for task in tasks for sample in task.samples]
    delivered = [] if block is None else block.column("sample").to_pylist()
    if block is None or delivered != requested:
        raise RuntimeError(f"Ray Data delivered samples {delivered} instead of {requested}")
    frames = block.column("frames").combine_chunks().to_numpy()
    facts = block.column("facts")
    first = 0
    for task in tasks:
        fact = json.loads(facts[first].as_py())
        if "failure" in fact:
            raise DataError(fact["failure"])
        yield Window(
            samples=task.samples,
            frames=frames[first : first + len(task.samples)],
            video=fact["video"],
            decoded=fact["decoded"],
            is_interlaced=fact["is_interlaced"],
            rejected=tuple(Rejection(*rejection) for rejection in fact["rejected"]),
            transient_failures=tuple(tuple(attempt) for attempt in fact["transient_failures"]),
        )
        first += len(task.samples)
