"""jobs/doctor.py on a cluster of two nodes: healthy, and with everything wrong that can be."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from jobs import doctor
from jobs.cli import places
from jobs.diagnosis import nodes
from tests.helpers.data_videos import write_dataset
from tests.helpers.doctor_report import worst_by_area
from tests.helpers.jobs_run import TINY
from tests.helpers.local_ray import demanded, several_nodes, token_variables
from tests.helpers.s3_server import s3_server

OPTIONS = [*TINY, "--json", "--train.global-batch-size", "4", "--cluster.workers", "2"]
LABELS = ["--cluster.train-nodes", "role=train", "--data.decode-nodes", "role=decode"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that trains, and a node that trains and decodes."""
    train = {"labels": {"role": "train"}}
    decode = {"labels": {"role": "decode"}}
    nodes = ({"num_cpus": 1, **train}, {"num_cpus": 2, **train}, {"num_cpus": 1, **decode})
    with several_nodes(*nodes) as cluster:
        yield cluster


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a user who names a cluster that is not there."""
    for name, value in token_variables().items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("MLFLOW_TRACKING_URI", "TAEHV_CONFIG", "TAEHV_STORAGE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
    return home


@pytest.fixture
def connected(home: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user of the cluster."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    return home


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and the findings by area; of several in one area the worst."""
    code = doctor.main([*OPTIONS, *arguments])
    return code, worst_by_area(json.loads(capsys.readouterr().out))


def test_a_healthy_cluster(
    connected: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = write_dataset(connected / "videos", count=6)
    run_dir = connected / "runs" / "a"
    places = ["--data.annotations", str(annotations), "--train.run-dir", str(run_dir)]
    code, found = examined(capsys, *places, *LABELS, "--start-nodes")
    assert [f for f in found.values() if f["level"] != "OK"] == []
    assert code == 0
    assert "3 nodes" in found["versions"]["message"]
    assert found["all-reduce"]["values"]["ranks"] == 2
    assert found["all-reduce"]["values"]["nodes"] == 2
    assert found["all-reduce"]["values"]["bytes_per_second"] > 0
    assert found["decoding"]["values"]["seconds_per_clip"] > 0
    assert found["workers"]["values"]["possible"] >= 2
    assert "3 nodes" in found["shared folders"]["message"]
    assert not run_dir.parent.exists()
    assert found["starting nodes"]["level"] == "OK"
    ray.init(address=cluster.address, logging_level="warning")
    try:
        # The nodes that it had started may go.
        assert demanded() == []
    finally:
        ray.shutdown()


def test_a_sick_cluster(
    connected: Path,
    cluster: Cluster,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """All at once: each is found, and none hides another."""
    # What pip leaves of another version, found before the real one.
    other = tmp_path / "other"
    (other / "deepspeed-9.9.9.dist-info").mkdir(parents=True)
    metadata = "Metadata-Version: 2.1\nName: deepspeed\nVersion: 9.9.9\n"
    (other / "deepspeed-9.9.9.dist-info" / "METADATA").write_text(metadata)
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(other)})
    leaving = cluster.add_node(num_cpus=1, labels={"role": "trian"})
    # Without work, a real one would leave at once.
    monkeypatch.setattr(nodes, "draining_nodes", lambda: {leaving.node_id})
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    try:
        with s3_server() as server:
            code, found = examined(
                capsys,
                f"--data.annotations=s3://nowhere/a.json{server.options}",
                f"--train.run-dir=s3://nowhere/run{server.options}",
                f"--tracking.uri=http://127.0.0.1:{port}",
                "--cluster.train-nodes=role=trian",
                "--cluster.gpu=yes",
            )
    finally:
        cluster.remove_node(node)
        cluster.remove_node(leaving)
    assert code == 1
    failed = {area for area, finding in found.items() if finding["level"] == "FAILURE"}
    assert failed >= {
        "versions",
        "labels",
        "workers",
        "data list",
        "checkpoint store",
        "MLflow",
    }
    assert "given notice" in found["nodes"]["message"]
    assert "deepspeed 9.9.9 (the driver has" in found["versions"]["message"]
    assert "is role=train meant?" in found["labels"]["advice"]
    assert found["workers"]["figure"] == "0 of 2"
    assert "no such bucket" in found["checkpoint store"]["message"]
    assert found["reading"]["level"] == "SKIPPED"


def test_a_cluster_that_is_not_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What needs none is looked at all the same."""
    annotations = write_dataset(home / "videos", count=6)
    places = ["--data.annotations", str(annotations), "--train.run-dir", str(home / "a")]
    code, found = examined(capsys, *places)
    assert code == 1
    assert {area for area, f in found.items() if f["level"] == "FAILURE"} == {"cluster"}
    assert os.environ["RAY_ADDRESS"] in found["cluster"]["message"]
    assert found["decoding"]["level"] == found["checkpoint store"]["level"] == "OK"


def test_a_storage_that_is_not_there(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hides nothing else. A few small videos stand for the synthetic ones."""
    annotations = write_dataset(home / "videos", count=2)
    monkeypatch.setattr(places, "ensure_synthetic", lambda _: annotations)
    with s3_server() as server:
        code, found = examined(capsys, f"--cluster.storage=s3://nowhere{server.options}")
    assert code == 1
    for area in ("cluster.storage", "data list", "checkpoint store"):
        assert found[area]["level"] == "FAILURE", area
        assert "nowhere" in found[area]["message"]
    assert found["reading"]["level"] == "SKIPPED"


def test_wrong_options_are_told_as_by_the_other_jobs(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--gpu-clips-per-second", "0"]) == 2
    assert "above 0" in capsys.readouterr().err
    assert doctor.main(["--config", "/not/there.yaml"]) == 2
    with pytest.raises(SystemExit) as caught:
        doctor.main(["--data.hight", "64"])
    assert caught.value.code == 2
