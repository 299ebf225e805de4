"""Checkpoints: asynchronous, whole or not there, the best kept, failures counted."""

import errno
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from taehv import distributed
from taehv.errors import TrainingError
from taehv.interfaces import Hooks
from taehv.losses.replay import ReplayBuffer
from taehv.run import checkpoint, journal
from taehv.run.run_folder import RunFolder
from taehv.run.saving import Saver, Snapshot
from taehv.training import train
from tests.helpers.moving_data import MovingData
from tests.helpers.small_run import latest, run, small_config
from tests.helpers.workers import run_workers


def snapshot(
    step: int,
    best: tuple[float, int] | None = None,
    wait: Callable[[], object] = lambda: None,
) -> Snapshot:
    def tensors() -> dict[str, torch.Tensor]:
        wait()
        return {"x": torch.full((1000,), float(step))}

    return Snapshot(step, {"step": step, "best": best}, {"generator": tensors}, {"note": "a"})


def save(saver: Saver, step: int, best: tuple[float, int] | None = None) -> None:
    saver.begin(snapshot(step, best))
    saver.finish()


def test_a_save_goes_on_beside_the_training(tmp_path: Path) -> None:
    saver = Saver(RunFolder(str(tmp_path)), keep=3, max_failures=0)
    may_write = threading.Event()
    saver.begin(snapshot(1, wait=may_write.wait))
    assert not saver.has_written()
    assert latest(tmp_path) is None
    may_write.set()
    while not saver.has_written():
        time.sleep(0.01)
    assert latest(tmp_path) is None
    saver.conclude()
    assert not saver.has_written()
    saver.finish()
    assert latest(tmp_path) == checkpoint.step_folder(tmp_path, 1)
    assert saver.last_good == 1
    saver.close()


def test_a_save_starts_no_threads_that_compute(tmp_path: Path) -> None:
    """Where there are more of them than cores, those of training sleep between operations."""

    def threads() -> set[str]:
        return {thread.name for thread in Path("/proc/self/task").iterdir()}

    replay = ReplayBuffer(max_bytes=2**26, slots=1, seed=0)
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for step in range(4):
            # Large enough for several threads; those of this one are there from now on.
            replay.insert(step, 0, torch.rand(3, 9, 128, 128), torch.rand(16, 16, 16))
        before = threads()
        saver = Saver(RunFolder(str(tmp_path)), keep=1, max_failures=0)
        saver.begin(Snapshot(1, {"step": 1, "best": None}, {"worker_00000": replay.snapshot()}))
        saver.finish()
        assert len(threads() - before) == 1, "its own"
        saver.close()
    finally:
        torch.set_num_threads(usual)
    saved = load_file(tmp_path / checkpoint.name_of(1) / "worker_00000.safetensors")
    assert saved["slot.0.images"].shape == (4, 3, 9, 128, 128)
    torch.testing.assert_close(saved["slot.0.images"][2], replay.memory[0][2][0], rtol=0, atol=0)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    saver = Saver(RunFolder(str(tmp_path)), keep=2, max_failures=0)
    for step in range(1, 7):
        save(saver, step, best=(20.0, 2) if step >= 2 else None)
    names = [Path(name).name for name in checkpoint.names(RunFolder(str(tmp_path)))]
    assert names == ["step_00000006", "step_00000005", "step_00000002"]


@pytest.mark.parametrize("file", ["generator.safetensors", "note", checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_any_damage_to_any_file_is_seen(tmp_path: Path, file: str, damage: str) -> None:
    saver = Saver(RunFolder(str(tmp_path)), keep=3, max_failures=0)
    save(saver, 1)
    save(saver, 2)
    path = checkpoint.step_folder(tmp_path, 2) / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    assert latest(tmp_path) == checkpoint.step_folder(tmp_path, 1)


def test_a_false_entry_in_the_manifest_is_seen(tmp_path: Path) -> None:
    save(Saver(RunFolder(str(tmp_path)), keep=3, max_failures=0), 1)
    path = checkpoint.step_folder(tmp_path, 1) / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["info"]["step"] = 7
    path.write_text(json.dumps(manifest))
    assert latest(tmp_path) is None


def test_a_save_that_fails_is_told_and_too_many_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver = Saver(RunFolder(str(tmp_path)), keep=3, max_failures=2)
    save(saver, 1)
    folder = tmp_path / checkpoint.FOLDER
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("no folder")
    save(saver, 2)
    assert "checkpoint of step 2 could not be written" in caplog.text
    assert "last good one is the one of step 1" in caplog.text
    save(saver, 3)
    with pytest.raises(TrainingError, match="3 saves in a row have failed"):
        save(saver, 4)
    # What its thread logs belongs to this test.
    saver.close()


def test_a_save_that_works_again_ends_the_row_of_failures(tmp_path: Path) -> None:
    saver = Saver(RunFolder(str(tmp_path)), keep=3, max_failures=1)
    folder, aside = tmp_path / checkpoint.FOLDER, tmp_path / "aside"
    folder.mkdir()
    for step in (1, 3, 5):
        folder.rename(aside)
        folder.write_text("no folder")
        save(saver, step)
        folder.unlink()
        aside.rename(folder)
        save(saver, step + 1)
    assert latest(tmp_path) == checkpoint.step_folder(tmp_path, 6)


def test_the_best_validation_has_a_checkpoint_and_weights(tmp_path: Path) -> None:
    run(small_config(max_steps=7, validation_every=2, keep_checkpoints=1), tmp_path)
    rows = journal.read(tmp_path / "metrics.jsonl")
    scores = {row["step"]: row["val_ema/psnr"] for row in rows if "val_ema/psnr" in row}
    assert sorted(scores) == [0, 2, 4, 6, 7]
    best = max(scores, key=lambda step: scores[step])
    assert checkpoint.find_fault(checkpoint.step_folder(tmp_path, best)) is None
    assert (tmp_path / "best_model.safetensors").is_file()
    info = checkpoint.read_info(checkpoint.step_folder(tmp_path, 7))
    assert info["best"] == [scores[best], best]


def test_early_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [10.0, 11.0, 10.9, 10.8, 12.0, 11.0, 11.0, 11.0]
    # Raw and averaged weights are the same before the first step, and scored one by one after it.
    values = iter([*scores[:1], *(score for score in scores[1:] for _ in range(2))])

    def score(*_: object) -> dict[str, float]:
        return {"psnr": next(values)}

    monkeypatch.setattr("taehv.training.validation.ValidationSet.score", score)
    # The samples are what is scored.
    config = small_config(
        max_steps=50, validation_every=1, early_stopping_validations=3, sample_clips=0
    )
    summary = train(config, MovingData(), Hooks(), RunFolder(str(tmp_path)))
    assert summary.finished
    assert summary.step == 7
    assert (tmp_path / "final_model.pth").is_file()
    assert latest(tmp_path) == checkpoint.step_folder(tmp_path, 7)


def refusing(patch: pytest.MonkeyPatch, *steps: int) -> None:
    """A disk that has no room for the checkpoints of these steps; their manifests it would take."""

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if checkpoint.step_of(path.parent) in steps:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save_file(tensors, path)

    patch.setattr("taehv.run.checkpoint.save_file", full)


def whole_steps(run_dir: Path) -> list[int]:
    """In checkpoints/, and nothing else is there."""
    folders = sorted((run_dir / checkpoint.FOLDER).iterdir())
    assert [checkpoint.find_fault(folder) for folder in folders] == [None] * len(folders)
    return [checkpoint.step_of(folder) for folder in folders]


def test_failures_in_a_row_and_then_a_resume(tmp_path: Path) -> None:
    """The first save after them keeps itself and what the run went on from."""
    config = small_config(checkpoint_every=1, max_failed_saves=3)
    with pytest.MonkeyPatch.context() as patch:
        refusing(patch, 2, 3, 4, 5)
        with pytest.raises(TrainingError, match="4 saves in a row have failed"):
            run(config, tmp_path)
    assert latest(tmp_path) == checkpoint.step_folder(tmp_path, 1)
    run(config, tmp_path, stop_at=1, resume_from=latest(tmp_path))
    assert latest(tmp_path) == checkpoint.step_folder(tmp_path, 2)
    assert whole_steps(tmp_path) == [1, 2]


def saved_by_two(folder: Path) -> None:
    """The second save fails at one of two workers, long after the other has written its part."""
    run, rank = RunFolder(str(folder)), distributed.rank()

    def tensors() -> dict[str, torch.Tensor]:
        if step == 2 and rank == 1:
            time.sleep(0.3)
            raise OSError(errno.ENOSPC, "No space left on device")
        return {"x": torch.ones(10)}

    saver = Saver(run, keep=1, max_failures=1)
    for step in (1, 2):
        info = {"step": step, "best": None}
        saver.begin(Snapshot(step, info, {f"worker_{rank}": tensors}))
        saver.finish()
    saver.close()
    distributed.barrier()
    assert saver.last_good == 1
    assert whole_steps(folder) == [1]


def test_a_save_that_one_of_two_workers_cannot_write_is_removed(tmp_path: Path) -> None:
    run_workers(2, saved_by_two, tmp_path)


def test_a_killed_save_counts_for_nothing(tmp_path: Path) -> None:
    config = small_config(checkpoint_every=1, keep_checkpoints=1)
    run(config, tmp_path, stop_at=1)
    left = checkpoint.step_folder(tmp_path, 4)
    left.mkdir()
    (left / "generator.safetensors").write_bytes(b"half")
    run(config, tmp_path, stop_at=1, resume_from=latest(tmp_path))
    assert whole_steps(tmp_path) == [2]
