"""The training loop without Ray: the same run in other ways of executing it gives the same."""

import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from taehv import distributed
from taehv.errors import TrainingError
from taehv.evaluation.artifact_verdict import ARTIFACTS
from taehv.evaluation.metrics import psnr
from taehv.evaluation.probes import flat_errors, flat_figures
from taehv.interfaces import Hooks
from taehv.losses.reconstruction import LossConfig, squared_error
from taehv.losses.teacher import TeacherConfig
from taehv.model import TAEHV
from taehv.model.weights import load_weights
from taehv.run import checkpoint, journal
from taehv.run.run_folder import RunFolder
from taehv.training import step as one_step
from taehv.training import train
from taehv.training.config import TrainingConfig
from taehv.training.step import LOSSES
from tests.helpers.moving_data import MovingData
from tests.helpers.small_run import latest, run, samples_by_step, small_config, with_train
from tests.helpers.small_teacher import save_small_teacher
from tests.helpers.workers import run_workers


def losses(run_dir: Path) -> dict[int, dict[str, float]]:
    rows = journal.read(run_dir / "metrics.jsonl")
    return {row["step"]: {n: row[n] for n in LOSSES} for row in rows if LOSSES[0] in row}


def assert_close(a: Path, b: Path, tolerance: float) -> None:
    left, right = losses(a), losses(b)
    assert left.keys() == right.keys() != set()
    for step, row in left.items():
        for name, value in row.items():
            assert right[step][name] == pytest.approx(value, rel=tolerance, abs=tolerance), (
                step,
                name,
            )


def assert_same_tensors(a: Path, b: Path) -> None:
    files = sorted(path.name for path in a.glob("*.safetensors"))
    assert files == sorted(path.name for path in b.glob("*.safetensors")) != []
    for file in files:
        left, right = load_file(a / file), load_file(b / file)
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert torch.equal(value, right[key]), f"{file}: {key}"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six uninterrupted steps on one worker, with checkpoints after 3 and 6."""
    folder = tmp_path_factory.mktemp("reference")
    run(small_config(checkpoint_every=3), folder)
    return folder


def test_two_and_three_workers_agree_with_one(reference: Path, tmp_path: Path) -> None:
    # Three workers do not divide the four groups of slots: some of their slots are surplus.
    for workers in (2, 3):
        folder = tmp_path / str(workers)
        run_workers(workers, run, small_config(checkpoint_every=3), folder)
        assert_close(reference, folder, 1e-3)
        assert samples_by_step(folder) == samples_by_step(reference)
        assert sorted(itertools.chain(*samples_by_step(folder).values())) == list(range(48))


def wait_for_each_other(folder: Path, config: TrainingConfig) -> None:
    run(config, folder)
    groups = torch.distributed.distributed_c10d._world.pg_map
    assert len(groups) > 1, "DeepSpeed has one of its own"
    for group in groups:
        backend: Any = group._get_backend(torch.device("cpu"))
        assert backend.options._timeout == distributed.COLLECTIVE_TIMEOUT


def test_workers_wait_for_one_that_waits_for_clips(tmp_path: Path) -> None:
    run_workers(2, wait_for_each_other, tmp_path, small_config(max_steps=1))


def test_passes_do_not_change_the_result(reference: Path, tmp_path: Path) -> None:
    run(small_config(max_clips_per_pass=2), tmp_path)
    assert_close(reference, tmp_path, 1e-3)


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_stages_agree(reference: Path, tmp_path: Path, stage: Literal[1, 2]) -> None:
    config = small_config()
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, zero_stage=stage))
    run(config, tmp_path)
    assert_close(reference, tmp_path, 1e-4)
    norms = [
        [row["train/gradient_norm"] for row in journal.read(folder / "metrics.jsonl")[1:]]
        for folder in (reference, tmp_path)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_resume_is_exact(reference: Path, tmp_path: Path) -> None:
    config = small_config(checkpoint_every=3)
    assert run(config, tmp_path, stop_at=3).finished is False
    resume_from = latest(tmp_path)
    assert resume_from is not None
    assert checkpoint.step_of(resume_from) == 3
    assert run(config, tmp_path, resume_from=resume_from).finished
    assert losses(tmp_path) == losses(reference)
    assert samples_by_step(tmp_path) == samples_by_step(reference)
    assert_same_tensors(checkpoint.step_folder(tmp_path, 6), checkpoint.step_folder(reference, 6))


def test_resume_at_another_number_of_workers(reference: Path, tmp_path: Path) -> None:
    config = small_config(checkpoint_every=3)
    run(config, tmp_path, stop_at=3)
    run_workers(2, run, config, tmp_path, 0, checkpoint.step_folder(tmp_path, 3))
    assert_close(reference, tmp_path, 1e-3)
    assert samples_by_step(tmp_path) == samples_by_step(reference)


def test_soap_depends_on_neither_workers_passes_nor_a_stop(tmp_path: Path) -> None:
    config = small_config(checkpoint_every=3)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, optimizer="soap"))
    whole, stopped, in_passes = (tmp_path / name for name in ("whole", "stopped", "passes"))
    run(config, whole)
    run(config, stopped, stop_at=3)
    at_three = checkpoint.step_folder(stopped, 3)
    shutil.copytree(stopped, tmp_path / "two")
    run(config, stopped, resume_from=at_three)
    last = checkpoint.name_of(6)
    assert_same_tensors(stopped / last, whole / last)
    run_workers(2, run, config, tmp_path / "two", 0, at_three)
    assert_close(whole, tmp_path / "two", 1e-3)
    run(with_train(config, max_clips_per_pass=2), in_passes)
    assert_close(whole, in_passes, 1e-3)


@pytest.mark.parametrize(("before", "after"), [(0, 1), (0, 2), (1, 0)])
def test_resume_with_more_workers_at_another_zero_stage(
    reference: Path, tmp_path: Path, before: Literal[0, 1], after: Literal[0, 1, 2]
) -> None:
    config = small_config(checkpoint_every=3)
    first, second = (
        dataclasses.replace(config, optim=dataclasses.replace(config.optim, zero_stage=stage))
        for stage in (before, after)
    )
    run(first, tmp_path, stop_at=3)
    run_workers(2, run, second, tmp_path, 0, checkpoint.step_folder(tmp_path, 3))
    assert_close(reference, tmp_path, 1e-3)
    assert samples_by_step(tmp_path) == samples_by_step(reference)


@pytest.mark.parametrize(("num_frames", "size"), [(9, 16), (13, 32)])
def test_resume_with_clips_of_another_size(
    tmp_path: Path, num_frames: int, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As the advice after a lack of memory has it: the adversary's memory begins anew."""
    run(small_config(checkpoint_every=3, max_steps=3), tmp_path)
    stopped = latest(tmp_path)
    config = small_config(checkpoint_every=3)
    hooks, folder = Hooks(), RunFolder(str(tmp_path))
    assert train(config, MovingData(num_frames, size), hooks, folder, stopped).finished
    assert sum("are dropped" in record.getMessage() for record in caplog.records) == 1
    saved = load_file(tmp_path / checkpoint.name_of(6) / "worker_00000.safetensors")
    shapes = {value.shape for key, value in saved.items() if key.endswith("images")}
    # Of the three steps since: groups of three frames each.
    assert shapes == {(3, -(-num_frames // 3), 9, size, size)}


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    config = small_config(checkpoint_every=2, max_steps=2)
    run(config, tmp_path)
    file = tmp_path / "metrics.jsonl"
    with file.open("a") as rows:
        rows.write(json.dumps({"step": 5, "train/loss": 1.0}) + "\n")
    run(with_train(config, max_steps=3), tmp_path, resume_from=latest(tmp_path))
    assert [row["step"] for row in journal.read(file)] == [0, 1, 2, 3]


def test_a_damaged_checkpoint_is_passed_over(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(reference / "checkpoints", tmp_path / "checkpoints")
    newest, older = (tmp_path / name for name in checkpoint.names(RunFolder(str(tmp_path))))
    damaged = newest / "generator.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert latest(tmp_path) == older
    assert "generator.safetensors does not match its checksum" in caplog.text
    (older / checkpoint.MANIFEST).unlink()
    assert latest(tmp_path) is None


def test_exported_weights_give_the_validation_figure(reference: Path) -> None:
    row = journal.read(reference / "metrics.jsonl")[-1]
    state = torch.load(reference / "final_model.pth", weights_only=True)
    assert all(value.dtype == torch.float32 for value in state.values())
    model = TAEHV(small_config().model)
    load_weights(model, reference / "final_model.safetensors")
    model.load_state_dict(state)
    for prefix, samples in (("val_ema", [0, 2, 4]), ("val_shrunk", [1, 3, 5])):
        clips = next(iter(MovingData().validation(iter([np.array(samples)]))))["frames"]
        frames = torch.from_numpy(clips).float() / 255
        with torch.no_grad():
            decoded = model.decode_video(model.encode_video(frames))
        original, reconstructed = model.alignment.pair(frames, decoded)
        pooled = -10 * (original - reconstructed.clamp(0, 1)).square().mean().log10().item()
        assert row[f"{prefix}/psnr"] == pytest.approx(pooled, abs=1e-3)
        mean = psnr(original, reconstructed).mean().item()
        assert row[f"{prefix}/psnr_mean"] == pytest.approx(mean, abs=1e-3)


def test_validations_measure_artifacts_of_the_averaged_weights(reference: Path) -> None:
    rows = [row for row in journal.read(reference / "metrics.jsonl") if "val_ema/psnr" in row]
    names = {name.removeprefix("artifacts/") for name in rows[-1] if name.startswith("artifacts/")}
    # Of those of a whole evaluation, what small native clips and plain colours show.
    assert {"flat_grey", "flat_colour"} < names <= ARTIFACTS.keys()
    assert all(row.keys() >= {f"artifacts/{name}" for name in names} for row in rows)
    model = TAEHV(small_config().model)
    load_weights(model, reference / "final_model.safetensors")
    with torch.no_grad():
        expected = flat_figures(flat_errors(model.eval().reconstruct_video, torch.device("cpu")))
    for name, figure in expected.items():
        assert rows[-1][f"artifacts/{name}"] == pytest.approx(figure, rel=1e-3)


def test_teacher_and_both_decoder_inputs(tmp_path: Path) -> None:
    teacher = TeacherConfig(path=str(save_small_teacher(tmp_path / "teacher")))
    for decoder_input in ("student", "teacher"):
        config = dataclasses.replace(
            small_config(max_steps=2),
            teacher=teacher,
            loss=LossConfig(decoder_input=decoder_input),
        )
        folder = tmp_path / decoder_input
        run(config, folder)
        for row in losses(folder).values():
            parts = (10, 0.1, 0.1)
            total = sum(w * row[n] for w, n in zip(parts, LOSSES[1:4], strict=True))
            assert row["train/encoder_loss"] > 0
            assert row["train/loss"] == pytest.approx(total, rel=1e-5)


def test_the_learning_rate_schedule() -> None:
    optim = dataclasses.replace(small_config().optim, learning_rate=1.0, warmup_steps=10)
    rates = [optim.learning_rate_at(step, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (k + 1) for k in range(10)])
    assert rates[60] == pytest.approx(0.05 + 0.95 * 0.5)
    assert rates[110] == pytest.approx(0.05)
    assert rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def poisoned_run(folder: Path, config: TrainingConfig) -> None:
    """A run whose main worker gets a loss that is no number at step 2."""
    calls: list[int] = []

    def sometimes_no_number(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        # Two losses a step (reconstruction, Seraena): the fifth is step 2's reconstruction.
        factor = math.nan if len(calls) == 5 and distributed.is_main() else 1.0
        return squared_error(output, target) * factor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_step, "squared_error", sometimes_no_number)
        with pytest.raises(TrainingError) as caught:
            train(config, MovingData(), Hooks(), RunFolder(str(folder)))
    message = str(caught.value)
    assert "not finite at step 2, for sample 16 (moving_16)" in message
    (folder / f"rank_{distributed.rank()}").write_text(message)


def test_a_loss_that_is_not_finite_stops_all_workers(tmp_path: Path) -> None:
    config = small_config(checkpoint_every=2)
    run_workers(2, poisoned_run, tmp_path, config)
    assert len(list(tmp_path.glob("rank_*"))) == 2
    rows = journal.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
    assert latest(tmp_path) == checkpoint.step_folder(tmp_path, 2)
