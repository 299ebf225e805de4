"""One step of training: both networks over the global batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taehv import distributed
from taehv.errors import DivergedError
from taehv.interfaces import Batch
from taehv.losses.discriminator import commit_statistics
from taehv.losses.reconstruction import squared_error
from taehv.losses.seraena import choose_shown, discriminator_loss
from taehv.losses.teacher import Teacher
from taehv.slots import SURPLUS
from taehv.training.engines import (
    Engine,
    gradient_norm_before_step,
    guard_update,
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
    """What a worker has to tell the others along with a step's losses."""

    stop: bool = False
    """It wants the run to stop."""
    written: bool = False
    """It has written its part of a checkpoint."""


NO_SIGNALS = Signals()


@dataclass(frozen=True)
class StepOutcome:
    """What one step measured, the same on every worker."""

    losses: Tensor
    """float32 [global batch, len(LOSSES)], by slot, on the CPU."""
    learning_rate: float
    gradient_norm: Tensor | float
    """On a GPU not waited for until it is asked for."""
    stop_wanted: bool
    """By any worker."""
    all_have_written: bool
    """Every worker's part of the checkpoint that is being saved is written."""

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
    signals: Signals = NO_SIGNALS,
    meanwhile: Callable[[], None] = lambda: None,
) -> StepOutcome:
    """One step of both networks over the global batch. A collective.

    The correction is taken from the discriminator as the last step left it, so that each pass
    over the generator is forward and backward at once, however many passes a step has.

    Args:
        state: what is trained.
        batch: this worker's clips.
        teacher: gives latents to learn from.
        signals: what the others are to know.
        meanwhile: called where a GPU has its work, and the CPU would wait for it.

    Raises:
        DivergedError: on all workers alike, before any weight moves, where a loss is not finite, or
            a gradient, whose norm is known by then at ZeRO stage 0 (at others DeepSpeed leaves out
            such a step).
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
    # Whether the networks move is left to the device, for which nobody waits until the end.
    refused = 1.0 - message.isfinite().all().float()
    agreed = None
    if known:
        for (engine, _, most), norm in zip(trained, known, strict=True):
            guard_update(engine, refused, norm, most)
    else:
        agreed = _read(message, losses, batch, state.step)
    for engine, _, _ in trained:
        engine.step()
    if adversary:
        commit_statistics(adversary.network, layout.groups, refused)
    state.ema.update(state.generator, state.step, refused)
    meanwhile()
    agreed = agreed or _read(message, losses, batch, state.step)
    gradient_norm = agreed.norms[0] if agreed.norms else state.engine.get_global_grad_norm()
    state.step += 1
    return StepOutcome(
        agreed.losses,
        learning_rate,
        0.0 if gradient_norm is None else gradient_norm,
        agreed.stop_wanted,
        agreed.all_have_written,
    )


def _one_pass(
    state: TrainState, batch: Batch, teacher: Teacher | None, number: int, losses: Tensor
) -> None:
    """Gradients of both networks over a part of this worker's clips; writes their losses.

    A function of its own, so that no pass leaves anything alive of autograd's to the next.
    """
    config, layout, adversary = state.config, state.layout, state.adversary
    device = losses.device
    part = slice(number * layout.slots_per_pass, (number + 1) * layout.slots_per_pass)
    clips = batch["frames"][part]
    frames = distributed.on_device(torch.from_numpy(clips), device).float() / 255
    own_slots = layout.slots(distributed.rank())[part].tolist()
    slot_weights = [float(slot != SURPLUS) for slot in own_slots]
    weights = distributed.on_device(torch.tensor(slot_weights), device)
    taught = teacher.targets(clips, frames) if teacher else None
    fed = taught if config.loss.decoder_input == "teacher" else None
    # Engines average over passes and workers; a step's gradient is the mean over the batch.
    share = layout.workers * layout.passes / layout.global_batch_size
    seraena_weight = config.loss.seraena if state.step >= config.seraena.start_step else 0.0

    encoded, decoded = state.engine(frames, fed)
    latents = encoded if fed is None else fed
    frames, decoded = state.generator.alignment.pair(frames, decoded)
    zero = torch.zeros_like(weights)
    reconstruction = squared_error(decoded, frames)
    encoder = squared_error(encoded, taught) if taught is not None else zero
    seraena = zero
    if adversary:
        seraena = squared_error(decoded, adversary.correct(frames, decoded, latents))
    total = (
        config.loss.reconstruction * reconstruction
        + config.loss.encoder * encoder
        + seraena_weight * seraena
    )
    state.engine.backward((total * weights).sum() * share)

    discrimination = zero
    if adversary:
        shown = choose_shown(
            frames, decoded, latents, own_slots, state.step, adversary.replay, config.seraena
        )
        group_weights = weights[:: layout.slots_per_group]
        scores = adversary.engine(shown.images, shown.context, group_weights)
        discrimination = discriminator_loss(scores, shown.target, len(own_slots))
        adversary.engine.backward((discrimination * weights).sum() * share)

    table = torch.stack([total, reconstruction, encoder, seraena, discrimination], 1).detach()
    # Slots are consecutive, and those beyond the batch come last.
    real = sum(slot != SURPLUS for slot in own_slots)
    losses[own_slots[0] : own_slots[0] + real] = table[:real]


@dataclass(frozen=True)
class _Agreed:
    """What all workers know of a step."""

    losses: Tensor
    """Of all slots, on the CPU."""
    norms: list[float]
    """Of the networks' gradients, the generator's first, where they are known."""
    stop_wanted: bool
    """By any worker."""
    all_have_written: bool


def _exchange(losses: Tensor, signals: Signals, norms: list[Tensor]) -> Tensor:
    """All that the workers tell each other, in one message, still on the device. A collective."""
    own = torch.tensor([float(signals.stop), float(signals.written)])
    own = distributed.on_device(own, losses.device)
    # Of averaged gradients, so that each worker has the same.
    shares = [norm.float().view(1) / distributed.world_size() for norm in norms]
    return distributed.sum_over_workers(torch.cat([losses.flatten(), own, *shares]))


def _read(message: Tensor, losses: Tensor, batch: Batch, step: int) -> _Agreed:
    """Wait for the message, which is all that a step waits for; raise DivergedError by it."""
    message = message.cpu()
    stop, written, *norms = message[losses.numel() :].tolist()
    all_losses = message[: losses.numel()].view_as(losses)
    _refuse_non_finite(all_losses, batch, step)
    _refuse_non_finite_gradients(norms, step)
    return _Agreed(all_losses, norms, stop > 0, written == distributed.world_size())


def _refuse_non_finite_gradients(norms: list[float], step: int) -> None:
    if not all(map(math.isfinite, norms)):
        raise DivergedError(
            f"the gradient is not finite at step {step}, though the losses are; the weights were "
            "not moved. Go on from the last checkpoint with a lower --optim.learning-rate"
        )


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
    raise DivergedError(
        f"the loss is not finite at step {step}, for sample {named}"
        f"{' and more' if len(samples) > 8 else ''}; the weights were not moved. Go on from the "
        "last checkpoint with a lower --optim.learning-rate, or look at these videos"
    )
