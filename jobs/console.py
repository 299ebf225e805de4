"""What the entry points have in common: how they speak, and the exit codes of the contract."""

import logging
import sys

DONE, FAILED, BAD_CONFIG, VERDICT_IS_FAILURE = 0, 1, 2, 3


def log_plainly() -> None:
    """Messages of this project alone, as plain lines on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    for room in ("jobs", "taehv", "data_pipeline"):
        logging.getLogger(room).setLevel(logging.INFO)
