"""The solved start, against linear algebra in float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taehv.evaluation.probes import GREYS, flat_errors
from taehv.model import ModelConfig, build_model
from taehv.model.network import TAEHV
from taehv.model.start import CLIPS_PER_CHUNK, StartError, solve_start
from taehv.model.variants import VARIANTS
from tests.helpers.linear_decoder import LinearDecoder
from tests.helpers.natural_clips import natural_clips

# A start at the public widths takes half a minute.
PUBLIC = pytest.param("public", marks=pytest.mark.slow)
PUBLIC_LOSES = pytest.param("public", 1e-4, marks=pytest.mark.slow)
SMALL = ModelConfig(encoder_width=32, decoder_widths=(64, 48, 32, 32))


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a.double().clamp(0, 1) - b.double()).square().mean()))


def reconstructed(model: TAEHV, clips: Tensor) -> float:
    """PSNR, in dB."""
    with torch.no_grad():
        decoded = torch.cat([model(part)[1] for part in torch.split(clips, 8)])
    original, paired = model.alignment.pair(clips, decoded)
    return psnr(paired, original)


def solved(config: ModelConfig, clips: Tensor) -> TAEHV:
    model = build_model(config)
    solve_start(model, clips)
    return model


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return natural_clips(2 * CLIPS_PER_CHUNK)


@pytest.fixture(scope="module")
def public(clips: Tensor) -> TAEHV:
    """The widths of the public checkpoints."""
    return solved(ModelConfig(), clips)


def encoded(model: TAEHV, clips: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.encode_video(part) for part in torch.split(clips, 8)])


def components(clips: Tensor) -> np.ndarray:
    """The 16 principal components of blocks of 4 x 8 x 8 pixels, by numpy: [blocks, 16]."""
    whole = torch.cat([clips, clips[:, -1:].expand(-1, 3, -1, -1, -1)], 1).double()
    n, t, c, h, w = whole.shape
    cut = whole.reshape(n, t // 4, 4, c, h // 8, 8, w // 8, 8).permute(0, 1, 4, 6, 2, 3, 5, 7)
    blocks = cut.reshape(-1, 4 * c * 64).numpy()
    blocks = blocks - blocks.mean(0)
    basis = np.linalg.eigh(blocks.T @ blocks)[1][:, -16:]
    found: np.ndarray = blocks @ basis
    return found


@pytest.fixture(scope="module")
def small(clips: Tensor) -> TAEHV:
    """The widths of configs/small.yaml."""
    return solved(SMALL, clips)


@pytest.mark.parametrize(("network", "lost"), [PUBLIC_LOSES, ("small", 5e-3)])
def test_latents_are_the_principal_components_of_blocks(
    request: pytest.FixtureRequest, clips: Tensor, network: str, lost: float
) -> None:
    """In some basis: the components are a linear function of the latents."""
    model = request.getfixturevalue(network)
    latents = encoded(model, clips).permute(0, 1, 3, 4, 2).reshape(-1, 16).double().numpy()
    wanted = components(clips)
    inputs = np.hstack([latents, np.ones((len(latents), 1))])
    left = wanted - inputs @ np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    assert (left**2).sum() < lost * (wanted**2).sum()
    assert np.abs(latents.mean(0)).max() < 0.02
    spread = latents.std(0)
    # Less where a colour that no clip has would drive a latent into the decoder's clamp.
    assert spread.max() < 0.27
    assert (spread > 0.23).sum() >= 12


@pytest.mark.parametrize("network", [PUBLIC, "small"])
def test_colours_that_no_clip_has_come_back(request: pytest.FixtureRequest, network: str) -> None:
    """No feature's range ends where the colours of the clips do."""
    model = request.getfixturevalue(network)
    with torch.no_grad():
        errors = flat_errors(model.reconstruct_video, torch.device("cpu"))
    assert max(errors.values()) < 0.2, errors
    assert max(errors[name] for name in GREYS) < 0.03, errors


@pytest.mark.parametrize("network", [PUBLIC, "small"])
def test_the_decoder_is_better_than_the_best_linear_one_of_three_by_three_latents(
    request: pytest.FixtureRequest, clips: Tensor, network: str
) -> None:
    """Under the constraint that upsampling by copies sets, on clips that neither has seen: its
    features look further."""
    model = request.getfixturevalue(network)
    others = natural_clips(16, seed=1)
    seen, unseen = encoded(model, clips).double(), encoded(model, others).double()
    best = LinearDecoder(seen, clips.double())
    constrained = psnr(best(unseen), others)
    assert reconstructed(model, others) > constrained + 0.3
    # Without the constraint the same latents give more.
    free = LinearDecoder(seen, clips.double(), constrained=False)
    assert psnr(free(unseen), others) > constrained + 0.7


def test_a_super_decoder_is_not_constrained() -> None:
    """PixelShuffle gives each pixel weights of its own."""
    clips = natural_clips(CLIPS_PER_CHUNK, size=128)
    plain = ModelConfig("taew2_2", encoder_width=32, decoder_widths=(64, 48, 32, 32))
    better = ModelConfig("taew2_2_super", encoder_width=32, decoder_widths=(128, 96, 48, 32))
    constrained = reconstructed(solved(plain, clips), clips)
    assert reconstructed(solved(better, clips), clips) > constrained + 0.5


@pytest.mark.parametrize(
    "variant",
    # Its layers are those of taeltx2_3, and both take long.
    [pytest.param(v, marks=pytest.mark.slow) if v == "taeltx_2" else v for v in VARIANTS],
)
def test_every_variant_starts_as_a_codec(variant: str) -> None:
    super_decoder = VARIANTS[variant].super_decoder
    widths = (64, 32, 24, 16) if super_decoder else (64, 48, 32, 32)
    config = ModelConfig(variant, encoder_width=32, decoder_widths=widths)
    model = build_model(config)
    size = 4 * model.space_downscale
    assert_starts_as_a_codec(
        model, natural_clips(CLIPS_PER_CHUNK, 2 * model.time_downscale + 1, size)
    )


@pytest.mark.parametrize("frames", [13, 16, 24])
def test_an_even_number_of_latents_starts_by_its_own_rule_of_frames(frames: int) -> None:
    """`taecvx` drops no frame then, so that a frame comes back three earlier in its latent."""
    assert_starts_as_a_codec(build_model(SMALL), natural_clips(CLIPS_PER_CHUNK, frames, 32))


def assert_starts_as_a_codec(model: TAEHV, clips: Tensor) -> None:
    before = reconstructed(model, clips)
    solve_start(model, clips)
    # Each latent's mean colour alone.
    pooled = torch.nn.functional.avg_pool3d(
        clips.transpose(1, 2), (1, model.space_downscale, model.space_downscale)
    )
    coarse = torch.nn.functional.interpolate(
        pooled, scale_factor=(1.0, *[float(model.space_downscale)] * 2)
    )
    assert reconstructed(model, clips) > max(before + 5, psnr(coarse.transpose(1, 2), clips) + 1)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(encoder_width=3, decoder_widths=(3, 3, 3, 3), latent_channels=1),
        ModelConfig("taeltx_2", encoder_width=16, decoder_widths=(24, 16, 16, 16)),
        dataclasses.replace(SMALL, decoder_time_upscale=(False, False, True)),
        ModelConfig("taew2_2_super", decoder_widths=(8, 8, 8, 8), latent_channels=3),
        # The last latent carries nothing.
        ModelConfig(encoder_width=16, decoder_widths=(32, 24, 16, 16)),
    ],
)
def test_unusual_networks_start_too(config: ModelConfig) -> None:
    model = build_model(config)
    clips = natural_clips(CLIPS_PER_CHUNK, 17, 4 * model.space_downscale)
    before = reconstructed(model, clips)
    solve_start(model, clips)
    assert reconstructed(model, clips) > before
    # No channel depends on what is next to nothing: a step of training would blow it up.
    largest = max(float(weight.abs().max()) for weight in model.state_dict().values())
    assert largest < 200


def test_the_same_clips_give_the_same_weights(clips: Tensor, small: TAEHV) -> None:
    first = small.state_dict()
    second = solved(SMALL, clips).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_it_meets_a_teachers_latents(clips: Tensor) -> None:
    """Whose scale is given, and which look further than a block."""
    mixture = torch.randn(16, 3 * 16 * 16, generator=torch.Generator().manual_seed(0)) / 10
    whole = torch.cat([clips, clips[:, -1:].expand(-1, 3, -1, -1, -1)], 1) - 0.5
    every_fourth = whole[:, ::4].flatten(0, 1)
    patches = F.unfold(every_fourth, 16, padding=4, stride=8)
    latents = (mixture @ patches).reshape(len(clips), 3, 16, 8, 8)
    model = build_model(SMALL)
    solve_start(model, clips, latents)
    error = (encoded(model, clips) - latents).square().mean() / latents.var()
    assert error < 0.15
    near_identity = build_model(SMALL)
    assert reconstructed(model, clips) > reconstructed(near_identity, clips) + 5
    assert math.isfinite(float(error))


@pytest.mark.parametrize(
    ("config", "frames", "reason"),
    [
        (ModelConfig(decoder_widths=(16, 8, 8, 2)), 9, "2 channels"),
        (SMALL, 4, "4 frames"),
        (dataclasses.replace(SMALL, decoder_space_upscale=(False, True, True)), 9, "size"),
        (ModelConfig("taeltx_2"), 8, "needs 9"),
    ],
)
def test_what_cannot_be_solved_is_told(config: ModelConfig, frames: int, reason: str) -> None:
    model = build_model(config)
    clips = torch.zeros(CLIPS_PER_CHUNK, frames, 3, 64, 64)
    with pytest.raises(StartError, match=reason):
        solve_start(model, clips)
