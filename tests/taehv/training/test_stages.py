"""Stages of a run: what each has, and that a run through them is one run."""

import dataclasses
import logging
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from taehv.errors import DivergedError, TrainingError
from taehv.interfaces import Hooks
from taehv.losses.reconstruction import LossConfig
from taehv.losses.seraena import SeraenaConfig
from taehv.model import build_model
from taehv.run import checkpoint, journal
from taehv.run.run_folder import RunFolder
from taehv.training import loop, train
from taehv.training.config import TrainConfig, TrainingConfig
from taehv.training.optimizer import OptimConfig
from taehv.training.run_log import RunLog
from taehv.training.stages import Stage, steps_of_stages
from taehv.training.step import train_step
from tests.helpers.moving_data import MovingData
from tests.helpers.small_run import (
    SampleLog,
    latest,
    run,
    samples_by_step,
    small_config,
    with_train,
)
from tests.helpers.workers import run_workers
from tests.taehv.training.test_loop import assert_close, assert_same_tensors, losses

STAGES = (
    Stage(share=2, seraena=0.0),
    Stage(share=2, height=48, width=48, num_frames=5, global_batch_size=4, learning_rate=1e-4),
    Stage(share=3, num_frames=13, global_batch_size=6, freeze_encoder=True),
)
SIZES = [(9, 32), (5, 48), (13, 32)]
"""Frames and pixels of their clips."""
STEPS, CHANGES = 7, (2, 4)


def staged(**settings: Any) -> TrainingConfig:
    config = small_config(max_steps=STEPS, stages=STAGES, **settings)
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, optimizer="soap"),
        seraena=dataclasses.replace(config.seraena, ramp_steps=2),
    )


def go(
    config: TrainingConfig, folder: Path, stop_at: int = 0, resume_from: Path | None = None
) -> bool:
    """Train, alone or as one of several workers; gives whether the run has finished."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    hooks = SampleLog(folder, stop_at)
    return train(
        config, MovingData(stages=SIZES), hooks, RunFolder(str(folder)), resume_from
    ).finished


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The configuration of a run, and the folder of one that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    config = staged()
    assert go(config, folder)
    return config, folder


@pytest.mark.parametrize("shares", [(1,), (1, 1), (3, 1, 2), (0.5, 0.25, 0.25), (1e-3, 0.5, 7)])
@pytest.mark.parametrize("max_steps", [10_000, 12_345, 99_999])
def test_stages_share_the_steps_out(shares: tuple[float, ...], max_steps: int) -> None:
    steps = steps_of_stages([Stage(share=share) for share in shares], max_steps)
    assert [step for part in steps for step in part] == list(range(max_steps))
    total = sum(map(Fraction, shares))
    for part, share in zip(steps, shares, strict=True):
        assert abs(len(part) - Fraction(share) / total * max_steps) <= 1


def test_a_stage_has_its_own_settings_and_the_others_are_the_runs() -> None:
    config = TrainingConfig(
        train=TrainConfig(
            max_steps=100,
            global_batch_size=16,
            max_clips_per_pass=8,
            stages=(
                Stage(seraena=0.0),
                Stage(learning_rate=1e-5, max_clips_per_pass=4),
                Stage(global_batch_size=4, freeze_encoder=True, max_clips_per_pass=12),
                Stage(seraena=0.3, freeze_encoder=True, share=2),
            ),
        ),
        loss=LossConfig(seraena=0.1),
        optim=OptimConfig(learning_rate=2e-4),
        seraena=SeraenaConfig(start_step=7),
    )
    stages = [config.of_stage(number) for number in range(4)]
    assert [stage.train.global_batch_size for stage in stages] == [16, 16, 4, 16]
    assert [stage.train.max_clips_per_pass for stage in stages] == [8, 4, 8, 8]
    assert [stage.train.freeze_encoder for stage in stages] == [False, False, True, True]
    assert [stage.optim.learning_rate for stage in stages] == [2e-4, 1e-5, 2e-4, 2e-4]
    assert [stage.loss.seraena for stage in stages] == [0.0, 0.1, 0.1, 0.3]
    # The adversary has been there since the second stage began.
    assert [stage.seraena.start_step for stage in stages] == [7, 27, 27, 27]
    assert all(stage.train.max_steps == 100 and not stage.train.stages for stage in stages)
    assert [config.train.stage_at(step) for step in (0, 19, 20, 39, 40, 60, 99, 100)] == [
        *(0, 0, 1, 1, 2, 3, 3, 3)
    ]


def test_a_run_without_stages_is_one() -> None:
    config = small_config()
    assert config.of_stage(0) is config
    assert config.train.steps_of_stages() == [range(6)]
    assert config.train.stage_at(3) == config.train.stage_at(6) == 0


@pytest.mark.parametrize(
    ("stages", "fault"),
    [
        ([Stage(), Stage(share=1e-6)], "max_steps is 6: too few for the 2 stages"),
        ([Stage(global_batch_size=3)], "stage 1 of train.stages: .*3 is not a multiple"),
        ([Stage(), Stage(learning_rate=0.0)], "stage 2 of train.stages: optim.learning_rate"),
        ([Stage(), Stage(seraena=-1.0)], "stage 2 of train.stages: loss.seraena"),
        ([Stage(freeze_encoder=True), Stage()], "stage 2 of train.stages trains the encoder"),
    ],
)
def test_stages_that_cannot_be(stages: list[Stage], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        small_config(stages=tuple(stages))


@pytest.mark.parametrize("batches", [(4, 16, 4), (16, 4, 16), (6, 4, 10), (8, 8, 8)])
def test_no_stage_trains_on_samples_of_another(batches: tuple[int, ...]) -> None:
    stages = tuple(Stage(global_batch_size=batch) for batch in batches)
    config = TrainingConfig(train=TrainConfig(max_steps=100, stages=stages))
    used: list[int] = []
    for number, steps in enumerate(config.train.steps_of_stages()):
        layout = dataclasses.replace(
            config.of_stage(number).train.layout(1), sample_offset=config.sample_offset(number)
        )
        for samples in layout.schedule(0, steps.start, steps.stop):
            assert samples[0] % batches[number] == 0
            assert not used or used[-1] < samples[0] <= used[-1] + batches[number]
            used += samples.tolist()
    assert len(used) == len(set(used))


@pytest.mark.parametrize("setting", [{"share": 0.0}, {"height": 0}, {"num_frames": -1}])
def test_a_stage_that_cannot_be(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"train.stages: {next(iter(setting))} is"):
        Stage(**setting)


def test_stages_that_change_nothing_do_not_show(tmp_path: Path) -> None:
    config = dataclasses.replace(small_config(), loss=LossConfig(seraena=0.0))
    run(config, tmp_path / "one")
    run(with_train(config, stages=(Stage(), Stage(), Stage())), tmp_path / "three")
    assert losses(tmp_path / "one") == losses(tmp_path / "three")
    last = checkpoint.name_of(6)
    assert_same_tensors(tmp_path / "one" / last, tmp_path / "three" / last)


def test_each_stage_trains_on_its_clips(whole: Any) -> None:
    config, folder = whole
    rows = [row for row in journal.read(folder / "metrics.jsonl") if "train/loss" in row]
    assert [row["train/stage"] for row in rows] == [1, 1, 2, 2, 3, 3, 3]
    # No sample is used twice, and none is left out but to begin with a multiple of the batch.
    batches = [config.of_stage(stage).train.global_batch_size for stage in (0, 0, 1, 1, 2, 2, 2)]
    assert batches == [8, 8, 4, 4, 6, 6, 6]
    first = [0, 8, 16, 20, 24, 30, 36]
    assert samples_by_step(folder) == {
        step + 1: [*range(start, start + batch)]
        for step, (start, batch) in enumerate(zip(first, batches, strict=True))
    }
    assert [row["train/seraena_loss"] > 0 for row in rows] == [False, False] + 5 * [True]
    # At the end of each stage it is seen what it has brought.
    validated = [row["step"] for row in journal.read(folder / "metrics.jsonl") if "val/psnr" in row]
    assert validated == [0, *CHANGES, STEPS]


def test_a_frozen_encoder_stays_and_the_decoder_learns(whole: Any) -> None:
    _, folder = whole
    before, after = (
        load_file(folder / checkpoint.name_of(step) / "generator.safetensors")
        for step in (CHANGES[1], STEPS)
    )
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"decoder"}
    last = folder / checkpoint.name_of(STEPS)
    pieces = load_file(last / "generator_optimizer_00000.safetensors")
    assert {key.split(".")[0] for key in pieces} == {"step", "decoder"}


@pytest.mark.parametrize("at", [CHANGES[0], 3, CHANGES[1]])
def test_a_run_that_was_stopped_in_or_between_stages_ends_alike(
    whole: Any, tmp_path: Path, at: int
) -> None:
    config, undisturbed = whole
    assert not go(config, tmp_path, stop_at=at)
    stopped = latest(tmp_path)
    assert stopped is not None
    assert checkpoint.step_of(stopped) == at
    assert go(config, tmp_path, resume_from=stopped)
    assert losses(tmp_path) == losses(undisturbed)
    last = checkpoint.name_of(STEPS)
    assert_same_tensors(tmp_path / last, undisturbed / last)


def test_workers_come_and_go_between_stages(whole: Any, tmp_path: Path) -> None:
    config, undisturbed = whole
    run_workers(2, go, config, tmp_path / "two")
    assert_close(undisturbed, tmp_path / "two", 1e-3)
    change, folder = checkpoint.name_of(CHANGES[1]), tmp_path / "from_a_change"
    shutil.copytree(undisturbed / change, folder / change)
    shutil.copy(undisturbed / "metrics.jsonl", folder)
    run_workers(2, go, config, folder, 0, folder / change)
    assert_close(undisturbed, folder, 1e-3)


def test_a_stage_without_its_checkpoint_does_not_end_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a disk is full just then."""
    write = checkpoint.write_files

    def full(run: RunFolder, step: int, *arguments: Any) -> Any:
        if step == CHANGES[0]:
            raise OSError(28, "No space left on device")
        return write(run, step, *arguments)

    monkeypatch.setattr(checkpoint, "write_files", full)
    with pytest.raises(
        TrainingError, match=r"stage 1 of train\.stages has ended at step 2, but the"
    ):
        go(staged(checkpoint_every=1), tmp_path)
    monkeypatch.undo()
    resume_from = latest(tmp_path)
    assert resume_from is not None
    assert checkpoint.step_of(resume_from) == 1
    assert go(staged(checkpoint_every=1), tmp_path, resume_from=resume_from)


def test_the_log_tells_of_each_stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = small_config(max_steps=2, stages=(Stage(), Stage(num_frames=5, seraena=0.0)))
    train(config, MovingData(stages=[(9, 32), (5, 32)]), Hooks(), RunFolder(str(tmp_path)))
    messages = [record.getMessage() for record in caplog.records]
    assert "stage 1 of 2, to step 1: as configured" in messages
    assert "stage 2 of 2, to step 2: num_frames 5, seraena 0.0" in messages
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_weights_can_be_trained_with_the_encoder_frozen_from_the_start(tmp_path: Path) -> None:
    config = small_config(freeze_encoder=True)
    torch.manual_seed(config.train.seed)
    start = build_model(config.model).state_dict()
    run(config, tmp_path)
    end = load_file(tmp_path / "final_model.safetensors")
    same = {key for key in start if torch.equal(start[key], end[key])}
    assert {key for key in start if key.startswith("encoder.")} <= same
    assert any(key.startswith("decoder.") for key in start.keys() - same)


def test_the_weight_of_the_adversary_rises() -> None:
    config = SeraenaConfig(start_step=10, ramp_steps=4)
    parts = [config.ramp(step) for step in (0, 9, 10, 11, 12, 13, 14, 100)]
    assert parts == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    assert [SeraenaConfig(start_step=3).ramp(step) for step in (2, 3)] == [0, 1]
    with pytest.raises(ValueError, match=r"seraena\.ramp_steps is -1"):
        SeraenaConfig(ramp_steps=-1)


def test_a_rollback_leads_back_into_the_stage_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is no number at the first step of the second stage, once."""
    steps: list[int] = []

    def poisoned(state: Any, *arguments: Any, **options: Any) -> Any:
        steps.append(state.step)
        if steps.count(CHANGES[0]) == 1 and state.step == CHANGES[0]:
            raise DivergedError("no number")
        return train_step(state, *arguments, **options)

    monkeypatch.setattr(loop, "train_step", poisoned)
    # Only then: the checkpoint of the change is as good as lost.
    monkeypatch.setattr(loop, "rollback_target", lambda run, *_: run.local / checkpoint.name_of(1))
    assert go(staged(checkpoint_every=1, on_divergence="rollback"), tmp_path)
    assert steps == [0, 1, 2, 1, 2, 3, 4, 5, 6]
    rows = [row for row in journal.read(tmp_path / "metrics.jsonl") if "train/loss" in row]
    assert [row["train/stage"] for row in rows] == [1, 1, 2, 2, 3, 3, 3]
    rates = [row["train/learning_rate"] for row in rows]
    config = staged()
    assert rates == pytest.approx(
        [
            (0.5 if step else 1)
            * config.of_stage(config.train.stage_at(step)).optim.learning_rate_at(step, STEPS)
            for step in range(STEPS)
        ]
    )


def test_no_stage_begins_from_weights_that_may_have_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunLog, "divergence_suspected", True, raising=False)
    monkeypatch.setattr(RunLog, "__setattr__", _all_but_the_suspicion)
    config = staged(checkpoint_every=1, on_divergence="rollback")
    with pytest.raises(TrainingError, match="as a stage ends; there is no checkpoint yet"):
        go(config, tmp_path)


def _all_but_the_suspicion(self: Any, name: str, value: Any) -> None:
    if name != "divergence_suspected":
        object.__setattr__(self, name, value)
