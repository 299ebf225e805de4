"""Where training and decoding are placed, on clusters that are lists of nodes."""

from typing import Any

import pytest
import ray
from ray._private.state import state as ray_state

from jobs.cli.config import ClusterConfig
from jobs.cluster import capacity as capacity_module
from jobs.cluster import ray_internals
from jobs.cluster.capacity import Allocation, ClusterCapacity
from jobs.cluster.nodes import label_selector
from taehv.errors import TrainingError


def node(name: str, cpus: float = 0, gpus: float = 0, **labels: str) -> dict[str, Any]:
    resources = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    own = labels | {"ray.io/node-id": name}
    return {"NodeID": name, "Alive": True, "Resources": resources, "Labels": own}


HEAD = node("head", role="head")
DECODE = node("d", cpus=16, role="decode")
TRAIN = node("t", cpus=48, gpus=4, role="train")
OTHER = node("o", cpus=8, gpus=1)

ON_CLUSTER = ClusterConfig(workers="1-4", gpu="yes", train_nodes="role=train", decode_cpus=8)


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: dict[float, Any] = {}
        """What happens when."""

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for when in [when for when in self.events if when <= self.now]:
            self.events.pop(when)()


class Autoscaler:
    """Takes note of what it is asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[Any] = []

    def request_resources(self, resources: Any, label_selectors: Any, **_: Any) -> None:
        self.asked.append(list(zip(resources, label_selectors, strict=True)))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    there = [HEAD]

    class Job:
        def get_job_id(self) -> str:
            return "1"

    monkeypatch.setattr(ray, "nodes", lambda: there)
    monkeypatch.setattr(ray, "get_runtime_context", Job)
    monkeypatch.setattr(capacity_module, "draining_nodes", lambda: set())
    monkeypatch.setattr(ray_internals, "DefaultAutoscalingCoordinator", Autoscaler)
    return there


@pytest.fixture
def held(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """GPUs that somebody has, by node."""
    held: dict[str, int] = {}

    def available() -> dict[str, Any]:
        return {
            name: there["Resources"] | {"GPU": there["Resources"].get("GPU", 0) - held.get(name, 0)}
            for there in nodes
            if (name := there["NodeID"])
        }

    monkeypatch.setattr(ray_state, "available_resources_per_node", available)
    return held


@pytest.fixture
def clock(held: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(capacity_module, "time", clock)
    monkeypatch.setattr(ray_internals, "time", clock)
    return clock


def make_capacity(
    config: ClusterConfig = ON_CLUSTER, decode_nodes: str = "role=decode"
) -> ClusterCapacity:
    return ClusterCapacity(config, decode_cpus=1.0, nodes_may_join=True, decode_nodes=decode_nodes)


def wait(capacity: ClusterCapacity) -> Allocation:
    allocation = capacity.wait_for_allocation(cancelled=lambda: False)
    assert allocation is not None
    return allocation


def test_decoding_and_training_have_nodes_of_their_own(
    nodes: list[dict[str, Any]], clock: Clock
) -> None:
    nodes += [DECODE, TRAIN]
    assert wait(make_capacity()) == Allocation(4, True, 1.0, 8, "role=decode")


def test_without_a_number_decoding_shares_what_is_there(
    nodes: list[dict[str, Any]], clock: Clock
) -> None:
    nodes += [DECODE, TRAIN]
    config = ClusterConfig(workers="2", gpu="yes", train_nodes="role=train")
    assert wait(make_capacity(config)).decode_cpus_per_worker == 8  # 16 for two


def test_gpus_without_the_label_are_left_alone(nodes: list[dict[str, Any]], clock: Clock) -> None:
    nodes += [DECODE, OTHER]
    clock.events[120] = lambda: nodes.append(TRAIN)
    allocation = wait(make_capacity())
    assert allocation.workers == 4
    assert 120 <= clock.now < 125


def test_where_any_node_may_decode_none_is_waited_for(
    nodes: list[dict[str, Any]], clock: Clock
) -> None:
    nodes.append(TRAIN)
    allocation = wait(make_capacity(decode_nodes=""))
    assert clock.now == 0
    assert (allocation.workers, allocation.decode_nodes, allocation.decode_cpus_per_worker) == (
        4,
        "",
        8,
    )


def test_the_first_decode_node_is_waited_for(
    nodes: list[dict[str, Any]], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.append(TRAIN)
    clock.events[60] = lambda: nodes.append(DECODE)
    with caplog.at_level("INFO"):
        assert wait(make_capacity()).decode_nodes == "role=decode"
    assert 60 <= clock.now < 65
    assert "decoding waits for a node with the label role=decode" in caplog.text


def test_where_none_comes_any_node_decodes_and_that_is_told(
    nodes: list[dict[str, Any]], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.append(TRAIN)
    allocation = wait(make_capacity())
    assert allocation.decode_nodes == ""
    assert allocation.decode_cpus_per_worker == 8
    assert clock.now > capacity_module.DECODE_NODE_SECONDS
    assert "any node decodes" in caplog.text
    assert "Labels of the nodes that are there: role=head, role=train" in caplog.text


def test_what_does_not_come_is_named_with_the_labels_that_are_there(
    nodes: list[dict[str, Any]], clock: Clock
) -> None:
    nodes += [DECODE, node("x", cpus=8, gpus=1, role="trian")]
    with pytest.raises(TrainingError) as told:
        make_capacity().wait_for_allocation(cancelled=lambda: False)
    text = str(told.value)
    assert "0 of the 1 workers" in text
    assert "with a GPU on a node with the label role=train" in text
    assert "role=decode, role=head, role=trian" in text
    assert clock.now > 60 * ON_CLUSTER.wait_minutes


def test_the_autoscaler_is_asked_for_all_workers_and_one_decoder(
    nodes: list[dict[str, Any]], clock: Clock
) -> None:
    nodes += [DECODE, TRAIN]
    capacity = make_capacity()
    wait(capacity)
    assert capacity._requests is not None
    autoscaler: Any = capacity._requests._coordinator
    train = ({"GPU": 1.0}, {"role": "train"})
    assert autoscaler.asked == [[train] * 4 + [({"CPU": 1.0}, {"role": "decode"})]]
    # While they run, they ask for themselves.
    capacity.request_nodes(workers=3)
    assert autoscaler.asked[-1] == [train]
    capacity.request_nodes(workers=3)
    assert len(autoscaler.asked) == 2
    # What is asked is forgotten unless it is repeated.
    clock.now += ray_internals.REQUEST_SECONDS / 2
    capacity.request_nodes(workers=3)
    assert len(autoscaler.asked) == 3


def test_trials_of_one_job_ask_beside_one_another(
    nodes: list[dict[str, Any]], clock: Clock
) -> None:
    asking: list[Any] = [make_capacity()._requests for _ in range(2)]
    assert asking[0]._coordinator.name != asking[1]._coordinator.name


def test_gpus_of_another_job_are_waited_for(
    nodes: list[dict[str, Any]],
    clock: Clock,
    held: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    nodes += [DECODE, TRAIN]
    held["t"] = 4
    # Another job ends, and its workers one after the other.
    clock.events[300] = lambda: held.update(t=3)
    clock.events[305] = held.clear
    with caplog.at_level("INFO"):
        assert wait(make_capacity()).workers == 4
    assert 305 <= clock.now < 310
    assert "0 of the 1 workers" in caplog.text
    assert "GPUs that are there, but taken: 4" in caplog.text


def test_what_another_job_leaves_is_enough(
    nodes: list[dict[str, Any]], clock: Clock, held: dict[str, int]
) -> None:
    nodes += [DECODE, TRAIN]
    held["t"] = 1
    capacity = make_capacity()
    assert wait(capacity).workers == 3
    # Somebody may just have died.
    assert clock.now >= capacity_module.GPU_RELEASE_SECONDS
    held["t"] = 4
    assert not capacity.could_add_workers(3)
    held["t"] = 3
    assert capacity.could_add_workers(3)
    assert not capacity.could_add_workers(4)


def test_gpus_that_stay_taken_end_the_wait(
    nodes: list[dict[str, Any]], clock: Clock, held: dict[str, int]
) -> None:
    nodes += [DECODE, TRAIN]
    held["t"] = 4
    with pytest.raises(TrainingError, match="GPUs that are there, but taken: 4"):
        make_capacity().wait_for_allocation(cancelled=lambda: False)


def test_labels_in_rays_form() -> None:
    assert label_selector("role=train") == {"role": "train"}
    assert label_selector("") == {}
