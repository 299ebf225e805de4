"""One life of a run without Ray: the training loop over clips made on the fly, in this process.

It goes on from the newest whole checkpoint, and writes down what it did beside the run's folder.
As a script it is given a file that holds a pickled `Life`.
"""

import json
import logging
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
import torch
import torch.distributed as dist

from taehv import distributed
from taehv.errors import TrainingError
from taehv.interfaces import Hooks
from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder
from taehv.run.saving import Saver
from taehv.training import train
from taehv.training.config import TrainingConfig
from taehv.training.state import TrainState
from tests.faults import changes
from tests.helpers.held import job_gates
from tests.helpers.hold import Hold
from tests.helpers.moving_data import MovingData

FINISHED, FAILED, STOPPED = 0, 1, 143

STEP, SAVE = "step", "save"
"""Names of a life's gates."""


@dataclass(frozen=True)
class Life:
    """What a life is told."""

    config: TrainingConfig
    run: str
    """Address of the run's folder."""
    notes: Path
    """A folder for what the life writes down."""
    pause: float = 0.0
    """Seconds to wait after every step, so that there is time for something to happen."""
    hold: Hold | None = None
    """Where it waits: after a step (`STEP`), or in a save (`SAVE`)."""
    held_save: int = 0
    """The step whose checkpoint has its `SAVE` held once its first tensors are written."""
    poison: tuple[int, int] | None = None
    """A step, and the worker whose loss is no number there, once."""
    in_double: bool = False
    """Whether the loop's arithmetic is float64."""
    copy_to: str = ""
    """Instead of training, write the state that was loaded as a checkpoint of this run's folder."""
    environment: Mapping[str, str] = field(default_factory=dict)


class Notes(Hooks):
    """Each worker's samples, step by step; asks to stop after SIGTERM."""

    def __init__(self, life: Life) -> None:
        self._file = life.notes / "samples.jsonl"
        self._pause = life.pause
        self._hold = life.hold
        self._stop = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def begin(self, step: int) -> None:
        """The main worker's note of where this life begins."""
        if distributed.is_main():
            self._write({"from": step})

    def on_step(self, step: int, samples: Sequence[int]) -> None:
        self._write({"step": step, "samples": [sample for sample in samples if sample >= 0]})
        time.sleep(self._pause)
        # The others wait for the main worker in the next step.
        if self._hold and distributed.is_main():
            job_gates.wait(self._hold.folder, STEP, step, leave=self.should_stop)

    def should_stop(self) -> bool:
        return self._stop

    def _write(self, entry: Mapping[str, object]) -> None:
        # In one piece: all workers write here, and each may be killed at any moment.
        with self._file.open("ab", buffering=0) as file:
            file.write(json.dumps(entry).encode() + b"\n")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = True


def live(life: Life, rank: int = 0, workers: int = 1, store: str = "") -> None:
    """Train to the end, to a stop or to an error; exit codes as above."""
    code = _live(life, rank, workers, store)
    sys.stdout.flush()
    sys.stderr.flush()
    if workers > 1:
        # Threads of torch that still wait for the interpreter abort the process now and then.
        os._exit(code)
    sys.exit(code)


def _live(life: Life, rank: int, workers: int, store: str) -> int:
    os.environ |= {"LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"} | dict(life.environment)
    tempfile.tempdir = None  # as the environment says, not as it was when this was imported
    torch.set_num_threads(1)
    logging.basicConfig(filename=life.notes / "log.txt", level=logging.INFO, format="%(message)s")
    if workers > 1:
        place = f"file://{store}"
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=workers)
    run = RunFolder(life.run)
    with pytest.MonkeyPatch.context() as patch:
        if life.held_save and life.hold:
            folder = checkpoint.name_of(life.held_save)
            changes.hold_save(patch, folder, partial(job_gates.wait, life.hold.folder, SAVE, 1))
        if life.poison:
            changes.poison(patch, *life.poison, life.notes)
        if life.in_double:
            changes.compute_in_double(patch)
        distributed.initialise()
        resume_from = newest(run)
        if life.copy_to:
            copy(life, resume_from)
            return FINISHED
        notes = Notes(life)
        notes.begin(checkpoint.step_of(resume_from) if resume_from else 0)
        try:
            summary = train(life.config, MovingData(), notes, run, resume_from)
        except TrainingError as error:
            (life.notes / f"error_{rank}.txt").write_text(str(error))
            return FAILED
    if workers > 1:
        dist.barrier()
        dist.destroy_process_group()
    return FINISHED if summary.finished else STOPPED


def newest(run: RunFolder) -> Path | None:
    """The newest whole checkpoint, here. A collective."""
    name = distributed.from_main(checkpoint.latest_valid(run) if distributed.is_main() else None)
    return None if name is None else run.retrieve(name)


def copy(life: Life, resume_from: Path | None) -> None:
    """Load a checkpoint and save what these workers then hold."""
    layout = life.config.train.layout(distributed.world_size())
    state = TrainState(life.config, layout.workers, resume_from)
    saver = Saver(RunFolder(life.copy_to), keep=1, max_failures=0)
    saver.begin(state.snapshot())
    saver.finish()
    saver.close()


if __name__ == "__main__":
    live(pickle.loads(Path(sys.argv[1]).read_bytes()))
