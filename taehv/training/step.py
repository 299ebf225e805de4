"""One step of training: both networks over the global batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from taehv import distributed
from taehv.errors import DivergedError
from taehv.interfaces import Batch
from taehv.losses.discriminator import commit_statistics
from taehv.losses.reconstruction import squared_error
from taehv.losses.seraena import discriminator_loss, sample_discriminator_batch
from taehv.losses.teacher import Teacher
from taehv.slots import SURPLUS
from taehv.training.engines import (
    Engine,
    clip_or_skip_update,
    gradient_norm_before_step,
    set_learning_rate,
)
from taehv.training.state import TrainState

LOSSES = (
    "train/loss",
    "train/reconstruction_loss",
    "train/encoder_loss",
    "train/seraena_loss",
    "train/discriminator_loss",
)
"""Columns of a step's losses; the first is the weighted sum that the generator descends."""


@dataclass(frozen=True)
class Signals:
    """Flags of a worker that are reduced over all workers together with a step's losses."""

    stop: bool = False
    """This worker asks the run to stop."""
    written: bool = False
    """This worker has written its part of a checkpoint."""


@dataclass(frozen=True)
class StepOutcome:
    """The results of one step, the same on every worker."""

    losses: Tensor
    """float32 [global batch, len(LOSSES)], by slot, on the CPU."""
    learning_rate: float
    gradient_norm: Tensor | float
    """Of the generator. A tensor may still be under computation on the GPU."""
    stop_wanted: bool
    """At least one worker asks the run to stop."""
    all_have_written: bool
    """Every worker has written its part of the checkpoint that is being saved."""

    def row(self) -> dict[str, float]:
        means = self.losses.mean(0).tolist()
        return dict(zip(LOSSES, means, strict=True)) | {
            "train/learning_rate": self.learning_rate,
            "train/gradient_norm": float(self.gradient_norm),
        }


def train_step(
    state: TrainState,
    batch: Batch,
    teacher: Teacher | None,
    signals: Signals = Signals(),
    cpu_work: Callable[[], None] = lambda: None,
) -> StepOutcome:
    """Train both networks for one step, on the worker's `batch` of the global batch. A collective.

    The corrected targets come from the discriminator as the last step left it, so that each pass
    runs the generator forward and backward at once, however many passes a step has. `state` is
    updated in place; `cpu_work` is called after the GPU's work has been queued, when the CPU would
    only wait.

    Raises DivergedError on all workers, before any weight moves, if a loss is not finite or, at
    ZeRO stage 0, a gradient norm (at other stages DeepSpeed skips such an update).
    """
    config, layout, adversary = state.config, state.layout, state.adversary
    losses = torch.zeros(layout.global_batch_size, len(LOSSES), device=distributed.device())
    learning_rate = state.learning_rate_scale * config.optim.learning_rate_at(
        state.step, config.train.max_steps
    )
    set_learning_rate(state.engine, learning_rate)
    for number in range(layout.passes):
        _one_pass(state, batch, teacher, number, losses)
        if number < layout.passes - 1:
            state.engine.step()
            if adversary:
                adversary.engine.step()

    trained: list[tuple[Engine, nn.Module, float]] = [
        (state.engine, state.generator, config.optim.gradient_clipping)
    ]
    if adversary:
        trained.append((adversary.engine, adversary.network, 0.0))
    norms = [gradient_norm_before_step(engine, network) for engine, network, _ in trained]
    known = [norm for norm in norms if norm is not None]
    message = _exchange(losses, signals, known)
    # The device decides whether the networks are updated, so the CPU does not wait for it here.
    skip_update = 1.0 - message.isfinite().all().float()
    read = partial(_read, message, losses.shape, batch, state.step, learning_rate)
    outcome = None
    if known:
        for (engine, _, max_norm), norm in zip(trained, known, strict=True):
            clip_or_skip_update(engine, skip_update, norm, max_norm)
    else:
        outcome = read()
    for engine, _, _ in trained:
        engine.step()
    if adversary:
        commit_statistics(adversary.network, layout.groups, skip_update)
    state.ema.update(state.generator, state.step, skip_update)
    cpu_work()
    outcome = outcome or read()
    if not known:
        # ZeRO computes the norm in its own step.
        by_zero = state.engine.get_global_grad_norm()
        outcome = dataclasses.replace(outcome, gradient_norm=0.0 if by_zero is None else by_zero)
    state.step += 1
    return outcome


def _one_pass(
    state: TrainState, batch: Batch, teacher: Teacher | None, number: int, losses: Tensor
) -> None:
    """Accumulate both networks' gradients over a part of this worker's clips; write its `losses`.

    A function of its own, so that a pass's autograd graph is freed before the next pass.
    """
    config, layout, adversary = state.config, state.layout, state.adversary
    device = losses.device
    part = slice(number * layout.slots_per_pass, (number + 1) * layout.slots_per_pass)
    clips = batch["frames"][part]
    frames = distributed.on_device(torch.from_numpy(clips), device).float() / 255
    own_slots = layout.slots(distributed.rank())[part].tolist()
    slot_weights = [float(slot != SURPLUS) for slot in own_slots]
    weights = distributed.on_device(torch.tensor(slot_weights), device)
    teacher_latents = teacher.targets(clips, frames) if teacher else None
    decoder_latents = teacher_latents if config.loss.decoder_input == "teacher" else None
    # Engines average over passes and workers; a step's gradient is the mean over the batch.
    loss_scale = layout.workers * layout.passes / layout.global_batch_size
    seraena_weight = config.loss.seraena * config.seraena.ramp(state.step)

    encoded, decoded = state.engine(frames, decoder_latents)
    latents = encoded if decoder_latents is None else decoder_latents
    frames, decoded = state.generator.alignment.pair(frames, decoded)
    zero = torch.zeros_like(weights)
    reconstruction = squared_error(decoded, frames)
    encoder = squared_error(encoded, teacher_latents) if teacher_latents is not None else zero
    seraena = zero
    if adversary and seraena_weight:
        seraena = squared_error(decoded, adversary.correct(frames, decoded, latents))
    total = (
        config.loss.reconstruction * reconstruction
        + config.loss.encoder * encoder
        + seraena_weight * seraena
    )
    state.engine.backward((total * weights).sum() * loss_scale)

    discrimination = zero
    if adversary:
        sampled = sample_discriminator_batch(
            frames, decoded, latents, own_slots, state.step, adversary.replay, config.seraena
        )
        group_weights = weights[:: layout.slots_per_group]
        scores = adversary.engine(sampled.images, sampled.context, group_weights)
        discrimination = discriminator_loss(scores, sampled.target, len(own_slots))
        adversary.engine.backward((discrimination * weights).sum() * loss_scale)

    table = torch.stack([total, reconstruction, encoder, seraena, discrimination], 1).detach()
    # Slots are consecutive, and those beyond the batch come last.
    real = sum(slot != SURPLUS for slot in own_slots)
    losses[own_slots[0] : own_slots[0] + real] = table[:real]


def _exchange(losses: Tensor, signals: Signals, norms: list[Tensor]) -> Tensor:
    """Sum losses, flags and norms over all workers in one all-reduce, still on the device. A
    collective."""
    own = torch.tensor([float(signals.stop), float(signals.written)])
    own = distributed.on_device(own, losses.device)
    # Gradients are averaged already, so each worker has the same norms: their sum must be them.
    parts = [norm.float().view(1) / distributed.world_size() for norm in norms]
    return distributed.sum_over_workers(torch.cat([losses.flatten(), own, *parts]))


def _read(
    message: Tensor, shape: torch.Size, batch: Batch, step: int, learning_rate: float
) -> StepOutcome:
    """Copy the message, with losses of `shape` in it, to the CPU: all that a step waits for.

    Its norms, the generator's first, are there at ZeRO stage 0 alone. Raises DivergedError where a
    loss or a norm is not finite.
    """
    message = message.cpu()
    stop, written, *norms = message[shape.numel() :].tolist()
    losses = message[: shape.numel()].view(shape)
    _raise_if_not_finite(losses, batch, step)
    if not all(map(math.isfinite, norms)):
        raise DivergedError(
            f"the gradient is not finite at step {step}, though the losses are; the weights were "
            "not moved. Go on from the last checkpoint with a lower --optim.learning-rate"
        )
    all_have_written = written == distributed.world_size()
    return StepOutcome(
        losses, learning_rate, norms[0] if norms else 0.0, stop > 0, all_have_written
    )


def _raise_if_not_finite(losses: Tensor, batch: Batch, step: int) -> None:
    bad = (~losses.isfinite().all(1)).nonzero().flatten().tolist()
    if not bad:
        return
    own = dict(zip(batch["sample"].tolist(), batch["video"], strict=True))
    videos = {key: video for part in distributed.gather_objects(own) for key, video in part.items()}
    # Samples are in the order of their slots.
    samples = sorted(sample for sample in videos if sample != SURPLUS)
    named = ", ".join(f"{samples[slot]} ({videos[samples[slot]]})" for slot in bad[:8])
    raise DivergedError(
        f"the loss is not finite at step {step}, for sample {named}"
        f"{' and more' if len(bad) > 8 else ''}; the weights were not moved. Go on from the "
        "last checkpoint with a lower --optim.learning-rate, or look at these videos"
    )
