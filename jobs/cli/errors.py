"""What a user has to mend before a job can start."""

from __future__ import annotations


class ConfigError(ValueError):
    """A command line or a config file that cannot be used; the job exits with 2."""
