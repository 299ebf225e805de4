"""The versions of what all processes of a run must have alike. Imports nothing but Python's own, so
that a node which is asked for them answers fast."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

PACKAGES = ("ray", "torch", "deepspeed", "numpy", "pyarrow", "av")
"""Those whose version shows in results, or in whether processes understand each other."""


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """By package, and of Python."""
    return {name: version_of(name) for name in packages} | {"python": platform.python_version()}


def version_of(package: str) -> str:
    """Without "+cu130" or "+cpu", which may rightly differ between a head and GPU nodes; "none"
    where it is not installed."""
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "none"


def differences(driver: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    """What is another version there than the driver's, by name, in words."""
    return {
        name: f"{name} {there.get(name)} (the driver has {version})"
        for name, version in driver.items()
        if there.get(name) != version
    }
