"""SIGKILL of decode tasks and of their decoders, many times, under a stream without training."""

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_pipeline.batches import Samples, iter_batches
from data_pipeline.clips import open_sources
from data_pipeline.config import DataConfig
from data_pipeline.streaming import stream_batches
from tests.data_pipeline.test_streaming import assert_same_clips
from tests.faults import record
from tests.faults.job import KINDS, make_videos
from tests.helpers.local_ray import local_ray

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

KILLS = 20


@pytest.fixture(autouse=True)
def _ray() -> Iterator[None]:
    with local_ray():
        yield


@contextmanager
def killing(kind: str, chance: random.Random, killed: list[int]) -> Iterator[None]:
    """A thread that kills one process of the kind after another, at random moments."""
    stop = threading.Event()

    def kill() -> None:
        # Not sooner: a window whose decoders are all killed is given up.
        while not stop.wait(chance.uniform(2.0, 4.0)):
            found = [p for p in psutil.Process().children(recursive=True) if KINDS[kind](p)]
            if found:
                with suppress(psutil.NoSuchProcess):
                    victim = chance.choice(found)
                    victim.kill()
                    killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def endless() -> Iterator[Samples]:
    for step in count():
        yield np.arange(3 * step, 3 * step + 3)


@pytest.mark.parametrize("kind", ["decode task", "decoder"])
def test_clips_are_those_of_an_undisturbed_stream(tmp_path: Path, kind: str) -> None:
    config = DataConfig(
        annotations=str(make_videos(tmp_path / "videos")),
        height=32,
        width=32,
        num_frames=9,
        validation_fraction=0.25,
        decode_cpus=0.5,
    )
    source = open_sources(config, seed=0, batch=3)[0]
    chance = random.Random(f"{os.environ.get('FAULTS_SEED', '0')} {kind}")
    killed: list[int] = []
    received = []
    with killing(kind, chance, killed):
        # Small segments: a stream that stays a few seconds ahead at most.
        stream = stream_batches(source, endless(), segment_bytes=500_000)
        for batch in stream:
            received.append(batch)
            if len(killed) >= KILLS:
                break
        stream.close()
    steps = (samples for samples, _ in zip(endless(), received, strict=False))
    assert_same_clips(received, list(iter_batches(source, steps)))
    record.note(f"kill -9 of a {kind}, stream alone", "all clips bit for bit", len(killed))
