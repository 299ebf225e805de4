"""The network that a state dict belongs to, inferred from the shapes of its tensors alone.

Shapes leave two things open. Some variants share them (taecvx, taehv, taew2_1 and taeos1_3, which
differ in whose latents they use and in taecvx's frame rule; taeltx_2 and taeltx2_3): the first of
them is guessed, and a caller who knows better names the variant. Spatial upscaling has no weights
and is taken to be on.
"""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from taehv.errors import TrainingError
from taehv.model.blocks import IMAGE_CHANNELS, build_decoder, build_encoder
from taehv.model.variants import VARIANTS, Architecture, ModelConfig

Shapes = dict[str, tuple[int, ...]]


def infer_config(state_dict: Mapping[str, Tensor]) -> ModelConfig:
    """The configuration of a network that these weights fit, key for key.

    The variant is the first of the table with these shapes; where none has them, the nearest one
    with the differing settings overridden. Raises TrainingError where the keys or shapes are not a
    TAEHV's.
    """
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    try:
        inferred = _infer_architecture(shapes)
        fits = expected_shapes(inferred) == shapes
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        fits = False
    if not fits:
        raise TrainingError(
            f"keys and shapes are not those of a TAEHV (they begin with {', '.join([*shapes][:3])})"
        )
    return _nearest_config(inferred)


def expected_shapes(architecture: Architecture) -> Shapes:
    """Every key of a network's state dict with its shape; nothing is allocated."""
    with torch.device("meta"):
        parts = {"encoder": build_encoder(architecture), "decoder": build_decoder(architecture)}
    return {
        f"{part}.{key}": tuple(value.shape)
        for part, layers in parts.items()
        for key, value in layers.state_dict().items()
    }


def override_flags(config: ModelConfig) -> str:
    """The command-line flags of the settings in which config departs from its variant."""
    plain = ModelConfig(variant=config.variant)
    flags = ""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "pretrained" and value != getattr(plain, field.name):
            words = " ".join(map(str, value)) if isinstance(value, tuple) else value
            flags += f" --model.{field.name.replace('_', '-')} {words}"
    return flags


def _infer_architecture(shapes: Shapes) -> Architecture:
    """Read the settings off the layers that show them; the caller verifies the rest."""
    width, image_channels = shapes["encoder.0.weight"][:2]
    pools = [shapes[f"encoder.{2 + 5 * stage}.conv.weight"] for stage in range(3)]
    super_decoder = "decoder.0.weight" in shapes
    if super_decoder:
        first, conv, grow, stage_length, conv_rows = 0, 4, 7, 7, 4
    else:
        first, conv, grow, stage_length, conv_rows = 1, 8, 7, 6, 1
    grows = [shapes[f"decoder.{grow + stage_length * stage}.conv.weight"] for stage in range(3)]
    ends = [shapes[f"decoder.{conv + stage_length * stage}.weight"][0] for stage in range(3)]
    # Unpacked, so that the type checker sees their number.
    width_1, width_2, width_3 = (rows // conv_rows for rows in ends)
    down_1, down_2, down_3 = (n_in > n_out for n_out, n_in, *_ in pools)
    up_1, up_2, up_3 = (n_out > n_in for n_out, n_in, *_ in grows)
    return Architecture(
        patch_size=math.isqrt(image_channels // IMAGE_CHANNELS),
        latent_channels=shapes["encoder.17.weight"][0],
        encoder_width=width,
        decoder_widths=(shapes[f"decoder.{first}.weight"][0], width_1, width_2, width_3),
        encoder_time_downscale=(down_1, down_2, down_3),
        decoder_time_upscale=(up_1, up_2, up_3),
        super_decoder=super_decoder,
    )


# The fields of an architecture that show in shapes and that a configuration can override.
_OVERRIDABLE = (
    "patch_size",
    "latent_channels",
    "encoder_width",
    "decoder_widths",
    "encoder_time_downscale",
    "decoder_time_upscale",
)


def _nearest_config(inferred: Architecture) -> ModelConfig:
    def differing(name: str) -> list[str]:
        row = VARIANTS[name]
        return [f for f in _OVERRIDABLE if getattr(row, f) != getattr(inferred, f)]

    same_decoder = [n for n in VARIANTS if VARIANTS[n].super_decoder == inferred.super_decoder]
    nearest = min(same_decoder, key=lambda name: len(differing(name)))
    return dataclasses.replace(
        ModelConfig(variant=nearest),
        **{field: getattr(inferred, field) for field in differing(nearest)},
    )
