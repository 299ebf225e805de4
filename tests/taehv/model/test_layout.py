"""The network's keys, shapes and sizes against the public layout, generated here independently."""

import dataclasses

import pytest
import torch

from taehv.model import TAEHV, ModelConfig
from taehv.model.shapes import expected_shapes
from taehv.model.variants import VARIANTS

Shapes = dict[str, tuple[int, ...]]

# (patch size, latent channels, encoder time strides, decoder time strides, super decoder)
TABLE = {
    "taehv": (1, 16, (2, 2, 1), (1, 2, 2), False),
    "taew2_1": (1, 16, (2, 2, 1), (1, 2, 2), False),
    "taeos1_3": (1, 16, (2, 2, 1), (1, 2, 2), False),
    "taecvx": (1, 16, (2, 2, 1), (1, 2, 2), False),
    "taew2_2": (2, 48, (2, 2, 1), (1, 2, 2), False),
    "taehv1_5": (2, 32, (2, 2, 1), (1, 2, 2), False),
    "taeltx_2": (4, 128, (2, 2, 2), (2, 2, 2), False),
    "taeltx2_3": (4, 128, (2, 2, 2), (2, 2, 2), False),
    "taew2_2_super": (2, 48, (2, 2, 1), (1, 2, 2), True),
    "taehv1_5_super": (2, 32, (2, 2, 1), (1, 2, 2), True),
}


def convolution(key: str, n_in: int, n_out: int, side: int = 3, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{key}.weight": (n_out, n_in, side, side)}
    if bias:
        shapes[f"{key}.bias"] = (n_out,)
    return shapes


def memory_block(key: str, n: int) -> Shapes:
    return {
        **convolution(f"{key}.conv.0", 2 * n, n),
        **convolution(f"{key}.conv.2", n, n),
        **convolution(f"{key}.conv.4", n, n),
    }


def super_memory_block(key: str, n: int) -> Shapes:
    return {
        f"{key}.conv.0.weight": (2 * n, 1, 7, 7),
        **convolution(f"{key}.conv.1", 2 * n, 4 * n, side=1),
        **convolution(f"{key}.conv.3", 4 * n, n, side=1, bias=False),
    }


def public_shapes(variant: str) -> Shapes:
    patch, latent, down, up, is_super = TABLE[variant]
    image = 3 * patch * patch
    shapes = convolution("encoder.0", image, 64)
    for start, stride in zip((2, 7, 12), down, strict=True):
        shapes |= convolution(f"encoder.{start}.conv", 64 * stride, 64, side=1, bias=False)
        shapes |= convolution(f"encoder.{start + 1}", 64, 64, bias=False)
        for block in (2, 3, 4):
            shapes |= memory_block(f"encoder.{start + block}", 64)
    shapes |= convolution("encoder.17", 64, latent)
    if is_super:
        shapes |= convolution("decoder.0", latent, 512, side=1, bias=False)
        stages = zip((1, 8, 15), ((512, 256), (256, 128), (128, 64)), up, strict=True)
        for start, (n, n_next), stride in stages:
            for block in (0, 1, 2):
                shapes |= super_memory_block(f"decoder.{start + block}", n)
            shapes |= convolution(f"decoder.{start + 3}", n, 4 * n_next)
            grow = f"decoder.{start + 6}.conv"
            shapes |= convolution(grow, n_next, n_next * stride, side=1, bias=False)
    else:
        shapes |= convolution("decoder.1", latent, 256)
        stages = zip((3, 9, 15), ((256, 128), (128, 64), (64, 64)), up, strict=True)
        for start, (n, n_next), stride in stages:
            for block in (0, 1, 2):
                shapes |= memory_block(f"decoder.{start + block}", n)
            shapes |= convolution(f"decoder.{start + 4}.conv", n, n * stride, side=1, bias=False)
            shapes |= convolution(f"decoder.{start + 5}", n, n_next, bias=False)
    return shapes | convolution("decoder.22", 64, image)


def test_the_table_of_variants_is_complete() -> None:
    assert set(VARIANTS) == set(TABLE)


@pytest.mark.parametrize("variant", TABLE)
def test_keys_and_shapes_are_the_public_ones(variant: str) -> None:
    shapes = expected_shapes(ModelConfig(variant=variant).architecture)
    assert shapes == public_shapes(variant)


def test_the_default_model_has_the_public_keys_and_11_32_million_parameters() -> None:
    model = TAEHV()
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert own == public_shapes("taecvx")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 11.32


@pytest.mark.parametrize("variant", TABLE)
def test_scales_follow_from_the_table(variant: str) -> None:
    patch, latent, down, up, _ = TABLE[variant]
    with torch.device("meta"):
        model = TAEHV(ModelConfig(variant=variant))
    assert model.time_downscale == down[0] * down[1] * down[2]
    assert model.time_upscale == up[0] * up[1] * up[2]
    assert model.space_downscale == model.space_upscale == 8 * patch
    assert (model.latent_channels, model.patch_size) == (latent, patch)


def test_only_taecvx_keeps_every_frame_of_an_even_number_of_latents() -> None:
    assert [name for name, row in VARIANTS.items() if not row.trims_even] == ["taecvx"]


def test_own_settings_override_the_variant() -> None:
    config = ModelConfig(
        variant="taew2_2",
        latent_channels=5,
        encoder_width=8,
        decoder_widths=(8, 6, 4, 2),
        decoder_time_upscale=(False, False, True),
        decoder_space_upscale=(True, False, True),
    )
    with torch.device("meta"):
        model = TAEHV(config)
    assert (model.patch_size, model.latent_channels) == (2, 5)
    assert (model.time_downscale, model.time_upscale) == (4, 2)
    assert (model.space_downscale, model.space_upscale) == (16, 8)
    assert model.encoder[17].weight.shape == (5, 8, 3, 3)
    assert model.decoder[8].weight.shape == (6, 8, 3, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "taew2.2"}, r"model\.variant is 'taew2\.2'.*did you mean 'taew2_2'"),
        ({"patch_size": 0}, r"model\.patch_size is 0"),
        ({"latent_channels": -1}, r"model\.latent_channels is -1"),
        ({"encoder_width": 0}, r"model\.encoder_width is 0"),
        ({"decoder_widths": (8, 8, 0, 8)}, r"model\.decoder_widths is \(8, 8, 0, 8\)"),
        (
            {"variant": "taew2_2_super", "decoder_space_upscale": (True, True, False)},
            r"model\.decoder_space_upscale.*taew2_2_super",
        ),
    ],
)
def test_an_impossible_configuration_names_its_key(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ModelConfig(), **settings)  # type: ignore[arg-type]
