"""The training loop. It knows no Ray: it is given batches and hooks, and runs in any process
group, under Ray Train, under torchrun, or alone."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from taehv import distributed, journal
from taehv.config import TrainingConfig
from taehv.discriminator import commit_statistics
from taehv.engines import gradient_norm_before_step, set_learning_rate
from taehv.errors import TrainingError
from taehv.interfaces import Batch, Data, Hooks
from taehv.losses import squared_error
from taehv.seraena import choose_shown, corrected_targets, discriminator_loss
from taehv.slots import SURPLUS
from taehv.state import TrainState
from taehv.teacher import Teacher, slope_to_student, slope_warning
from taehv.validation import Scores, ValidationSet
from taehv.weights import export_weights

log = logging.getLogger(__name__)

LOSSES = (
    "train/loss",
    "train/reconstruction_loss",
    "train/encoder_loss",
    "train/seraena_loss",
    "train/discriminator_loss",
)
"""Columns of a step's losses; the first is the weighted sum that the generator descends."""


@dataclass(frozen=True)
class Summary:
    """How a run, or the part of it before it was stopped, ended."""

    step: int
    finished: bool
    """False where it was asked to stop before `train.max_steps`."""
    baselines: dict[str, Scores] = field(default_factory=dict)


def train(
    config: TrainingConfig,
    data: Data,
    hooks: Hooks,
    run_dir: Path,
    resume_from: Path | None = None,
) -> Summary:
    """Train until `train.max_steps`, or until a hook asks to stop.

    Leaves in `run_dir` metrics.jsonl, checkpoints/ and, when finished, final_model.pth and
    .safetensors with the averaged weights.

    Args:
        config: what to train, and how.
        data: where clips come from.
        hooks: who is told.
        run_dir: an absolute folder that all workers share.
        resume_from: a whole checkpoint to go on from.

    Raises:
        TrainingError: for bad input, and for a loss that is not finite.
    """
    distributed.initialise()
    torch.manual_seed(config.train.seed)
    layout = config.train.layout(distributed.world_size())
    teacher = Teacher.load(config.teacher, distributed.device()) if config.teacher.path else None
    state = TrainState(config, layout, resume_from)
    student = state.generator
    if teacher:
        teacher.check_matches(
            student.latent_channels, student.time_downscale, student.space_downscale
        )
    validation = ValidationSet(data, config.train.validation_clips, layout.slots_per_pass)
    for validation_batch in validation.batches:
        hooks.on_rejected(validation_batch["rejected"])
    baselines = validation.score_baselines()

    rows = run_dir / "metrics.jsonl"
    if distributed.is_main():
        journal.keep_up_to(rows, state.step if resume_from else -1)
    first_step, last_step = state.step, config.train.max_steps
    batches = iter(data.training(layout.schedule(distributed.rank(), first_step, last_step)))
    meter = _Meter(config.train.global_batch_size)
    outcome: StepOutcome | None = None
    stopping = False

    while True:
        finished = state.step >= last_step
        at_rest = stopping or finished

        # What a checkpoint was written after is in its past: a resumed run does not repeat it.
        if outcome or not resume_from:
            row: dict[str, float] = {}
            if outcome and (at_rest or state.step % config.train.log_every == 0):
                row |= outcome.row() | meter.row()
            if state.step % config.train.validation_every == 0 or finished:
                row |= _validate(state, validation, hooks)
            if row:
                _log(rows, {"step": state.step, **row}, hooks)
            if outcome and (at_rest or state.step % config.train.checkpoint_every == 0):
                state.save(run_dir)
        if at_rest:
            break

        # ---------------------------------------------------------------- one step
        with meter.waiting():
            batch = next(batches)
        hooks.on_rejected(batch["rejected"])
        outcome = train_step(state, batch, teacher, stop_wanted=hooks.should_stop())
        stopping = outcome.stop_wanted
        meter.count_step()
        hooks.on_step(state.step, batch["sample"].tolist())
        # ----------------------------------------------------------------

    if teacher and validation.batches:
        _warn_of_slope(state, teacher, validation)
    if finished and distributed.is_main():
        export_weights(
            state.ema.network.state_dict(),
            run_dir / "final_model.pth",
            run_dir / "final_model.safetensors",
        )
    distributed.barrier()
    return Summary(state.step, finished, baselines)


@dataclass(frozen=True)
class StepOutcome:
    """What one step measured, the same on every worker."""

    losses: Tensor
    """float32 [global batch, len(LOSSES)], by slot."""
    learning_rate: float
    gradient_norm: float
    stop_wanted: bool

    def row(self) -> dict[str, float]:
        means = self.losses.mean(0).tolist()
        return dict(zip(LOSSES, means, strict=True)) | {
            "train/learning_rate": self.learning_rate,
            "train/gradient_norm": self.gradient_norm,
        }


def train_step(
    state: TrainState, batch: Batch, teacher: Teacher | None, stop_wanted: bool = False
) -> StepOutcome:
    """One step of both networks over the global batch. A collective.

    The correction is taken from the discriminator as the last step left it, so that each pass
    over the generator is forward and backward at once, however many passes a step has.

    Raises:
        TrainingError: on all workers alike, before any weight moves, where a loss is not finite.
    """
    config, layout, adversary = state.config, state.layout, state.adversary
    device = distributed.device()
    slots = layout.slots(distributed.rank())
    # Engines average over passes and workers; a step's gradient is the mean over the batch.
    share = layout.workers * layout.passes / layout.global_batch_size
    losses = torch.zeros(layout.global_batch_size, len(LOSSES), device=device)
    learning_rate = config.optim.learning_rate_at(state.step, config.train.max_steps)
    set_learning_rate(state.engine, learning_rate)

    for one_pass in range(layout.passes):
        part = slice(one_pass * layout.slots_per_pass, (one_pass + 1) * layout.slots_per_pass)
        frames = torch.from_numpy(batch["frames"][part]).to(device).float() / 255
        own_slots = slots[part].tolist()
        weights = torch.tensor([float(s != SURPLUS) for s in own_slots], device=device)
        groups = len(own_slots) // layout.slots_per_group
        taught = teacher.encode(frames) if teacher else None
        fed = taught if config.loss.decoder_input == "teacher" else None

        encoded, decoded = state.engine(frames, fed)
        latents = encoded if fed is None else fed
        frames, decoded = state.generator.alignment.pair(frames, decoded)
        zero = torch.zeros_like(weights)
        reconstruction = squared_error(decoded, frames)
        encoder = squared_error(encoded, taught) if taught is not None else zero
        seraena = zero
        if adversary:
            target = corrected_targets(
                adversary.network, frames, decoded, latents, config.seraena, groups
            )
            seraena = squared_error(decoded, target)
        total = (
            config.loss.reconstruction * reconstruction
            + config.loss.encoder * encoder
            + config.loss.seraena * seraena
        )
        state.engine.backward((total * weights).sum() * share)

        discrimination = zero
        if adversary:
            shown = choose_shown(
                frames, decoded, latents, own_slots, state.step, adversary.replay, config.seraena
            )
            group_weights = weights[:: layout.slots_per_group].tolist()
            scores = adversary.engine(shown.images, shown.context, group_weights)
            discrimination = discriminator_loss(scores, shown.target, len(own_slots))
            adversary.engine.backward((discrimination * weights).sum() * share)

        table = torch.stack([total, reconstruction, encoder, seraena, discrimination], 1).detach()
        real = [position for position, slot in enumerate(own_slots) if slot != SURPLUS]
        losses[[own_slots[position] for position in real]] = table[real]
        if one_pass < layout.passes - 1:
            state.engine.step()
            if adversary:
                adversary.engine.step()

    losses, stop_wanted = _agree(losses, stop_wanted)
    _refuse_non_finite(losses, batch, state.step)
    norm = gradient_norm_before_step(state.engine, state.generator)
    state.engine.step()
    if norm is None:
        norm = float(state.engine.get_global_grad_norm() or 0.0)
    if adversary:
        adversary.engine.step()
        commit_statistics(adversary.network, layout.groups)
    state.ema.update(state.generator, state.step)
    state.step += 1
    return StepOutcome(losses, learning_rate, norm, stop_wanted)


def _agree(losses: Tensor, stop_wanted: bool) -> tuple[Tensor, bool]:
    """All slots' losses on every worker, and whether any worker wants to stop, in one message."""
    message = torch.cat([losses.flatten(), losses.new_tensor([float(stop_wanted)])])
    message = distributed.sum_over_workers(message)
    return message[:-1].view_as(losses), bool(message[-1] > 0)


def _refuse_non_finite(losses: Tensor, batch: Batch, step: int) -> None:
    bad = (~losses.isfinite().all(1)).nonzero().flatten().tolist()
    if not bad:
        return
    videos: dict[int, str] = {}
    for part in distributed.gather_objects(
        dict(zip(batch["sample"].tolist(), batch["video"], strict=True))
    ):
        videos |= part
    samples = [step * len(losses) + slot for slot in bad]
    named = ", ".join(f"{sample} ({videos[sample]})" for sample in samples[:8])
    raise TrainingError(
        f"the loss is not finite at step {step}, for sample {named}"
        f"{' and more' if len(samples) > 8 else ''}; the weights were not moved. Go on from the "
        "last checkpoint with a lower --optim.learning-rate, or look at these videos"
    )


def _validate(state: TrainState, validation: ValidationSet, hooks: Hooks) -> dict[str, float]:
    train = state.config.train
    dtype = train.autocast_dtype()
    raw = validation.score(state.generator, dtype)
    averaged = validation.score(state.ema.network, dtype)
    if train.sample_clips and distributed.is_main():
        samples = validation.samples(state.ema.network, dtype, train.sample_clips)
        hooks.on_samples(state.step, *samples)
    return {f"val/{name}": value for name, value in raw.items()} | {
        f"val_ema/{name}": value for name, value in averaged.items()
    }


def _log(path: Path, row: journal.Row, hooks: Hooks) -> None:
    if distributed.is_main():
        journal.append(path, row)
        hooks.on_row(row)


@torch.no_grad()
def _warn_of_slope(state: TrainState, teacher: Teacher, validation: ValidationSet) -> None:
    """Warn where the student's latents have another scale than the teacher's."""
    frames = torch.from_numpy(validation.batches[0]["frames"]).to(distributed.device())
    frames = frames.float() / 255
    slope = slope_to_student(state.ema.network.encode_video(frames), teacher.encode(frames))
    warning = slope_warning(slope)
    if warning and distributed.is_main():
        log.warning(warning)


class _Meter:
    """Throughput and waiting since the last row."""

    def __init__(self, clips_per_step: int) -> None:
        self.clips_per_step = clips_per_step
        self._reset()

    def waiting(self) -> _Meter:
        return self

    def __enter__(self) -> None:
        self._wait_started = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._waited += time.perf_counter() - self._wait_started

    def count_step(self) -> None:
        self._steps += 1

    def row(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._started
        on_gpu = torch.cuda.is_available()
        row = {
            "train/gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0,
            "train/clips_per_second": self._steps * self.clips_per_step / seconds,
            "train/data_wait_fraction": self._waited / seconds,
        }
        self._reset()
        return row

    def _reset(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self._steps = 0
