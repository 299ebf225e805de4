"""What a killed Ray Train controller leaves behind: the room of its workers, which Ray frees no
sooner than the driver's job ends, so that those that come in their place would wait for it.

Ray Train's own cleaner needs the dashboard and is one more process that every start waits for. Here
the controller writes down what it holds, in Ray's own store, and the driver looks from time to time
whether who wrote is still alive.
"""

from __future__ import annotations

from typing import Any

import ray
from ray._private.state import actors
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

NAMESPACE = "taehv_placement_groups"


class HeldRoom(WorkerGroupCallback):  # type: ignore[misc]
    """In the controller: writes down the placement group of its workers."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        state = worker_group.get_worker_group_state()
        group = state.placement_group_handle.placement_group
        controller = ray.get_runtime_context().get_actor_id()
        _internal_kv_put(_prefix() + group.id.binary(), controller.encode(), namespace=NAMESPACE)


def free_orphans() -> int:
    """Free the room of dead controllers of this job; how many there were. What a controller has
    freed itself is gone already, and merely forgotten."""
    freed = 0
    for key in _internal_kv_list(_prefix(), namespace=NAMESPACE):
        controller = _internal_kv_get(key, namespace=NAMESPACE)
        if controller and actors(controller.decode()).get("State") == "DEAD":
            group = key[len(_prefix()) :]
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group)))
            _internal_kv_del(key, namespace=NAMESPACE)
            freed += 1
    return freed


def _prefix() -> bytes:
    job: str = ray.get_runtime_context().get_job_id()
    return f"{job}:".encode()
