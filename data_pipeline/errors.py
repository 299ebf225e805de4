"""The error a user reads when the input is at fault."""


class DataError(RuntimeError):
    """Bad input. The message says what is wrong, where, and what to do about it."""
