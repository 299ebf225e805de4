"""Seraena, the adversary: it hands the generator corrected targets instead of a loss to
differentiate through (public source: madebyollin/seraena)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taehv import distributed
from taehv.losses.discriminator import Discriminator
from taehv.losses.replay import ReplayBuffer
from taehv.slots import SURPLUS, Purpose, keyed_generator

REAL, FAKE = -1.0, 1.0
"""The scores that the discriminator is trained to give."""


@dataclass(frozen=True)
class SeraenaConfig:
    start_step: int = 0
    """Steps before the generator follows the corrected targets, from the first step, or from that
    of the first stage with an adversary. The discriminator learns from the first one."""
    ramp_steps: int = 0
    """Steps after that over which the weight of the corrected targets rises."""
    frames_per_group: int = 3
    """Consecutive frames that the discriminator sees as one image of 3x as many channels."""
    widths: tuple[int, int, int, int, int, int] = (64, 128, 256, 512, 512, 512)
    """Output channels of the discriminator's six blocks."""
    learning_rate: float = 3e-4
    """Of the discriminator's AdamW, constant."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of the discriminator's AdamW."""
    replay_gigabytes: float = 1.0
    """Bound on the replay buffer, over all workers, in 10^9 bytes."""

    def __post_init__(self) -> None:
        for name in ("start_step", "ramp_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"seraena.{name} is {getattr(self, name)}: it cannot be negative")
        if self.frames_per_group < 1:
            raise ValueError(f"seraena.frames_per_group is {self.frames_per_group}: at least 1")
        if min(self.widths) < 1:
            raise ValueError(f"seraena.widths is {self.widths}: each at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"seraena.learning_rate is {self.learning_rate}: it must be positive")
        if not self.replay_gigabytes > 0:
            raise ValueError(
                f"seraena.replay_gigabytes is {self.replay_gigabytes}: it must be positive"
            )

    def ramp(self, step: int) -> float:
        """The part of `loss.seraena` that is in force at a step, 0 to 1."""
        if step < self.start_step:
            return 0.0
        return min(1.0, (step - self.start_step + 1) / (self.ramp_steps + 1))


def group_frames(frames: Tensor, size: int) -> Tensor:
    """Stack each `size` consecutive frames on channels: [N, T, C, H, W] to
    [N * ceil(T / size), size * C, H, W], the groups of a clip side by side.

    Where `size` does not divide T, the clip is extended by repeating it from its start.
    """
    n, t, c, h, w = frames.shape
    groups = -(-t // size)
    if groups * size != t:
        frames = frames[:, torch.arange(groups * size, device=frames.device) % t]
    return frames.reshape(n * groups, size * c, h, w)


def ungroup_frames(images: Tensor, clips: int, num_frames: int, size: int) -> Tensor:
    """The inverse of `group_frames`: [clips, num_frames, C, H, W], the extension dropped."""
    _, channels, h, w = images.shape
    return images.reshape(clips, -1, channels // size, h, w)[:, :num_frames]


def clip_context(latents: Tensor) -> Tensor:
    """A clip's context, the same for each of its groups: its latents' mean over time, without
    gradients. [N, t, C, h, w] to float32 [N, C, h, w]."""
    return latents.detach().float().mean(1)


def corrected_targets(
    discriminator: Discriminator,
    real: Tensor,
    fake: Tensor,
    latents: Tensor,
    config: SeraenaConfig,
    groups: int,
) -> Tensor:
    """The reconstructions, moved to where the discriminator scores them more like the real frames.

    target = fake - g / (std(g) + 1e-5), where g is the gradient, with respect to the fake, of the
    squared difference between the score maps of real and of fake (mean per sample, summed over
    samples); the discriminator normalises by its running statistics and learns nothing. The
    population standard deviation is taken over all elements of each of the `groups` equal groups of
    slots, so that it does not depend on the worker count.

    Args:
        real, fake: [N, T, 3, H, W] around [0, 1]; neither receives a gradient.
        latents: [N, t, C, h, w], the decoder's input.

    Returns float32 of the shape of `fake`, without gradients.
    """
    clips, num_frames = fake.shape[:2]
    real_images = group_frames(real.float(), config.frames_per_group)
    fake_images = group_frames(fake.detach().float(), config.frames_per_group).requires_grad_()
    context = clip_context(latents).repeat_interleave(len(fake_images) // clips, 0)
    score = discriminator.frozen()
    with torch.no_grad():
        real_scores = score(real_images, context)
    with torch.enable_grad():
        fake_scores = score(fake_images, context)
        distance = (fake_scores - real_scores).square().flatten(1).mean(1).sum()
        (gradient,) = torch.autograd.grad(distance, fake_images)
    by_group = gradient.reshape(groups, -1)
    spread = by_group.std(1, correction=0, keepdim=True)
    correction = -(by_group / (spread + 1e-5)).reshape(gradient.shape)
    correction = ungroup_frames(correction, clips, num_frames, config.frames_per_group)
    return fake.detach().float() + correction


@dataclass(frozen=True)
class DiscriminatorBatch:
    """What the discriminator trains on for the N clips of a pass, G groups of frames a clip."""

    images: Tensor
    """[N * G, channels, H, W] in about [0, 1]."""
    context: Tensor
    """[N * G, C, h, w]."""
    target: Tensor
    """[N * G], `REAL` or `FAKE`."""


def sample_discriminator_batch(
    real: Tensor,
    fake: Tensor,
    latents: Tensor,
    slots: list[int],
    step: int,
    replay: ReplayBuffer,
    config: SeraenaConfig,
) -> DiscriminatorBatch:
    """Store the new fakes in the replay memory, then draw an image for every group of frames.

    A fair coin, keyed by (seed, step, slot), decides between the real group and a fake one. Every
    other fake is new, the rest come from the slot's replay memory. Surplus slots keep their frames.

    Args:
        real, fake: [N, T, 3, H, W].
        latents: [N, t, C, h, w], the decoder's input.
        slots: the N clips' slots.
    """
    real_images = group_frames(real.float(), config.frames_per_group)
    fake_images = group_frames(fake.detach().float(), config.frames_per_group)
    context = clip_context(latents)
    groups = len(real_images) // len(slots)
    is_real, replayed = [True] * len(real_images), {}
    for clip, slot in enumerate(slots):
        if slot == SURPLUS:
            continue
        first = clip * groups
        replay.insert(step, slot, fake_images[first : first + groups], context[clip])
        coin = keyed_generator(replay.seed, step, slot, Purpose.REAL_OR_FAKE)
        is_real[first : first + groups] = (coin.random(groups) < 0.5).tolist()
        for group in range(groups):
            if not is_real[first + group] and (step + slot * groups + group) % 2:
                replayed[first + group] = replay.sample(step, slot, group)
    real_mask = distributed.on_device(torch.tensor(is_real), real.device)
    images = torch.where(real_mask.view(-1, 1, 1, 1), real_images, fake_images)
    contexts = context.repeat_interleave(groups, 0)
    if replayed:
        rows = distributed.on_device(torch.tensor(list(replayed)), real.device)
        old_images, old_contexts = zip(*replayed.values(), strict=True)
        images.index_copy_(0, rows, torch.stack(old_images).to(images.dtype))
        contexts.index_copy_(0, rows, torch.stack(old_contexts).to(contexts.dtype))
    return DiscriminatorBatch(images, contexts, torch.where(real_mask, REAL, FAKE))


def discriminator_loss(scores: Tensor, target: Tensor, clips: int) -> Tensor:
    """Squared error of the score maps, one value per clip: scores [N * G, maps, h, w] and target
    [N * G] to [N]."""
    error = (scores - target.view(-1, 1, 1, 1)).square().flatten(1).mean(1)
    return error.view(clips, -1).mean(1)
