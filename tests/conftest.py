"""What all tests share."""

import os
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

THROUGH_RAY = {
    "tests/faults/test_decoding.py",
    "tests/faults/test_nodes.py",
    "tests/faults/test_ray_kills.py",
    "tests/data_pipeline/test_nodes.py",
    "tests/data_pipeline/test_streaming.py",
    "tests/jobs/diagnosis/test_cluster.py",
    "tests/jobs/test_encode.py",
    "tests/jobs/test_evaluate.py",
    "tests/jobs/cluster/test_idle.py",
    "tests/jobs/test_submit.py",
    "tests/jobs/test_train.py",
    "tests/jobs/cluster/test_placement_groups.py",
    "tests/jobs/cluster/test_local_ray.py",
    "tests/jobs/test_tune.py",
}
"""Files of tests that begin a Ray, whose processes take every core that there is. One of those in
`faults` is left to the other process, which would be idle for a third of the time."""


# Jobs that tests start share two cores with other tests. Threads that spin in wait for one that
# has no core take it from those: a tiny job's worker then uses twice its own CPU time, or more.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


LONG = {
    "tests/taehv/model/start/test_start.py",
    "tests/test_faults.py",
    "tests/taehv/training/test_loop.py",
    "tests/taehv/training/test_stages.py",
}
"""Files that would keep one process busy for minutes after the other has come to its end."""


def _file(nodeid: str) -> str:
    return nodeid.split("::")[0]


class _OneRay(LoadScopeScheduling):  # type: ignore[misc]
    """For `pytest --numprocesses 2`: files through Ray go to one process, one after the other, the
    rest, file by file, to whichever is free."""

    def _split_scope(self, nodeid: str) -> str:
        file = _file(nodeid)
        return "through Ray" if file in THROUGH_RAY else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    # In the order of `items`, not the longest file first.
    config.option.loadscopereorder = False
    return _OneRay(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those through Ray take longest, and go first."""

    def rank(item: pytest.Item) -> int:
        file = _file(item.nodeid)
        return 0 if file in THROUGH_RAY else 1 if file in LONG else 2

    items.sort(key=rank)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors gain nothing from threads, which stall each other where cores are shared."""
    torch.set_num_threads(1)
