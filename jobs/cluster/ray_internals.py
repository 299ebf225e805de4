"""All that jobs/ uses of Ray's private parts, as of Ray 2.60; each says what it is for, and which
change of Ray's makes it superfluous."""

from __future__ import annotations

import logging
import time
import uuid
from pathlib import Path

import ray
from ray._private.state import state
from ray.data._internal.cluster_autoscaler import (
    DefaultAutoscalingCoordinator,
    ResourceRequestPriority,
    get_or_create_autoscaling_coordinator,
)
from ray.exceptions import RayError

log = logging.getLogger(__name__)

REQUEST_SECONDS = 180.0
"""A request to the autoscaler expires after this, unless it is repeated: the nodes of a driver that
was killed become idle."""

WITHDRAW_SECONDS = 10.0
"""How long the withdrawal of a request may take; the request expires all the same."""

Bundle = tuple[dict[str, float], dict[str, str]]
"""Resources, and labels of the node that has them."""


def available_resources_per_node() -> dict[str, dict[str, float]]:
    """What nobody holds now, by node id: it shows which GPUs another job has. To be replaced once
    `ray.available_resources` tells nodes apart."""
    resources: dict[str, dict[str, float]] = state.available_resources_per_node()
    return resources


def draining_nodes() -> set[str]:
    """Ids of the nodes that the cloud or an administrator is about to take away: a run saves before
    they go. To be replaced once `ray.nodes` tells it, or `ray.train.get_preemption_info` outside of
    training workers."""
    return set(state.get_draining_nodes())


def session_log_folder() -> Path:
    """Where Ray keeps its logs on this machine: the autoscaler's log is the only place that says
    why a node could not be launched. To be replaced once Ray tells a session's folder."""
    return Path(ray._private.worker._global_node.get_logs_dir_path())


class NodeRequests:
    """The nodes that one run wants from the autoscaler, for as long as it repeats the request.

    Ray Train and Ray Data ask by the same actor, which adds up all requests. The public
    `ray.autoscaler.sdk.request_resources` would hold only until the actor's next request; it
    replaces this once requests of several callers add up.
    """

    def __init__(self) -> None:
        job = ray.get_runtime_context().get_job_id()
        # The trials of a sweep are one job, and each wants nodes of its own.
        self._name = f"taehv-{job}-{uuid.uuid4().hex[:8]}"
        self._coordinator = DefaultAutoscalingCoordinator(self._name)
        self._requested: list[Bundle] = []
        self._repeat_at = 0.0

    def request(self, bundles: list[Bundle]) -> None:
        """Replace what was requested before."""
        if bundles == self._requested and time.monotonic() < self._repeat_at:
            return
        self._requested, self._repeat_at = list(bundles), time.monotonic() + REQUEST_SECONDS / 4
        self._coordinator.request_resources(
            [resources for resources, _ in bundles],
            expire_after_s=REQUEST_SECONDS,
            priority=ResourceRequestPriority.HIGH,
            label_selectors=[labels for _, labels in bundles],
        )

    def withdraw(self) -> None:
        """Request nothing more: nodes that nothing else needs are idle from now on."""
        if not self._requested:
            return
        self._requested, self._repeat_at = [], 0.0
        try:
            actor = get_or_create_autoscaling_coordinator()
            # The coordinator's own `cancel_request` does not wait, and what the driver has not sent
            # when it ends is never sent.
            ray.wait([actor.cancel_request.remote(self._name)], timeout=WITHDRAW_SECONDS)
        except (RayError, RuntimeError, ValueError) as error:
            # The error that ended the job, if there is one, must not be hidden by this.
            log.warning(
                "the autoscaler keeps the nodes that this job asked for %d s longer: %s",
                REQUEST_SECONDS,
                error,
            )
