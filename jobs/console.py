"""What the entry points have in common: how they speak, and the exit codes of the contract."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

DONE, FAILED, BAD_CONFIG, VERDICT_IS_FAILURE = 0, 1, 2, 3


def log_plainly() -> None:
    """Messages of this project alone, as plain lines on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    for room in ("jobs", "taehv", "data_pipeline"):
        logging.getLogger(room).setLevel(logging.INFO)


@contextmanager
def stop_signals_to(handle: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `handle`, in the main thread, for as long as the context."""

    def call(number: int, frame: FrameType | None) -> None:
        handle(signal.Signals(number))

    before = {number: signal.signal(number, call) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refuse(error: Exception, code: int) -> int:
    """Say what is wrong in one clear line; gives the exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
