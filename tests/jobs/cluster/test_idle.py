"""Once a job is over, its nodes are idle, so that the autoscaler ends them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import Cluster

from data_pipeline.clips import ClipSource, open_sources
from data_pipeline.config import DataConfig
from data_pipeline.streaming import stream_batches
from jobs.cli.config import ClusterConfig
from jobs.cluster.capacity import ClusterCapacity
from jobs.cluster.connection import connected
from tests.helpers.data_videos import write_dataset
from tests.helpers.jobs_run import assert_quiet
from tests.helpers.local_ray import demanded, several_nodes

TRAIN = {"role": "train"}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that runs no tasks, and a node for training and decoding."""
    # As its users' cluster: Ray Data may gather figures of its use.
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    with several_nodes({"num_cpus": 0}, {"num_cpus": 2, "labels": TRAIN}) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster


@ray.remote(num_cpus=1, label_selector=TRAIN)  # type: ignore[untyped-decorator]
def work(source: ClipSource) -> int:
    """What a training worker does with Ray Data; the clips that it was given."""
    return sum(len(batch["frames"]) for batch in stream_batches(source, iter([np.arange(2)])))


def idle_for(cluster: Cluster) -> dict[str, float]:
    """Seconds for which each node has been idle, by its role."""
    status = get_cluster_status(cluster.gcs_address)
    roles = {node["NodeID"]: node["Labels"].get("role", "head") for node in ray.nodes()}
    nodes: list[Any] = [*status.active_nodes, *status.idle_nodes]
    return {roles[node.node_id]: node.resource_usage.idle_time_ms / 1e3 for node in nodes}


def test_nothing_keeps_a_node_once_the_job_is_over(
    tmp_path: Path, cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    annotations = write_dataset(tmp_path, count=4)
    data = DataConfig(annotations=str(annotations), height=16, width=24, num_frames=5)
    source, _ = open_sources(data, seed=0, batch=2)
    config = ClusterConfig(workers="2", gpu="no", train_nodes="role=train")
    capfd.readouterr()
    with (
        connected(config, decode_cpus=0.5),
        ClusterCapacity(config, 0.5, nodes_may_join=True) as capacity,
    ):
        assert ray.get(work.remote(source)) == 2
        capacity.request_nodes(workers=0)
        deadline = time.monotonic() + 30
        while demanded() != [{"CPU": 1.0}] * 2:
            assert time.monotonic() < deadline, demanded()
            time.sleep(0.2)
    assert_quiet("".join(capfd.readouterr()))
    ray.init(address=cluster.address, logging_level="warning")
    try:
        # At once: what is merely forgotten would be there for minutes.
        assert demanded() == []
        deadline = time.monotonic() + 60
        while idle_for(cluster)["train"] < 3:
            assert time.monotonic() < deadline, idle_for(cluster)
            time.sleep(0.5)
    finally:
        ray.shutdown()
