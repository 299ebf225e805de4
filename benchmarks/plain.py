"""TAEHV and its training step written the plain way: the baseline of the speed claims.

The published layers one by one: present and past concatenated, frames upsampled before they are
convolved, contiguous NCHW, no compilation; the adversary's passes as its formulas stand. It takes
the weights of the project's own networks, so that both compute the same thing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taehv.losses.seraena import group_frames
from taehv.model import TAEHV
from taehv.model.blocks import MemBlock, TGrow, TPool

Codec = Callable[[Tensor], Tensor]


class PlainTaehv(nn.Module):
    """The network of `model`, sharing its weights. Not for the super decoders."""

    def __init__(self, model: TAEHV) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder
        self.alignment, self.time_downscale = model.alignment, model.time_downscale
        self.fold, self.unfold = model.fold, model.unfold

    def encode(self, frames: Tensor) -> Tensor:
        """[N, T, 3, H, W] in [0, 1] to latents."""
        missing = -frames.shape[1] % self.time_downscale
        padded = torch.cat([frames, frames[:, -1:].repeat(1, missing, 1, 1, 1)], 1)
        return run(self.encoder, self.fold(padded))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to frames, trimmed, not clamped."""
        raw = self.unfold(run(self.decoder, latents))
        return raw[:, self.alignment.frames_to_trim(latents.shape[1]) :]

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The latents and what they decode to."""
        latents = self.encode(frames)
        return latents, self.decode(latents)


def run(layers: nn.Sequential, x: Tensor) -> Tensor:
    """[N, T, C, H, W] through a stack, layer by layer."""
    n = len(x)
    x = x.flatten(0, 1)
    for layer in layers:
        nt, c, h, w = x.shape
        if isinstance(layer, MemBlock):
            video = x.view(n, -1, c, h, w)
            past = F.pad(video, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1].reshape(x.shape)
            x = F.relu(layer.conv(torch.cat([x, past], 1)) + layer.skip(x))
        elif isinstance(layer, TPool):
            x = layer.conv(x.reshape(nt // layer.stride, layer.stride * c, h, w))
        elif isinstance(layer, TGrow):
            x = layer.conv(x).reshape(nt * layer.stride, c, h, w)
        else:
            x = layer(x)
    return x.view(n, -1, *x.shape[1:])


class PlainDiscriminator(nn.Module):
    """Seraena's discriminator, with BatchNorm over the whole batch."""

    def __init__(self, image_channels: int, context_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        inputs = (image_channels + context_channels, *widths[:-1])
        shapes = zip(inputs, widths, (3, 4, 4, 4, 3, 3), (1, 2, 2, 2, 1, 1), strict=True)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, k, s, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
            )
            for a, b, k, s in shapes
        )
        self.projections = nn.ModuleList(nn.Conv2d(n, 1, 1, bias=False) for n in widths)

    def forward(self, images: Tensor, context: Tensor) -> Tensor:
        """[N, C, H, W] and [N, c, h, w] to scores [N, 6, H / 8, W / 8]."""
        size = images.shape[-2:]
        x = torch.cat([images * 2 - 1, F.interpolate(context, size=size)], 1)
        scores = []
        for block, projection in zip(self.blocks, self.projections, strict=True):
            x = block(x)
            scores.append(F.adaptive_avg_pool2d(projection(x), (size[0] // 8, size[1] // 8)))
        return torch.cat(scores, 1)


class PlainStep:
    """One training step: reconstruction and Seraena, AdamW, averaged weights, replay.

    Args:
        model: whose weights are trained; its layers are run the plain way.
        widths: the discriminator's.
        frames_per_group: frames that the discriminator sees as one image.
        autocast: to bf16.
    """

    def __init__(
        self, model: TAEHV, widths: tuple[int, ...], frames_per_group: int, autocast: bool
    ) -> None:
        self.device = next(model.parameters()).device
        self.network = PlainTaehv(model)
        self.size, self.autocast = frames_per_group, autocast
        self.critic = PlainDiscriminator(3 * frames_per_group, model.latent_channels, widths)
        self.critic.to(self.device)
        self.optimizer = torch.optim.AdamW(model.parameters(), 3e-4, betas=(0.9, 0.95))
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), 3e-4, betas=(0.9, 0.99))
        self.average = [p.detach().clone() for p in model.parameters()]
        self.memory: list[tuple[Tensor, Tensor]] = []

    def __call__(self, clips: Tensor) -> float:
        """Train on uint8 [N, T, 3, H, W]; the reconstruction loss."""
        frames = clips.to(self.device).float() / 255
        with self._precision():
            latents, decoded = self.network(frames)
        frames, decoded = self.network.alignment.pair(frames, decoded.float())
        context = latents.detach().float().mean(1)
        real = group_frames(frames, self.size)
        fake = group_frames(decoded.detach(), self.size)
        context = context.repeat_interleave(len(real) // len(frames), 0)
        target = group_frames(decoded.detach(), self.size) + self._correction(real, fake, context)
        reconstruction = F.mse_loss(decoded, frames)
        seraena = F.mse_loss(group_frames(decoded, self.size), target)
        self.optimizer.zero_grad()
        torch.autograd.backward(10 * reconstruction + 0.1 * seraena)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self._train_critic(real, fake, context)
        with torch.no_grad():
            for average, p in zip(self.average, self.network.parameters(), strict=True):
                average.mul_(0.999).add_(p, alpha=0.001)
        return reconstruction.item()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def _correction(self, real: Tensor, fake: Tensor, context: Tensor) -> Tensor:
        self.critic.eval()
        shown = fake.clone().requires_grad_()
        with self._precision():
            wanted = self.critic(real, context).float().detach()
            distance = (self.critic(shown, context).float() - wanted).square().mean((1, 2, 3)).sum()
        (gradient,) = torch.autograd.grad(distance, shown)
        self.critic.train()
        return -gradient / (gradient.std(correction=0) + 1e-5)

    def _train_critic(self, real: Tensor, fake: Tensor, context: Tensor) -> None:
        self.memory = [*self.memory[-7:], (fake, context)]
        old, old_context = self.memory[0]
        is_real = torch.rand(len(real), device=self.device) < 0.5
        is_old = torch.arange(len(real), device=self.device) % 2 == 1
        images, contexts = self._choose(is_old, (old, fake), (old_context, context))
        images, contexts = self._choose(is_real, (real, images), (context, contexts))
        with self._precision():
            scores = self.critic(images, contexts).float()
        target = torch.where(is_real, -1.0, 1.0).view(-1, 1, 1, 1).expand_as(scores)
        self.critic_optimizer.zero_grad()
        torch.autograd.backward(F.mse_loss(scores, target))
        self.critic_optimizer.step()

    @staticmethod
    def _choose(mask: Tensor, *pairs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(torch.where(mask.view(-1, 1, 1, 1), a, b) for a, b in pairs)


def public_codec(path: str, weights: dict[str, Tensor], dtype: torch.dtype) -> tuple[Codec, Codec]:
    """Encoder and decoder of the public file, given by its path, with the same weights in `dtype`,
    which is how that file itself runs it."""
    import importlib.util

    specification = importlib.util.spec_from_file_location("public_taehv", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    network = module.TAEHV(checkpoint_path=None)
    network.load_state_dict(weights)
    network.eval().to(next(iter(weights.values())).device, dtype)
    quiet = {"parallel": True, "show_progress_bar": False}
    return (
        lambda frames: network.encode_video(frames, **quiet),
        lambda latents: network.decode_video(latents, **quiet),
    )
