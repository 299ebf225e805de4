"""The errors that say whose fault it is: the user's input, or one video of it."""


class DataError(RuntimeError):
    """Bad input. The message says what is wrong, where, and what to do about it."""


class UnusableVideoError(Exception):
    """A video from which no clip can be made; the text is the reason, without the path."""


class MomentaryError(UnusableVideoError):
    """A video that could not be used just now: a time-out, a store that does not answer.

    All other verdicts on a video come out the same whenever they are reached; this one does not.
    """
