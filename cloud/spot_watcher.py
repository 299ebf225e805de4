"""Turns a cloud's notice that this machine is about to be taken away into a drain of its Ray node.

Ray then starts nothing new here, and a training run that has workers here saves a checkpoint and
goes on elsewhere, before the machine is gone. It runs on every node that may be reclaimed:

    python cloud/spot_watcher.py --head 10.0.0.5:6379
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

# Run as a script, Python looks for imports in cloud/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cloud.metadata import Aws, Notice

log = logging.getLogger("spot_watcher")

POLL_SECONDS = 5.0
"""What AWS recommends: of two minutes' notice, little is lost."""


def watch(
    machine: Aws,
    drain: Callable[[Notice], None],
    poll_seconds: float = POLL_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait for a notice and hand it to `drain`; try again where that fails.

    A metadata service that does not answer, or answers nonsense, is told once and asked again.
    """
    troubled = False
    while True:
        try:
            notice = machine.notice()
            troubled = _tell_end(troubled)
            if notice is not None:
                log.warning("this machine is about to %s, at %s", notice.action, notice.at)
                drain(notice)
                return
        except (OSError, ValueError, KeyError) as error:
            if not troubled:
                log.warning("no word from the metadata service: %s", error)
            troubled = True
        except subprocess.CalledProcessError as error:
            log.error("the node cannot be drained: %s", (error.stderr or "").strip() or error)
        sleep(poll_seconds)


def _tell_end(troubled: bool) -> bool:
    if troubled:
        log.info("the metadata service answers again")
    return False


def seconds_left(notice: Notice, now: datetime | None = None) -> int:
    """Until the machine goes; at least 1."""
    return max(1, int((notice.at - (now or datetime.now(UTC))).total_seconds()))


def drain_this_node(head: str, notice: Notice) -> None:
    """Tell Ray that this node goes, and when.

    Ray is loaded for this alone: the watcher itself stays small. Raises CalledProcessError.
    """
    options = {
        "address": head,
        "node-id": this_node(head),
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": f"the cloud announced: {notice.action}",
        "deadline-remaining-seconds": str(seconds_left(notice)),
    }
    ray = Path(sys.executable).with_name("ray")
    subprocess.run(
        [ray, "drain-node", *(f"--{name}={value}" for name, value in options.items())],
        check=True,
        capture_output=True,
        text=True,
    )


def this_node(head: str) -> str:
    """The id of the Ray node on this machine."""
    code = (
        "import sys, ray\n"
        "ray.init(sys.argv[1], logging_level='error', log_to_driver=False)\n"
        "print(ray.get_runtime_context().get_node_id())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, head], check=True, capture_output=True, text=True
    )
    return result.stdout.split()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--head", required=True, help="address of Ray's head, HOST:PORT")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    log.info("watching for the end of this machine")
    while True:
        watch(Aws(), lambda notice: drain_this_node(arguments.head, notice))
        # Drained once; the machine goes. Should it stay, there may be another notice.
        time.sleep(600)


if __name__ == "__main__":
    main()
