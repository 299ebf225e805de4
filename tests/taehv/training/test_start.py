"""The start in a run's folder: solved once, the same for all workers, and used again."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from taehv import distributed
from taehv.interfaces import Hooks
from taehv.losses.reconstruction import LossConfig
from taehv.model import ModelConfig
from taehv.run import journal
from taehv.run.run_folder import RunFolder
from taehv.training import train
from taehv.training.config import TrainingConfig
from taehv.training.start import FILE, prepare_start
from tests.helpers.moving_data import MovingData
from tests.helpers.small_run import small_config, with_train
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
