"""All that data_pipeline uses of Ray Data's private parts, as of Ray 2.60."""

import threading
import time
from typing import TYPE_CHECKING

import ray
from ray.data import ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

MIN_LOOP_SECONDS = 0.05
"""Least time between two iterations of Ray Data's scheduling thread."""


class ExecutionLimits(ExecutionCallback):  # type: ignore[misc]
    """Applies the resource limits of an execution, and slows down Ray Data's scheduling thread.

    Ray Data divides the cluster among all its executions in whole CPUs of each node: if more
    segments and trainers run than a node has CPUs, none of them gets any. An execution without a
    CPU polls without a pause, in a thread of the training worker's process, and takes the GIL from
    the training thread (on two cores, a fifth of the speed is left). To be deleted once Ray Data
    divides fractions of CPUs and its scheduling thread waits for events.
    """

    def before_execution_starts(self, executor: "StreamingExecutor") -> None:
        manager = executor._resource_manager
        manager._get_total_resources = _cluster_resources
        # Otherwise the limits computed before would stay valid for another second.
        manager._global_limits_last_update_time = 0.0
        self._next_step_at = 0.0

    def on_execution_step(self, executor: "StreamingExecutor") -> None:
        time.sleep(max(0.0, self._next_step_at - time.monotonic()))
        self._next_step_at = time.monotonic() + MIN_LOOP_SECONDS


def _cluster_resources() -> ExecutionResources:
    return ExecutionResources.from_resource_dict(ray.cluster_resources())


def join_fetching_threads() -> None:
    """Wait for the threads, known by their name alone, in which Ray Data fetches and formats
    blocks: one that calls Ray after its shutdown crashes the process. To be deleted once closing an
    iterator of Ray Data waits for them."""
    for thread in threading.enumerate():
        if thread.name == "iter_threaded":
            thread.join(timeout=10)
