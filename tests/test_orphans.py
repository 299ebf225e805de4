"""The room of a controller that was killed is free again; that of one that lives is not touched."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group

from jobs.orphans import HeldRoom, free_orphans
from tests.local_ray import local_ray


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    with local_ray(cpus=3):
        yield


@ray.remote(num_cpus=0)
class Controller:
    """Holds a CPU for workers, as Ray Train's does."""

    def hold(self) -> None:
        self.group = placement_group([{"CPU": 1}])
        ray.get(self.group.ready())
        handle = SimpleNamespace(placement_group=self.group)
        state = SimpleNamespace(placement_group_handle=handle)
        workers: Any = SimpleNamespace(get_worker_group_state=lambda: state)
        HeldRoom().after_worker_group_start(workers)


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0))


def wait_for_cpus(cpus: float) -> None:
    end = time.monotonic() + 60
    while free_cpus() != cpus:
        assert time.monotonic() < end, f"{free_cpus()} CPUs are free, not {cpus}"
        time.sleep(0.1)


def test_only_a_dead_controllers_room_is_freed() -> None:
    killed, living = (Controller.remote() for _ in range(2))  # type: ignore[attr-defined]
    ray.get([killed.hold.remote(), living.hold.remote()])
    wait_for_cpus(1)
    assert free_orphans() == 0
    ray.kill(killed)
    end = time.monotonic() + 60
    while not free_orphans():
        assert time.monotonic() < end, "the dead controller has not been noticed"
        # So long as nobody looks, its room stays taken.
        assert free_cpus() == 1
        time.sleep(0.1)
    wait_for_cpus(2)
    assert free_orphans() == 0
    assert ray.get(living.hold.remote(), timeout=60) is None
