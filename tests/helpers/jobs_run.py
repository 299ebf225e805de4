"""Runs the real job in a process of its own, in a HOME of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# A network and clips so small that a step takes a fraction of a second.
_TINY = (
    "--model.encoder-width 8 --model.decoder-widths 16 8 8 8 --seraena.widths 4 8 8 8 8 8"
    " --data.height 32 --data.width 32 --data.decode-cpus 0.5"
    " --train.validation-clips 2 --train.log-every 1 --optim.warmup-steps 2"
)
TINY = _TINY.split()


def environment(home: Path, **more: str) -> dict[str, str]:
    """The outer environment without what would tie a test to it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "MLFLOW_", "XDG_"))
    }
    return kept | {"HOME": str(home)} | more


def start(home: Path, *arguments: str, **more: str) -> "subprocess.Popen[str]":
    """`python jobs/train.py arguments`, its output captured; `more` in its environment."""
    home.mkdir(exist_ok=True, parents=True)
    return subprocess.Popen(
        [sys.executable, "jobs/train.py", *arguments],
        cwd=REPOSITORY,
        env=environment(home, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", seconds: float = 240) -> tuple[int, str]:
    """Wait for the end: exit code and output. A job that hangs is stopped and fails the test."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"the job did not end in {seconds} s:\n{output}") from None
    return process.returncode, output


NOISE = re.compile(
    r"""
    ^\[?\d{4}-\d\d-\d\d[ T]     # a line of Ray's log, or of a library's that has times
    | ^[WEF]\d{4}\s\d             # a line of gRPC's
    | \((raylet|pid=|\w+\ pid=)   # what a process of Ray's has said
    | core_worker\.cc | Token\ authentication
    | \bWARNING[ :] | Warning:      # of a library: this project's own have no such word
    | View\ (run|experiment)        # MLflow
    """,
    re.VERBOSE | re.MULTILINE,
)
"""What others say on the terminal, and a user can do nothing about."""


def assert_quiet(output: str) -> None:
    noise = [line for line in output.splitlines() if NOISE.search(line)]
    assert not noise, "\n".join(noise)


def wait_for(
    condition: Callable[[], object],
    what: str,
    process: "subprocess.Popen[str]",
    seconds: float = 240,
) -> None:
    """Until `condition()` holds, while the job is running; `what` says what that is."""
    end = time.monotonic() + seconds
    while not condition():
        ended = process.poll() is not None
        assert not ended, f"the job ended before {what}:\n{process.communicate()[0]}"
        if time.monotonic() > end:
            process.send_signal(signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"waited {seconds:g} s in vain for {what}:\n{output}")
        time.sleep(0.2)
