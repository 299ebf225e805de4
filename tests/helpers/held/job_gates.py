"""The job's side of `tests.helpers.hold.Hold`: a training loop, and the readers of videos, that go
no further than the test lets them. Nothing else of the job is changed."""

import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "TAEHV_TESTS_HOLD"
"""Variable of the environment: the folder in which the test and its job tell each other."""

READS = "reads"
"""Name of the gate before the videos; that of a run is the name of the run's folder."""

POLL_SECONDS = 0.02


def wait(folder: Path, name: str, made: int, leave: Callable[[], bool] = lambda: False) -> None:
    """Until more than `made` steps or reads may be made, or `leave` says so."""
    waits = folder / f"{name}.waits"
    while made >= _limit(folder / f"{name}.limit") and not leave():
        if not waits.exists():
            # In one piece, since the test may be reading it.
            piece = folder / f"{name}.{os.getpid()}"
            piece.write_text(str(made))
            piece.replace(waits)
        time.sleep(POLL_SECONDS)


def _limit(file: Path) -> float:
    try:
        return int(file.read_text())
    except FileNotFoundError:
        return float("inf")


def install() -> None:
    """Put the gates into what this process is going to import."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    place = Path(folder)
    changes: dict[str, Callable[[ModuleType], None]] = {
        "taehv.training.loop": lambda module: _hold_training(module, place)
    }
    if "data_pipeline.decoding.sandbox_process" in sys.orig_argv:
        for name, function in (
            ("data_pipeline.decoding.window", "read_window"),
            ("data_pipeline.decoding.whole_video", "plan_whole"),
        ):
            changes[name] = lambda module, function=function: _hold_reads(  # type: ignore[misc]
                module, function, place
            )
    sys.meta_path.insert(0, _Changing(changes))


class _Changing(MetaPathFinder):
    """Changes modules just after they were made."""

    def __init__(self, changes: dict[str, Callable[[ModuleType], None]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        change = self._changes.get(name)
        spec = PathFinder.find_spec(name, path) if change else None
        if spec is None or spec.origin is None:
            return None

        class Changed(SourceFileLoader):
            def exec_module(self, module: ModuleType) -> None:
                super().exec_module(module)
                assert change is not None
                change(module)

        spec.loader = Changed(name, spec.origin)
        return spec


def _hold_training(module: ModuleType, folder: Path) -> None:
    """Hold `train` after each step, before anything is told or written of it.

    Only the main worker waits. The others wait for it in the next step, as for any slow worker, so
    that they end with it when the run is asked to stop, and notice when it is killed.
    """
    train: Callable[..., Any] = module.train

    @wraps(train)
    def held(config: Any, data: Any, hooks: Any, run: Any, *others: Any, **more: Any) -> Any:
        from taehv import distributed

        on_step = hooks.on_step
        name = str(run).partition("?")[0].rstrip("/").rpartition("/")[2]

        def waiting(step: int, samples: Any) -> None:
            if distributed.is_main():
                wait(folder, name, step, leave=hooks.should_stop)
            on_step(step, samples)

        hooks.on_step = waiting
        return train(config, data, hooks, run, *others, **more)

    vars(module)["train"] = held


def _hold_reads(module: ModuleType, function: str, folder: Path) -> None:
    """Hold what reads a video, counted over all processes, before it begins."""
    read: Callable[..., Any] = getattr(module, function)

    @wraps(read)
    def held(*arguments: Any) -> Any:
        # Appended by one process after the other: where it then stands is its number.
        with (folder / f"{READS}.made").open("ab", buffering=0) as counter:
            counter.write(b".")
            before = counter.tell() - 1
        wait(folder, READS, before)
        return read(*arguments)

    vars(module)[function] = held
