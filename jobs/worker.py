"""What runs in each training worker: clips from Ray Data, hooks to the mailbox, the loop."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import train as ray_train

from data_pipeline.clips import ClipSource
from data_pipeline.errors import DataError
from data_pipeline.streaming import stream_batches
from jobs.config import Config
from jobs.mailbox import MailboxHooks, MailboxLog
from taehv import checkpoint, distributed
from taehv.errors import TrainingError
from taehv.training import train

log = logging.getLogger(__name__)


class RayClips:
    """`taehv.interfaces.Data` over Ray Data."""

    def __init__(self, training: ClipSource, validation: ClipSource, cpu_limit: float) -> None:
        self._training, self._validation = training, validation
        self.cpu_limit = cpu_limit

    def training(self, schedule: Iterator[np.ndarray]) -> Generator[Any]:
        return stream_batches(self._training, schedule, cpu_limit=self.cpu_limit)

    def validation(self, schedule: Iterator[np.ndarray]) -> Generator[Any]:
        return stream_batches(self._validation, schedule, cpu_limit=self.cpu_limit)


def train_worker(settings: dict[str, Any]) -> None:
    """One training worker, from its start, or its restart after a failure, to the end of the run.

    Something that only the user can mend is told to the driver; since Ray would start the workers
    again and again over it, the next start then returns at once.
    """
    mailbox = settings["mailbox"]
    if ray.get(mailbox.has_failed.remote()):
        return
    _set_up_process(mailbox)
    config: Config = settings["config"]
    run_dir = Path(settings["run_dir"])
    hooks = MailboxHooks(mailbox, distributed.is_main())
    data = RayClips(settings["training"], settings["validation"], settings["decode_cpus"])
    try:
        resume_from = distributed.from_main(_resume_from(config, run_dir))
        summary = train(config, data, hooks, run_dir, resume_from)
    except (TrainingError, DataError) as error:
        ray.get(mailbox.put.remote("failure", str(error)))
        raise
    if distributed.is_main():
        ray.get(mailbox.put.remote("summary", dataclasses.asdict(summary)))


def _resume_from(config: Config, run_dir: Path) -> Path | None:
    """The run's newest whole checkpoint, else the one that was asked for. Main worker only."""
    if not distributed.is_main():
        return None
    newest = checkpoint.latest_valid(run_dir)
    if newest or config.train.resume in ("", "latest"):
        return newest
    asked = Path(config.train.resume)
    fault = checkpoint.find_fault(asked)
    if fault:
        raise TrainingError(f"--train.resume {asked}: {fault}")
    return asked


def _set_up_process(mailbox: Any) -> None:
    """Devices, threads and logging of this worker."""
    context = ray_train.get_context()
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    if torch.cuda.is_available():
        torch.cuda.set_device(ray_train.torch.get_device())
    else:
        # Ray allows a worker one thread per whole CPU it reserved; decoding needs far less than
        # the rest.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    root.addHandler(MailboxLog(mailbox))
    for room in ("taehv", "data_pipeline", "jobs"):
        logging.getLogger(room).setLevel(logging.INFO if distributed.is_main() else logging.ERROR)
