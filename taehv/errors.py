"""The exceptions of this package that are meant for the user, not for the programmer."""

from taehv.credentials import hide_credentials


class TrainingError(RuntimeError):
    """An error that the user can correct: a wrong file, a missing teacher, weights of another
    variant.

    The message says what is wrong and what to do; an entry point prints it without a traceback and
    exits with code 1. The credentials of addresses in it are removed, since Ray may write it to a
    log.
    """

    def __str__(self) -> str:
        return hide_credentials(super().__str__())


class DivergedError(TrainingError):
    """The run has diverged. Raised on all workers; `train.on_divergence` may roll the run back."""


class MemoryShortageError(TrainingError):
    """A pass was too large for a GPU: raised on the worker where it happens.

    Args:
        message: the pass that failed, and the settings that would fit.
        shortage: the part of the message about the pass.
        halved_pass: half of the clips per pass; 0 where a pass cannot be smaller.
    """

    def __init__(self, message: str, shortage: str = "", halved_pass: int = 0) -> None:
        super().__init__(message)
        self.shortage = shortage
        self.halved_pass = halved_pass
