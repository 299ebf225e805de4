"""The package's exceptions: one for the user's input, one for a single video of it."""


class DataError(RuntimeError):
    """Bad input. The message says what is wrong, where, and what to do about it."""


class UnusableVideoError(Exception):
    """A video from which no clip can be made; the text is the reason, without the path."""


class TransientVideoError(UnusableVideoError):
    """A video that could not be used this time, because of a time-out or a store that does not
    answer; unlike other `UnusableVideoError`s, it may not recur."""
