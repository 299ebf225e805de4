"""`--train.resume CHECKPOINT`: an older one of the same run, or one of another run."""

import dataclasses
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs.cli.config import Config
from jobs.cli.places import with_places
from jobs.training.worker import _resume_from
from taehv.errors import TrainingError
from taehv.interfaces import Hooks
from taehv.run import checkpoint, journal
from taehv.run.resume import BEST, SET_ASIDE, prepare_resume
from taehv.run.run_folder import RunFolder
from taehv.training import train
from tests.helpers.moving_data import MovingData
from tests.helpers.s3_server import s3_server
from tests.helpers.small_run import small_config

CONFIG = small_config(checkpoint_every=2, validation_every=2, keep_checkpoints=9)
"""Six steps, so checkpoints 2, 4 and 6."""


FORMS = ("pth", "safetensors")


@pytest.fixture(params=["disk", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A run's address, with {} for its name."""
    if request.param == "disk":
        yield f"{tmp_path}/{{}}"
        return
    with s3_server() as server:
        # One server's buckets are there for the next too.
        bucket = uuid.uuid4().hex
        server.put(f"{bucket}/there", b"")
        yield f"s3://{bucket}/{{}}{server.options}"


def whole_run(address: str) -> RunFolder:
    run = RunFolder(address)
    train(CONFIG, MovingData(), Hooks(), run)
    assert [Path(name).name for name in checkpoint.names(run)] == [
        "step_00000006",
        "step_00000004",
        "step_00000002",
    ]
    return run


def asked(resume: str) -> Config:
    config = Config()
    return dataclasses.replace(config, train=dataclasses.replace(config.train, resume=resume))


def losses(run: RunFolder) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in journal.read_run(run) if "train/loss" in row}


def test_an_older_checkpoint_of_the_run_is_gone_on_from(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(1)
    run = whole_run(place.format("a"))
    first = losses(run)
    newest = checkpoint.read_info(run.retrieve(checkpoint.name_of(6)))
    older = run.address_of(checkpoint.name_of(2))

    (run.local / "mlflow.json").write_text("{}")
    run.publish("mlflow.json")

    with caplog.at_level(logging.WARNING):
        assert prepare_resume(run, older) == "latest"
    assert f"going back to {older}" in caplog.text
    assert checkpoint.names(run) == [checkpoint.name_of(2)]
    # Nothing is lost.
    (aside,) = run.entries(SET_ASIDE)
    folder = f"{SET_ASIDE}/{aside}"
    assert folder in caplog.text
    weights = [f"{kind}_model.{form}" for kind in ("best", "final") for form in FORMS]
    left = [*weights, "metrics.jsonl", "mlflow.json", "step_00000004", "step_00000006"]
    assert run.entries(folder) == left
    kept = run.retrieve(f"{folder}/step_00000006")
    assert checkpoint.find_fault(kept) is None
    assert checkpoint.read_info(kept) == newest
    rows = journal.read(run.retrieve(f"{folder}/metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(7))

    # The best weights until then, and nothing else of later.
    held = checkpoint.read_info(run.retrieve(checkpoint.name_of(2)))["best"]
    assert held[1] == 2
    averaged = load_file(run.local / checkpoint.name_of(2) / "ema.safetensors")
    torch.testing.assert_close(load_file(run.retrieve(BEST[1])), averaged, rtol=0, atol=0)
    assert not run.exists("final_model.pth")
    assert not run.exists("mlflow.json")

    # Another process, which has nothing here yet.
    again = RunFolder(run.address)
    _, resume_from = _resume_from(asked("latest"), again)
    assert resume_from is not None
    assert resume_from.name == "step_00000002"
    train(CONFIG, MovingData(), Hooks(), again, resume_from)
    assert losses(again) == first
    assert len(checkpoint.names(again)) == 3


def test_a_checkpoint_of_another_run_is_where_a_new_one_begins(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(1)
    run = whole_run(place.format("a"))
    other = RunFolder(place.format("b"))
    older = run.address_of(checkpoint.name_of(4))
    with caplog.at_level(logging.WARNING):
        assert prepare_resume(other, older) == older
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    holder, resume_from = _resume_from(asked(older), other)
    assert resume_from is not None
    train(CONFIG, MovingData(), Hooks(), other, resume_from)
    assert losses(other) == {step: loss for step, loss in losses(run).items() if step > 4}
    assert len(checkpoint.names(run)) == 3
    assert holder is not run

    # The same command again goes on with what the new run has, also when the other one is gone.
    run.remove(checkpoint.FOLDER)
    with caplog.at_level(logging.WARNING):
        assert prepare_resume(other, older) == "latest"
    assert "goes on from its own newest checkpoint" in caplog.text
    _, resume_from = _resume_from(asked("latest"), RunFolder(other.address))
    assert resume_from is not None
    assert resume_from.name == "step_00000006"


def test_a_damaged_one_is_refused_and_nothing_is_moved(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = whole_run(str(tmp_path / "a"))
    older = run.local / checkpoint.name_of(2)
    (older / "ema.safetensors").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"--train.resume .*step_00000002: ema.safetensors has"):
        prepare_resume(run, str(older))
    with pytest.raises(TrainingError, match="it is not there"):
        prepare_resume(RunFolder(str(tmp_path / "b")), str(tmp_path / "nowhere" / "step_00000002"))
    assert len(checkpoint.names(run)) == 3


def test_on_a_cluster_it_is_named_as_its_run_folder_is() -> None:
    given = asked("runs/a/checkpoints/step_00000002")
    config = dataclasses.replace(
        given,
        train=dataclasses.replace(given.train, run_dir="runs/a"),
        data=dataclasses.replace(given.data, annotations="s3://bucket/annotations.json"),
        cluster=dataclasses.replace(given.cluster, storage="s3://bucket/taehv"),
    )
    train = with_places(config).train
    assert train.run_dir == "s3://bucket/taehv/runs/a"
    assert train.resume == "s3://bucket/taehv/runs/a/checkpoints/step_00000002"
