"""What a machine says of itself, in a Ray task on every node.

Next to nothing of this project is imported here, so that a node answers fast, whatever is wrong
with it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster.versions import installed_versions

PROGRAM = "this program"
"""Among the versions: a digest of its code."""

SHARED_MEMORY = "/dev/shm"
"""Where Ray keeps objects, and NCCL what GPUs of one machine exchange."""

SMI_SECONDS = 30.0
"""nvidia-smi hangs on a GPU that has fallen off the bus."""


@dataclass(frozen=True)
class Gpu:
    name: str
    driver: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    versions: dict[str, str]
    """By package; also of Python and of this program. "none": not installed."""
    shm_bytes: int
    """Size of /dev/shm; 0: there is none."""
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    """By the driver, not by Ray."""
    gpu_error: str = ""
    """Why the driver could not be asked; empty where it answered."""
    missing: tuple[str, ...] = ()
    """Of the paths that it was asked for, those that it does not see."""


def describe(
    packages: Sequence[str], paths: Sequence[str], shared_memory: str = SHARED_MEMORY
) -> Machine:
    """The machine that this runs on.

    Args:
        packages: whose versions are wanted.
        paths: local ones that it should see.
        shared_memory: the mount that is measured.
    """
    versions = installed_versions(packages) | {PROGRAM: _digest_code()}
    shm = shutil.disk_usage(shared_memory).total if Path(shared_memory).exists() else 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus, gpu_error = _ask_driver()
    missing = tuple(path for path in paths if not Path(path).exists())
    return Machine(versions, shm, memory, gpus, gpu_error, missing)


def _digest_code() -> str:
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for room in ("data_pipeline", "jobs", "taehv"):
        for file in sorted((root / room).rglob("*.py")):
            digest.update(f"{file.relative_to(root)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def _ask_driver() -> tuple[tuple[Gpu, ...], str]:
    query = "--query-gpu=name,driver_version,memory.total"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False
        )
    except FileNotFoundError:
        return (), "there is no nvidia-smi"
    except subprocess.TimeoutExpired:
        return (), f"nvidia-smi did not answer in {SMI_SECONDS:g} s"
    if answer.returncode:
        return (), (answer.stdout + answer.stderr).strip().splitlines()[0]
    return read_smi(answer.stdout), ""


def read_smi(text: str) -> tuple[Gpu, ...]:
    """The GPUs in nvidia-smi's lines of name, driver and MiB."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line]
    return tuple(Gpu(name, driver, int(float(mib)) * 2**20) for name, driver, mib in rows)
