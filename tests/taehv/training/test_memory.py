"""A GPU that is too small: a message that helps, and, where wanted, smaller passes.

There is no GPU in a test: a forward pass raises what a full one raises, and the figures are given.
"""

import dataclasses
import logging
import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from taehv import distributed
from taehv.errors import MemoryShortageError, TrainingError
from taehv.interfaces import Hooks
from taehv.losses.teacher import TeacherConfig
from taehv.model import TAEHV
from taehv.run import checkpoint, journal
from taehv.run.run_folder import RunFolder
from taehv.slots import SlotLayout
from taehv.training import train
from taehv.training.config import TrainingConfig
from taehv.training.memory import DeviceMemory, Shortage, halved_pass, requested_bytes
from tests.helpers.moving_data import MovingData
from tests.helpers.small_run import run, small_config
from tests.helpers.workers import run_workers
from tests.taehv.training.test_loop import assert_close

GIB = 2**30
FULL = DeviceMemory(
    between_passes=4 * GIB, peak_allocated=76 * GIB, peak_reserved=78 * GIB, total=80 * GIB
)
MESSAGE = "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 79.10 GiB"


@contextmanager
def small_gpu(most_clips: int, from_call: int = 1, on_rank: int = 0) -> Iterator[None]:
    """A GPU that holds passes of so many clips; from that call of the network's `forward` on."""
    calls = 0
    forward = TAEHV.forward

    def limited(
        self: TAEHV, frames: Tensor, latents: Tensor | None = None, parallel: bool = True
    ) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        if calls >= from_call and len(frames) > most_clips and distributed.rank() == on_rank:
            raise torch.OutOfMemoryError(MESSAGE)
        return forward(self, frames, latents, parallel)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TAEHV, "forward", limited)
        patch.setattr(DeviceMemory, "measured", classmethod(lambda *_: FULL))
        yield


def shortage(
    memory: DeviceMemory = FULL, requested: int = 0, teacher: str = "", **settings: Any
) -> Shortage:
    config = TrainingConfig(
        train=small_config(global_batch_size=16, **settings).train,
        teacher=TeacherConfig(path=teacher),
    )
    return Shortage(config, config.train.layout(1), (17, 3, 480, 720), memory, requested)


def test_the_message_says_what_was_tried() -> None:
    assert str(shortage()) == (
        "the GPU's memory does not hold a pass of 16 clips of 17x480x720 in fp32: of its 80.0 GiB, "
        "76.0 GiB were allocated at the peak (78.0 GiB reserved), 4.0 GiB between passes"
    )
    assert " in bf16: " in str(shortage(precision="bf16"))


@pytest.mark.parametrize(
    ("requested", "expected"),
    # 68 of 80 GiB are there for a pass, and 16 clips took at least 76.
    [(0, 8), (60, 8), (72, 4), (500, 1)],
)
def test_the_largest_pass_that_fits_is_suggested(requested: int, expected: int) -> None:
    found = shortage(requested=requested * GIB, slots_per_group=1)
    assert found.advice() == (
        f"--train.max-clips-per-pass {expected} (an estimate), or "
        "--train.gradient-checkpointing, a third slower"
    )


def test_a_suggested_pass_divides_a_workers_slots() -> None:
    assert "pass 4 (" in shortage(slots_per_group=4, max_clips_per_pass=8).advice()
    config = small_config(global_batch_size=18, slots_per_group=2)
    layout = config.train.layout(1)
    found = Shortage(config, layout, (9, 3, 64, 64), FULL)
    assert found.advice().startswith("--train.max-clips-per-pass 6 (")
    assert SlotLayout(18, 2, 1, 6).slots_per_pass == 6


def test_where_no_smaller_pass_would_do() -> None:
    one_group: dict[str, Any] = {"slots_per_group": 2, "max_clips_per_pass": 2}
    assert shortage(**one_group).advice() == "--train.gradient-checkpointing, a third slower"
    # sqrt(68 / 76) of 480 and 720, in multiples of 8.
    smaller = "--data.height 448 --data.width 680 (an estimate)"
    assert shortage(gradient_checkpointing=True, **one_group).advice() == smaller
    both = shortage(gradient_checkpointing=True, teacher="vae", **one_group).advice()
    assert both == f"{smaller}, or no --teacher.path"
    huge = shortage(requested=2000 * GIB, slots_per_group=2)
    assert huge.advice() == (
        "--train.gradient-checkpointing with --train.max-clips-per-pass 2, a third slower"
    )


def test_a_device_that_is_full_at_rest_is_no_crash() -> None:
    full = dataclasses.replace(FULL, between_passes=79 * GIB)
    advice = shortage(full, slots_per_group=2, gradient_checkpointing=True).advice()
    assert advice.startswith("--data.height 8 --data.width 8 ")


@pytest.mark.parametrize(
    ("amount", "expected"), [("1.50 GiB", 1.5 * GIB), ("20.00 MiB", 20 * 2**20), ("512 bytes", 512)]
)
def test_pytorch_says_what_it_could_not_allocate(amount: str, expected: float) -> None:
    error = torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {amount}. GPU 0 has")
    assert requested_bytes(error) == expected
    assert requested_bytes(torch.OutOfMemoryError("another wording")) == 0


def test_halving_ends_at_one_group() -> None:
    for layout in (
        SlotLayout(24, 3, 1),
        SlotLayout(16, 2, 3),
        SlotLayout(14, 1, 2),
        SlotLayout(4, 4, 1),
    ):
        sizes = [layout.slots_per_pass]
        while limit := halved_pass(layout):
            layout = dataclasses.replace(layout, max_clips_per_pass=limit)
            sizes.append(layout.slots_per_pass)
            assert sizes[-1] <= sizes[-2] / 2 or sizes[-1] == layout.slots_per_group
        assert sizes[-1] == layout.slots_per_group
        assert len(set(sizes)) == len(sizes)


def test_the_failed_pass_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Tensor]] = []

    def a_pass() -> None:
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError(MESSAGE)

    @dataclasses.dataclass
    class Properties:
        total_memory: int = 5

    cuda = {"max_memory_allocated": 3, "max_memory_reserved": 4}
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: sum(r() is not None for r in held))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties())
    with pytest.raises(torch.OutOfMemoryError) as caught:
        a_pass()
    assert held[0]() is not None
    assert DeviceMemory.measured(caught.value) == DeviceMemory(0, 3, 4, 5)


def test_the_error_travels_between_processes() -> None:
    error = MemoryShortageError("too large; try 4", shortage="too large", halved_pass=4)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.shortage, copy.halved_pass) == ("too large; try 4", "too large", 4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(small_config(), folder)
    return folder


def test_a_shortage_ends_the_run_with_a_clear_error(tmp_path: Path) -> None:
    with small_gpu(most_clips=4), pytest.raises(TrainingError) as caught:
        run(small_config(), tmp_path)
    message = str(caught.value)
    assert "a pass of 8 clips of 9x32x32 in fp32" in message
    assert "Go on with --train.resume latest and --train.max-clips-per-pass 4" in message


def test_the_error_names_the_run_to_go_on_with(tmp_path: Path) -> None:
    config = small_config(run_dir=str(tmp_path))
    with small_gpu(most_clips=4), pytest.raises(TrainingError) as caught:
        run(config, tmp_path)
    assert f"Go on with --train.run-dir {tmp_path} --train.resume latest and " in str(caught.value)


# The first step, before there is a checkpoint; and the fifth, as memory fills up: passes count.
@pytest.mark.parametrize("from_call", [1, 5])
def test_a_lone_worker_halves_its_passes(
    undisturbed: Path, tmp_path: Path, from_call: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(checkpoint_every=2, auto_micro_batch=True)
    with small_gpu(most_clips=2, from_call=from_call), caplog.at_level(logging.INFO):
        assert run(config, tmp_path).finished
    assert_close(undisturbed, tmp_path, 1e-3)
    assert [row["step"] for row in journal.read(tmp_path / "metrics.jsonl")] == list(range(7))
    for clips in (4, 2):
        assert f"Going on from the last checkpoint with train.max_clips_per_pass {clips}" in (
            caplog.text
        )
    assert ("step_00000004, step 4" in caplog.text) == (from_call == 5)
    last = checkpoint.step_folder(tmp_path, 6)
    settings = yaml.safe_load((last / "config.yaml").read_text())["train"]
    assert settings["max_clips_per_pass"] == 2
    assert settings["global_batch_size"] == 8


def test_a_pass_is_never_smaller_than_a_group(tmp_path: Path) -> None:
    config = small_config(auto_micro_batch=True)
    with small_gpu(most_clips=1), pytest.raises(MemoryShortageError) as caught:
        run(config, tmp_path)
    assert "a pass of 2 clips" in str(caught.value)
    assert "--train.gradient-checkpointing, a third slower" in str(caught.value)
    assert "max-clips-per-pass" not in str(caught.value)


def short_worker(config: TrainingConfig, folder: Path) -> None:
    """The first worker of two runs out of memory; the second is left waiting for it, and loses its
    connection when the first ends. Of two that have ended, the first one's error is raised here."""
    with small_gpu(most_clips=2, from_call=2, on_rank=0):
        try:
            train(config, MovingData(), Hooks(), RunFolder(str(folder)))
        except MemoryShortageError as error:
            (folder / f"rank_{distributed.rank()}").write_text(str(error))
            raise


def test_several_workers_are_ended_by_the_one_that_is_short(tmp_path: Path) -> None:
    config = small_config(auto_micro_batch=True)
    with pytest.raises(Exception, match="MemoryShortageError"):
        run_workers(2, short_worker, config, tmp_path)
    (told,) = tmp_path.glob("rank_*")
    assert told.name == "rank_0"
    assert "Go on with --train.resume latest and --train.max-clips-per-pass 2" in told.read_text()
