"""A Ray of the job's own, on one machine, without those of its processes that only look on.

Each of Ray's processes takes a second of a core to start, and wakes a hundred times a second from
then on. What it takes from one core is lost on all, since an operation of PyTorch ends with the
slowest of its threads; benchmarks/RESULTS.md says how much.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import ray
from ray._private import ray_constants
from ray._private.node import Node

NOBODY = b"127.0.0.1:9"
"""Where nobody listens, and who asks is told so at once."""

SETTINGS = {
    # More processes than cores are needed again and again, for decoding above all; Ray would end
    # those that idle for a second, and start others. With room for idle ones it would start one
    # ahead of every task, and keep those that come too late.
    "RAY_num_workers_soft_limit": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "3600000",
    # Ray starts its workers, training among them, at niceness 15, behind its own processes: on two
    # cores that costs 4 % of the speed.
    "RAY_worker_niceness": "0",
    # Metrics and the history of tasks are for the dashboard, and for those who scrape it.
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    # The agent, which the raylet cannot be without, reads all of /proc for it every 5 s, and the
    # folder of events every 2 s.
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "3600",
}
"""Variables for the environment in which Ray is started."""


def start(num_cpus: int, **options: Any) -> None:
    """`ray.init` with a Ray of this process's own, which ends with `ray.shutdown`."""
    with mock.patch("ray._private.node.Node", _OwnNode):
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **options)


class _OwnNode(Node):  # type: ignore[misc]
    """A head node that nobody looks at. `ray.init` has no arguments for this."""

    def start_monitor(self) -> None:
        """No autoscaler: there is one machine."""

    def start_log_monitor(self) -> None:
        """Nobody who sends the workers' output to the driver, which does not want it."""

    def start_api_server(self, **_: Any) -> None:
        """No dashboard. Its agent would ask where it is once a second, if it was not told."""
        self.get_gcs_client().internal_kv_put(
            ray_constants.DASHBOARD_ADDRESS.encode(),
            NOBODY,
            True,
            ray_constants.KV_NAMESPACE_DASHBOARD,
        )
