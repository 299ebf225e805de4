"""What one run asks of the cluster's autoscaler, beside what Ray Train and Ray Data ask for it."""

from __future__ import annotations

import logging
import time
import uuid

import ray
from ray.data._internal.cluster_autoscaler import (
    DefaultAutoscalingCoordinator,
    ResourceRequestPriority,
)
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.exceptions import RayError

log = logging.getLogger(__name__)

REQUEST_SECONDS = 180.0
"""What is asked of the autoscaler is forgotten after this, unless it is asked again: the nodes of a
driver that was killed go idle."""

WITHDRAW_SECONDS = 10.0
"""How long it may take to withdraw what was asked: it is forgotten all the same."""

Bundle = tuple[dict[str, float], dict[str, str]]
"""Resources, and labels of the node that has them."""


class Requests:
    """Nodes that are wanted, for as long as they are asked for again and again.

    Ray adds up what all ask for in one actor; to ask the autoscaler past it, as
    `request_resources` does, would only last until the next of its requests.
    """

    def __init__(self) -> None:
        job = ray.get_runtime_context().get_job_id()
        # The trials of a sweep are one job, and each wants nodes of its own.
        self._name = f"taehv-{job}-{uuid.uuid4().hex[:8]}"
        self._coordinator = DefaultAutoscalingCoordinator(self._name)
        self._asked: list[Bundle] = []
        self._ask_again = 0.0

    def ask(self, bundles: list[Bundle]) -> None:
        """Replace what was asked for."""
        if bundles == self._asked and time.monotonic() < self._ask_again:
            return
        self._asked, self._ask_again = list(bundles), time.monotonic() + REQUEST_SECONDS / 4
        self._coordinator.request_resources(
            [resources for resources, _ in bundles],
            expire_after_s=REQUEST_SECONDS,
            priority=ResourceRequestPriority.HIGH,
            label_selectors=[labels for _, labels in bundles],
        )

    def withdraw(self) -> None:
        """Ask for nothing more: what is not needed otherwise goes idle from now on."""
        if not self._asked:
            return
        self._asked, self._ask_again = [], 0.0
        try:
            actor = get_or_create_autoscaling_coordinator()
            # The coordinator's own `cancel_request` does not wait, and the driver is about to leave
            # with all that it has not sent yet.
            ray.wait([actor.cancel_request.remote(self._name)], timeout=WITHDRAW_SECONDS)
        except (RayError, RuntimeError, ValueError) as error:
            # How the job ended matters more, and is being told.
            log.warning(
                "the autoscaler keeps the nodes that this job asked for %d s longer: %s",
                REQUEST_SECONDS,
                error,
            )
