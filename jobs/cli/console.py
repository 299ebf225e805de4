"""What the entry points have in common: how they speak, and the exit codes of the contract."""

import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from taehv.credentials import hide_credentials

DONE, FAILED, BAD_CONFIG, VERDICT_IS_FAILURE = 0, 1, 2, 3


def log_plainly() -> None:
    """Messages of this project alone, as plain lines on standard error, and nowhere, nor in a
    traceback, an address with its credentials."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Plain("%(message)s"))
    sys.excepthook = _show_traceback
    for room in ("jobs", "taehv", "data_pipeline"):
        logging.getLogger(room).setLevel(logging.INFO)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return hide_credentials(super().format(record))


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(hide_credentials(text), file=sys.stderr)


def log_without_credentials() -> None:
    """Let no record of this process hold an address with its credentials, whoever writes it down:
    in a training worker Ray does."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, _CleanRecords):
        logging.setLogRecordFactory(_CleanRecords(make))


class _CleanRecords:
    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *arguments: Any, **more: Any) -> logging.LogRecord:
        record = self._make(*arguments, **more)
        record.msg, record.args = hide_credentials(record.getMessage()), ()
        return record


def take_option(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The last value that `--name VALUE` or `--name=VALUE` gives on a command line, and the other
    words; None where it is not there, "" where it has no value: another option is none."""
    value, others = None, []
    words = [*arguments]
    while words:
        word = words.pop(0)
        option, equals, given = word.partition("=")
        if option.replace("_", "-") != name:
            others.append(word)
        elif equals or not words or words[0].startswith("--"):
            value = given
        else:
            value = words.pop(0)
    return value, others


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
    print(f"error: {hide_credentials(' '.join(str(error).split()))}", file=sys.stderr)
    return code
