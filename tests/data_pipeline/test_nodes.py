"""Decoding stays on the nodes that it is told to use."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from data_pipeline.batches import iter_batches
from data_pipeline.clips import open_sources
from data_pipeline.config import DataConfig
from data_pipeline.streaming import stream_batches
from tests.helpers.data_videos import write_dataset
from tests.helpers.local_ray import several_nodes


@pytest.fixture
def two_nodes() -> Iterator[dict[str, int]]:
    """A node without a label and one that decodes: the process ids of their raylets."""
    with several_nodes({"num_cpus": 2}, {"num_cpus": 1, "labels": {"role": "decode"}}) as cluster:
        ray.init(address=cluster.address, logging_level="warning")
        nodes = [cluster.head_node, *cluster.worker_nodes]
        try:
            yield {
                name: node.all_processes["raylet"][0].process.pid
                for name, node in zip(("plain", "decoding"), nodes, strict=True)
            }
        finally:
            ray.shutdown()


def decoders_below(raylet: int) -> int:
    """Decoding processes of a node."""
    family = psutil.Process(raylet).children(recursive=True)
    return sum("data_pipeline.decoding.sandbox_process" in process.cmdline() for process in family)


def test_a_label_says_where_to_decode(tmp_path: Path, two_nodes: dict[str, int]) -> None:
    annotations = write_dataset(tmp_path, count=6)
    config = DataConfig(
        annotations=str(annotations), height=16, width=24, num_frames=5, decode_nodes="role=decode"
    )
    source, _ = open_sources(config, seed=0, batch=2)
    steps = [np.array([2 * k, 2 * k + 1]) for k in range(4)]
    streamed = list(stream_batches(source, iter(steps)))
    assert decoders_below(two_nodes["decoding"]) == 1
    assert decoders_below(two_nodes["plain"]) == 0
    anywhere = dataclasses.replace(
        source.order, config=dataclasses.replace(config, decode_nodes="")
    )
    plain = iter_batches(dataclasses.replace(source, order=anywhere), iter(steps))
    for left, right in zip(streamed, plain, strict=True):
        np.testing.assert_array_equal(left["frames"], right["frames"])
