"""What keeps the nodes of a cluster from working together is told before training starts."""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import AuthenticationError

from jobs.cli.config import ClusterConfig, Config
from jobs.cluster import connection, nodes
from jobs.cluster.nodes import NodeFacts, check_nodes
from jobs.cluster.versions import version_of
from taehv.errors import TrainingError
from taehv.training.config import TrainConfig


def here(*missing: str, **versions: str) -> NodeFacts:
    """A node like this machine, but for what is given."""
    facts = nodes._facts("10.0.0.7", [])
    return dataclasses.replace(facts, versions={**facts.versions, **versions}, missing=missing)


def check(monkeypatch: pytest.MonkeyPatch, config: Config, answer: Any) -> None:
    """`answer`: the paths that a node is asked for -> its facts."""
    monkeypatch.setattr(nodes, "_ask", lambda paths: [here(), answer(paths)])
    check_nodes(config)


def config_of(run_dir: str, pretrained: str = "") -> Config:
    config = Config(train=TrainConfig(run_dir=run_dir))
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, pretrained=pretrained)
    )


def test_nodes_that_are_alike_and_share_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(paths: list[str]) -> NodeFacts:
        asked.extend(paths)
        assert all(Path(path).exists() for path in paths)
        return here()

    check(monkeypatch, config_of(str(tmp_path)), answer)
    assert len(asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_of_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError) as told:
        check(monkeypatch, config_of(str(tmp_path)), lambda paths: here(*paths))
    assert f"node 10.0.0.7 does not see the run folder {tmp_path}" in str(told.value)
    assert "--cluster.storage s3://" in str(told.value)


def test_weights_of_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "w.pth"
    config = config_of("s3://bucket/runs/a", str(weights))
    with pytest.raises(TrainingError, match=r"10.0.0.7 does not see .*w.pth"):
        check(monkeypatch, config, lambda paths: here(*paths))


@pytest.mark.parametrize("package", ["torch", "python"])
def test_another_version(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("s3://bucket/runs/a")
    with pytest.raises(TrainingError, match=rf"10.0.0.7 has {package} 1.0 \(the driver has"):
        check(monkeypatch, config, lambda paths: here(**{package: "1.0"}))


def test_a_build_for_other_hardware_is_the_same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cu130")
    assert version_of("torch") == "2.13.0"


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (RuntimeError("Version mismatch:\n    Ray: 2.59.0"), "Version mismatch: Ray: 2.59.0"),
        (ConnectionError("no such host"), "no such host"),
        (AuthenticationError("401"), "RAY_AUTH_MODE=token"),
    ],
)
def test_a_cluster_that_refuses_the_driver(
    refusal: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise refusal

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(TrainingError, match=r"the cluster at 10\.0\.0\.1:6379") as raised,
        connection.connected(ClusterConfig(), 1.0),
    ):
        pass
    assert told in str(raised.value)
