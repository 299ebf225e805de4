"""The start in a run's folder: solved once, the same for all workers, and used again."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from taehv import distributed
from taehv.errors import TrainingError
from taehv.interfaces import Hooks
from taehv.losses.reconstruction import LossConfig
from taehv.losses.teacher import Teacher, TeacherConfig
from taehv.model import TAEHV, ModelConfig
from taehv.model.start import CLIPS_PER_CHUNK, solve_start
from taehv.run import journal
from taehv.run.run_folder import RunFolder
from taehv.training import train
from taehv.training.config import TrainingConfig
from taehv.training.start import FILE, prepare_start
from tests.helpers.moving_data import MovingData
from tests.helpers.small_run import small_config, with_train
from tests.helpers.small_teacher import save_small_teacher
from tests.helpers.workers import run_workers

DATA = MovingData(size=32)


def weights_of(run: RunFolder) -> dict[str, torch.Tensor]:
    # A loaded tensor is the file itself, which is written over below.
    return {key: value.clone() for key, value in load_file(run.local / FILE).items()}


def test_a_run_begins_far_above_the_other_start(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    scores = {}
    for start in ("solved", "near_identity", "pytorch"):
        config = with_train(small_config(max_steps=1, validation_every=1), start=start)
        run = RunFolder(str(tmp_path / start))
        train(config, DATA, Hooks(), run)
        scores[start] = journal.read(run.local / "metrics.jsonl")[0]["val/psnr"]
        assert (run.local / FILE).exists() == (start == "solved")
    assert scores["solved"] > max(scores["near_identity"], scores["pytorch"]) + 3


def _prepare(folder: Path) -> None:
    run = RunFolder(str(folder))
    torch.set_num_threads(1)
    file = prepare_start(small_config(start="solved"), DATA, run, None)
    assert file is not None
    copy = folder / f"of_{distributed.rank()}"
    copy.write_bytes(file.read_bytes())


def test_two_workers_begin_with_the_main_ones(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    run_workers(1, _prepare, alone)
    run_workers(2, _prepare, together)
    first, *others = (p.read_bytes() for p in (alone / "of_0", *sorted(together.glob("of_*"))))
    assert len(others) == 2
    assert all(other == first for other in others)


def test_a_restart_takes_what_is_there_if_it_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, config = RunFolder(str(tmp_path)), small_config(start="solved")
    assert prepare_start(config, DATA, run, None) == run.local / FILE
    solved = weights_of(run)
    written = (run.local / FILE).stat().st_mtime_ns
    prepare_start(config, MovingData(size=64), run, None)
    assert (run.local / FILE).stat().st_mtime_ns == written

    (run.local / FILE).write_bytes(b"half of a file")
    with caplog.at_level(logging.WARNING):
        prepare_start(config, DATA, run, None)
    assert "the start is solved anew" in caplog.text
    again = weights_of(run)
    assert all(torch.equal(solved[key], again[key]) for key in solved)


def test_what_cannot_be_solved_begins_near_the_identity_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    narrow = dataclasses.replace(
        small_config(start="solved"),
        model=ModelConfig(encoder_width=8, decoder_widths=(16, 8, 8, 2)),
    )
    with caplog.at_level(logging.WARNING):
        assert prepare_start(narrow, DATA, RunFolder(str(tmp_path)), None) is None
    assert "the run starts near the identity: a stage has 2 channels" in caplog.text
    assert not (tmp_path / FILE).exists()


def test_given_weights_are_not_touched(tmp_path: Path) -> None:
    config = TrainingConfig(model=ModelConfig(pretrained="given.pth"), loss=LossConfig())
    assert prepare_start(config, DATA, RunFolder(str(tmp_path)), None) is None


class WatchedTeacher(Teacher):
    """Notes how many clips it is given at once."""

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        ENCODED.append(len(frames))
        return super().encode(frames)


ENCODED: list[int] = []


def test_large_clips_are_cut_and_given_to_the_teacher_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large ones would fit into neither memory."""
    path = save_small_teacher(tmp_path / "teacher")
    teacher = WatchedTeacher.load(TeacherConfig(path=str(path)), "cpu")
    given: list[torch.Tensor] = []

    def note(model: TAEHV, clips: torch.Tensor, latents: torch.Tensor, decodes: bool) -> None:
        given.extend((clips, latents))
        solve_start(model, clips, latents, decodes)

    monkeypatch.setattr("taehv.training.start.solve_start", note)
    config = small_config(start="solved", max_steps=1)
    assert prepare_start(config, MovingData(size=96), RunFolder(str(tmp_path)), teacher)
    clips, latents = given
    assert clips.shape == (CLIPS_PER_CHUNK, 9, 3, 64, 64)
    assert latents.shape[:3] == (CLIPS_PER_CHUNK, 3, 16)
    assert set(ENCODED) == {1}


def test_a_teacher_of_another_shape_is_refused_before_the_start(tmp_path: Path) -> None:
    path = save_small_teacher(tmp_path / "teacher", latent_channels=4)
    config = dataclasses.replace(
        small_config(start="solved"), teacher=TeacherConfig(path=str(path))
    )
    run = RunFolder(str(tmp_path))
    with pytest.raises(TrainingError, match="latent channels: teacher 4, student 16"):
        train(config, DATA, Hooks(), run)
    assert not (run.local / FILE).exists()


class ImpatientData(MovingData):
    """Looks, as the first clips are asked for, how long other workers would wait for them."""

    def training(self, *arguments: Any) -> Any:
        for group in torch.distributed.distributed_c10d._world.pg_map:
            backend: Any = group._get_backend(torch.device("cpu"))
            assert backend.options._timeout == distributed.COLLECTIVE_TIMEOUT
        return super().training(*arguments)


def _train_impatiently(folder: str) -> None:
    train(small_config(start="solved", max_steps=1), ImpatientData(), Hooks(), RunFolder(folder))


def test_workers_wait_long_for_the_clips_of_the_start(tmp_path: Path) -> None:
    run_workers(1, _train_impatiently, str(tmp_path))
