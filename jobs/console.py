"""What the entry points have in common: how they speak, and the exit codes of the contract."""

import logging
import sys

DONE, FAILED, BAD_CONFIG, VERDICT_IS_FAILURE = 0, 1, 2, 3


def log_plainly() -> None:
    """Messages of this project alone, as plain lines on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    for room in ("jobs", "taehv", "data_pipeline"):
        logging.getLogger(room).setLevel(logging.INFO)


def refuse(error: Exception, code: int) -> int:
    """Say what is wrong in one clear line; gives the exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
