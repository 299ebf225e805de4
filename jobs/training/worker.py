"""What runs in each training worker: the training loop, with clips from Ray Data and hooks that
report to the driver."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import train as ray_train

from data_pipeline.clips import ClipSource
from data_pipeline.decoding.cores import usable_cores
from data_pipeline.errors import DataError
from data_pipeline.streaming import stream_batches
from jobs.cli.config import Config
from jobs.cli.console import log_without_credentials
from jobs.training.messages import (
    LogForwarder,
    OutOfMemory,
    ReportingHooks,
    RunEnded,
    RunFailed,
    WorkerStarted,
)
from jobs.training.stage_clips import clips_of_stages
from taehv import distributed
from taehv.errors import MemoryShortageError, TrainingError
from taehv.interfaces import TransientFailure
from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder
from taehv.training import train

log = logging.getLogger(__name__)


class RayClips:
    """`taehv.interfaces.Data` over Ray Data."""

    def __init__(
        self, training: Sequence[ClipSource], validation: ClipSource, cpu_limit: float
    ) -> None:
        """training: of each stage."""
        self._training, self._validation = training, validation
        self.cpu_limit = cpu_limit

    def training(
        self,
        schedule: Iterator[np.ndarray],
        transient_failures: Sequence[TransientFailure],
        stage: int = 0,
    ) -> Generator[Any]:
        failures = frozenset(transient_failures)
        source = dataclasses.replace(self._training[stage], transient_failures=failures)
        return self._stream(source, schedule)

    def validation(self, schedule: Iterator[np.ndarray]) -> Generator[Any]:
        return self._stream(self._validation, schedule)

    def _stream(self, source: ClipSource, schedule: Iterator[np.ndarray]) -> Generator[Any]:
        return stream_batches(
            source,
            schedule,
            cpu_limit=self.cpu_limit,
            # A CPU that trains may be one that decodes.
            idle_priority=not torch.cuda.is_available(),
        )


def train_worker(settings: dict[str, Any]) -> None:
    """One training worker, from its start to the end of the run or of the attempt.

    Where another worker has reported what only the user can mend, it returns at once.
    """
    mailbox = settings["mailbox"]
    if ray.get(mailbox.has_failed.remote()):
        return
    _set_up_process(mailbox)
    report_start(mailbox)
    config: Config = settings["config"]
    run = RunFolder(settings["run_dir"])
    hooks = ReportingHooks(mailbox, distributed.is_main())
    training, validation = settings["sources"]
    stages = clips_of_stages(training, config)
    data = RayClips(stages, validation, settings["decode_cpus"])
    try:
        _holder, resume_from = _resume_from(config, run)
        summary = train(config, data, hooks, run, resume_from, retry=False)
    except MemoryShortageError as error:
        _report_shortage(mailbox, config, error)
        raise
    except (TrainingError, DataError) as error:
        ray.get(mailbox.put.remote(RunFailed(str(error))))
        raise
    if distributed.is_main():
        ray.get(mailbox.put.remote(RunEnded(dataclasses.asdict(summary))))


def report_start(mailbox: Any) -> None:
    """Send the driver this worker's node, and the placement group of all workers."""
    node_id = ray.get_runtime_context().get_node_id()
    mailbox.put.remote(WorkerStarted(node_id, ray.util.get_current_placement_group()))


def _report_shortage(mailbox: Any, config: Config, error: MemoryShortageError) -> None:
    """Ask for an attempt with smaller passes, where that is wanted and possible."""
    possible = config.train.auto_micro_batch and error.halved_pass
    message = OutOfMemory(error.shortage, error.halved_pass) if possible else RunFailed(str(error))
    ray.get(mailbox.put.remote(message))


def _resume_from(config: Config, run: RunFolder) -> tuple[RunFolder, Path | None]:
    """The run's newest whole checkpoint, else the one that was asked for, and its folder, which
    must be kept as long as the checkpoint is used. A collective."""
    newest = distributed.from_main(checkpoint.latest_valid(run) if distributed.is_main() else None)
    if newest is not None:
        # The main worker has fetched it to check it.
        return run, run.local / newest if distributed.is_main() else run.retrieve(newest)
    if config.train.resume in ("", "latest"):
        return run, None
    holder, name = checkpoint.locate(config.train.resume)
    return holder, checkpoint.retrieve_valid(holder, name)


def _set_up_process(mailbox: Any) -> None:
    """Devices, threads and logging of this worker."""
    context = ray_train.get_context()
    local_rank = context.get_local_rank()
    if torch.cuda.is_available():
        device = ray_train.torch.get_device()
        torch.cuda.set_device(device)
        # DeepSpeed uses the GPU of this number, and GPUs may be in another order than ranks.
        local_rank = device.index
    else:
        # Ray sets one thread per whole CPU that the worker reserved, but decoding needs far less
        # than all others.
        torch.set_num_threads(max(1, usable_cores() // context.get_local_world_size()))
    os.environ["LOCAL_RANK"] = str(local_rank)
    log_without_credentials()
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    # A worker of a sweep has run other trials, each with a handler of its own.
    for handler in [h for h in root.handlers if isinstance(h, LogForwarder)]:
        root.removeHandler(handler)
    root.addHandler(LogForwarder(mailbox))
    for room in ("taehv", "data_pipeline", "jobs"):
        logging.getLogger(room).setLevel(logging.INFO if distributed.is_main() else logging.ERROR)


def decoded_on(nodes: str, source: ClipSource) -> ClipSource:
    """The same clips, decoded on the nodes with the label `nodes`, or, without one, on any."""
    config = dataclasses.replace(source.config, decode_nodes=nodes)
    return dataclasses.replace(source, order=dataclasses.replace(source.order, config=config))
