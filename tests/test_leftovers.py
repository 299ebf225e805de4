"""What Ray leaves running is ended, and nothing else is."""

import subprocess
import sys

from jobs import leftovers

SLEEPS = "import time; time.sleep(60)"


def test_a_worker_that_hangs_is_killed_and_nobody_else() -> None:
    worker, other = (
        subprocess.Popen([name, "-c", SLEEPS], executable=sys.executable)
        for name in ("ray::Hangs", "python")
    )
    try:
        found = leftovers.workers()
        assert [process.pid for process in found] == [worker.pid]
        leftovers.end(found, seconds=0.1)
        assert worker.wait(10) < 0
        assert other.poll() is None
    finally:
        for process in (worker, other):
            process.kill()
            process.wait()
