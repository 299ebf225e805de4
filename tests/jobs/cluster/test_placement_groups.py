"""What the workers of a killed controller held is free for those that come in their place."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from jobs.cli.config import ClusterConfig, Config
from jobs.cluster import local_ray as own_node
from jobs.cluster.capacity import Allocation, ClusterCapacity
from jobs.training import trainer
from jobs.training.driver import Driver
from jobs.training.messages import open_mailbox
from jobs.training.worker import report_start
from taehv.errors import TrainingError
from taehv.training.config import TrainConfig
from tests.helpers.local_ray import local_ray


@pytest.fixture(autouse=True)
def full_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With room for one worker."""
    for name, value in own_node.SETTINGS.items():
        monkeypatch.setenv(name, value)
    with local_ray(cpus=1):
        yield


def work(settings: dict[str, Any]) -> None:
    """Kills its controller, in the midst of training."""
    mailbox = settings["mailbox"]
    report_start(mailbox)
    # All that was sent has arrived when this is answered.
    ray.get(mailbox.has_failed.remote())
    raylet = psutil.Process().parent()
    assert raylet is not None
    (controller,) = [p for p in raylet.children() if "TrainController" in " ".join(p.cmdline())]
    controller.kill()
    time.sleep(600)


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0))


def test_what_a_killed_controller_s_workers_held_is_free(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = ClusterConfig(workers="1", gpu="no", max_failures=0)
    mailbox = open_mailbox()
    settings = {"mailbox": mailbox, "run_dir": str(tmp_path)}

    def make_trainer(_: Config, allocation: Allocation) -> Any:
        assert allocation.cpus_per_worker == 1
        return trainer.make_trainer(work, config, True, settings, allocation)

    class Silent:
        """No progress is shown."""

        def workers_placed(self, placement_group: object) -> None:
            pass

    progress: Any = Silent()
    nobody: Any = None
    capacity = ClusterCapacity(config, decode_cpus=0.0, nodes_may_join=False)
    driver = Driver(
        Config(cluster=config, train=TrainConfig(run_dir=str(tmp_path))),
        mailbox,
        lambda: nobody,
        progress,
        1,
        capacity,
        make_trainer,
    )
    with pytest.raises(TrainingError, match=r"failed: .*died"):
        driver.drive()
    deadline = time.monotonic() + 60
    while free_cpus() < 1:
        assert time.monotonic() < deadline, "its resources stay taken"
        time.sleep(0.1)
    # What has ended is told in a line, not by a thread's traceback.
    assert "Exception in thread" not in capfd.readouterr().err
