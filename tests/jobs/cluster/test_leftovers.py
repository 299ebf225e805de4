"""What Ray leaves running is ended, and nothing else is."""

import subprocess
import sys

import pytest

from jobs.cluster import local_ray

SLEEPS = "import time; time.sleep(60)"


def test_a_worker_that_hangs_is_killed_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "EXIT_SECONDS", 0.1)
    worker, other = (
        subprocess.Popen([name, "-c", SLEEPS], executable=sys.executable)
        for name in ("ray::Hangs", "python")
    )
    try:
        local_ray.shut_down()
        assert worker.wait(10) < 0
        assert other.poll() is None
    finally:
        for process in (worker, other):
            process.kill()
            process.wait()
