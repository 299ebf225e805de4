"""The exceptions of this package that are meant for the user rather than the programmer."""

from taehv.credentials import hide_credentials


class TrainingError(RuntimeError):
    """Something the user can mend: a wrong file, a missing teacher, weights of another variant.

    The message is one clear statement of what is wrong and what to do; an entry point prints it
    without a traceback and exits with code 1. Addresses in it have no credentials, wherever Ray may
    write it down.
    """

    def __str__(self) -> str:
        return hide_credentials(super().__str__())


class DivergedError(TrainingError):
    """The run has diverged: raised on all workers alike, and met by a rollback where that is on."""


class MemoryShortageError(TrainingError):
    """A pass was too large for a GPU: raised on the worker where it happens.

    Args:
        message: what was tried, and the settings that would fit.
        shortage: the first half of that.
        halved_pass: half of the clips per pass; 0 where a pass cannot be smaller.
    """

    def __init__(self, message: str, shortage: str = "", halved_pass: int = 0) -> None:
        super().__init__(message)
        self.shortage = shortage
        self.halved_pass = halved_pass
