"""The start from scratch: it shows the picture, repeats itself, and learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taehv.model import TAEHV, ModelConfig, build_model, initialise_near_identity
from taehv.model.variants import VARIANTS

SMALL = ModelConfig("taehv", encoder_width=16, decoder_widths=(24, 16, 16, 16))


def moving_waves(num_frames: int, size: int, period: int = 64) -> Tensor:
    """Smooth coloured waves that drift to the right; [1, T, 3, size, size] in [0, 1]."""
    t = torch.arange(num_frames).view(-1, 1, 1, 1)
    phase = torch.tensor([0.0, 2.0, 4.0]).view(1, 3, 1, 1)
    y, x = torch.arange(size).view(-1, 1), torch.arange(size).view(1, -1)
    turn = 2 * math.pi / period
    waves = torch.sin((x - 2 * t) * turn + phase) * torch.cos(y * turn)
    return (0.5 + 0.4 * waves)[None]


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def bounded_as_latents_are(picture: Tensor) -> Tensor:
    """A picture in [0, 1] after the way to latents in [-1, 1], the Clamp and back."""
    return 3 * torch.tanh((2 * picture - 1) / 3) / 2 + 0.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_start_is_a_faint_thumbnail(variant: str) -> None:
    model = build_model(ModelConfig(variant))
    p, d = model.patch_size, model.space_downscale
    num_frames = model.time_downscale + 1
    frames = moving_waves(num_frames, 2 * d, period=8 * d)
    # Each pixel of a p x p block is averaged over the 8x8 blocks that share a latent position. A
    # latent shows the first of its frames, at the last of its raw frames and the three before.
    sub = F.pixel_unshuffle(frames[0, [0, model.time_downscale]], p)
    thumbnails = F.interpolate(F.avg_pool2d(sub, 8), scale_factor=8)
    if not model.architecture.super_decoder:
        thumbnails = bounded_as_latents_are(thumbnails)
    thumbnails = F.pixel_shuffle(thumbnails, p)[[0] + [1] * model.time_downscale]
    expected = 0.5 + 0.1 * (thumbnails - 0.5)
    with torch.no_grad():
        _, decoded = model(frames)
    trimmed = decoded[0, -num_frames:]
    # Plain grey stands at 34 dB; random channels may add a little.
    assert psnr(trimmed[0], expected[0]) > 45
    assert psnr(trimmed[-1], expected[-1]) > 45


def test_latents_start_where_the_clamp_is_straight() -> None:
    with torch.no_grad():
        latents = build_model(ModelConfig()).encode_video(moving_waves(9, 64))
    assert 0.1 < latents.std() < 1
    assert latents.abs().max() < 3


def test_the_start_repeats_itself_and_follows_its_seed() -> None:
    first, second, third = TAEHV(SMALL), TAEHV(SMALL), TAEHV(SMALL)
    torch.manual_seed(1)
    initialise_near_identity(first, seed=4)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    initialise_near_identity(second, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    initialise_near_identity(third, seed=5)
    pairs = zip(first.parameters(), second.parameters(), third.parameters(), strict=True)
    equal = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in pairs]
    assert all(same for same, _ in equal)
    assert not all(same for _, same in equal)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("taehv", encoder_width=2, decoder_widths=(2, 2, 2, 2), latent_channels=1),
        ModelConfig("taeltx_2", latent_channels=8),
        ModelConfig("taehv", decoder_space_upscale=(False, True, True)),
        ModelConfig("taew2_2_super", decoder_widths=(8, 8, 8, 8), latent_channels=3),
    ],
)
def test_narrow_networks_can_start_too(config: ModelConfig) -> None:
    model = build_model(config)
    with torch.no_grad():
        _, decoded = model(moving_waves(5, 64))
    assert torch.isfinite(decoded).all()
    assert 0.3 < decoded.mean() < 0.7


def test_what_is_trained_by_the_rule_scores_best_by_it() -> None:
    model = build_model(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    frames = moving_waves(17, 32)
    for _ in range(80):
        optimizer.zero_grad()
        a, b = model.alignment.pair(frames, model(frames)[1])
        F.mse_loss(a, b).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        decoded = model.decode_video(model.encode_video(frames))
    a, b = model.alignment.pair(frames, decoded)
    right = psnr(a, b)
    for shift in (1, 2, 3, 4):
        assert psnr(a[:, shift:], b[:, :-shift]) < right - 1
        assert psnr(a[:, :-shift], b[:, shift:]) < right - 1


@pytest.mark.parametrize("variant", ["taecvx", "taew2_2", "taew2_2_super"])
def test_training_moves_every_weight_and_lowers_the_loss(variant: str) -> None:
    config = ModelConfig(variant, encoder_width=16, decoder_widths=(24, 16, 16, 16))
    model = build_model(config)
    frames = moving_waves(9, 2 * model.space_downscale)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        _, decoded = model(frames)
        a, b = model.alignment.pair(frames, decoded)
        loss = (a - b).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        if step == 3:
            still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
            assert not still
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(not torch.equal(start[name], p) for name, p in model.named_parameters())
