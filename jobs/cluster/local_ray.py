"""A Ray of the job's own, on one machine: its settings and its end."""

from __future__ import annotations

from contextlib import suppress

import psutil
import ray

SETTINGS = {
    # Ray starts its workers, training among them, at niceness 15: behind its own processes, and
    # behind whatever else the user runs.
    "RAY_worker_niceness": "0",
    # Metrics are for the dashboard and for those who scrape it, and there are neither.
    "RAY_enable_metrics_collection": "0",
    # Ray Train's placement group cleaner asks the dashboard whether its controller is alive, and
    # without this setting the dashboard of any Ray that runs on this machine, or the one that
    # RAY_API_SERVER_ADDRESS names for `ray job submit`. Those do not know the controller, and the
    # cleaner of Ray 2.60 would take that for its death and end the workers of a healthy run. Here
    # nobody listens, and the cleaner does nothing; see `jobs.training.driver.Driver` for who does
    # its work.
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
}
"""Variables for the environment in which Ray is started."""

EXIT_SECONDS = 10.0
"""After which a process of Ray's is thought to hang."""


def shut_down() -> None:
    """`ray.shutdown`, and the end of all workers of this process's Ray.

    An actor that others subscribe to may wait for itself for ever as it exits: Ray 2.60 posts to
    its event loop while destroying it. The raylet has been told by then that the actor is gone, so
    that nobody looks after the process any more. At the next Ray (2.61 or later): end some jobs
    with `ray.shutdown` alone, and where no `ray::` process outlives any of them, delete this.
    """
    ours = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::"):
                ours.append(process)
    ray.shutdown()
    _, hanging = psutil.wait_procs(ours, timeout=EXIT_SECONDS)
    for process in hanging:
        with suppress(psutil.Error):
            process.kill()
