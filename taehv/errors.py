"""The one exception of this package that is meant for the user rather than the programmer."""


class TrainingError(RuntimeError):
    """Something the user can mend: a wrong file, a missing teacher, weights of another variant.

    The message is one clear statement of what is wrong and what to do; an entry point prints it
    without a traceback and exits with code 1.
    """
