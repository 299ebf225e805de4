"""What is freed is kept: a second round of the same work finds its memory there."""

import subprocess
import sys

import pytest

ROUNDS = """
import resource, sys, threading
import torch
from taehv.host_memory import keep_freed_memory

def work():
    # As activations: many, and all freed before the next round.
    held = [torch.ones(2**20) for _ in range(12)]
    del held

def faults():
    def rounds():
        for _ in range(3):
            work()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            work()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    # Training runs in a thread, which has a heap of its own.
    thread = threading.Thread(target=rounds)
    thread.start()
    thread.join()

if sys.argv[1] == "kept":
    keep_freed_memory()
faults()
"""


def page_faults(way: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, way], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept_for_the_next_round() -> None:
    given_back, kept = page_faults("given back"), page_faults("kept")
    # 5 rounds of 12 times 4 MB are 61,440 pages of 4 KB; huge pages are fewer.
    assert given_back > 10 * kept
