"""The public TAEHV variants, and the configuration that picks or changes one.

A variant is a row of architecture settings under which a public checkpoint loads, key for key.
"""

import dataclasses
import difflib
from dataclasses import dataclass

PerStage = tuple[bool, bool, bool]
Widths = tuple[int, int, int, int]


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the network's layers and its frame rule; no field is left open."""

    patch_size: int = 1
    latent_channels: int = 16
    encoder_width: int = 64
    decoder_widths: Widths = (256, 128, 64, 64)
    encoder_time_downscale: PerStage = (True, True, False)
    decoder_time_upscale: PerStage = (False, True, True)
    decoder_space_upscale: PerStage = (True, True, True)
    super_decoder: bool = False
    """The decoder of the `_super` checkpoints: large depthwise kernels and PixelShuffle."""
    trims_even: bool = True
    """False (CogVideoX): an even number of latents decodes to frames of which none is dropped."""

    @property
    def time_downscale(self) -> int:
        """Input frames per latent."""
        return 1 << sum(self.encoder_time_downscale)

    @property
    def time_upscale(self) -> int:
        """Raw decoded frames per latent."""
        return 1 << sum(self.decoder_time_upscale)

    @property
    def space_downscale(self) -> int:
        """Input pixels per latent position, along height and along width."""
        return 8 * self.patch_size

    @property
    def space_upscale(self) -> int:
        """Decoded pixels per latent position, along height and along width."""
        return self.patch_size << sum(self.decoder_space_upscale)


_ALL_TIME: PerStage = (True, True, True)
_SUPER_WIDTHS: Widths = (512, 256, 128, 64)
_LTX = Architecture(
    patch_size=4,
    latent_channels=128,
    encoder_time_downscale=_ALL_TIME,
    decoder_time_upscale=_ALL_TIME,
)

VARIANTS: dict[str, Architecture] = {
    # The first four have the same shapes. A file alone cannot tell them apart, and the default
    # stands first so that it is what a guess from shapes yields.
    "taecvx": Architecture(trims_even=False),
    "taehv": Architecture(),
    "taew2_1": Architecture(),
    "taeos1_3": Architecture(),
    "taew2_2": Architecture(patch_size=2, latent_channels=48),
    "taehv1_5": Architecture(patch_size=2, latent_channels=32),
    "taeltx_2": _LTX,
    "taeltx2_3": _LTX,
    "taew2_2_super": Architecture(
        patch_size=2, latent_channels=48, decoder_widths=_SUPER_WIDTHS, super_decoder=True
    ),
    "taehv1_5_super": Architecture(
        patch_size=2, latent_channels=32, decoder_widths=_SUPER_WIDTHS, super_decoder=True
    ),
}
"""Architecture by the name of its public checkpoint."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network to build and which weights it starts from (section `model`).

    A setting left at None is the variant's own. Raises ValueError, naming the key, for an unknown
    variant and for settings that no network can have.
    """

    variant: str = "taecvx"
    """Public checkpoint whose shapes and frame rule to use: taecvx, taehv, taew2_1, taeos1_3,
    taew2_2, taehv1_5, taeltx_2, taeltx2_3, taew2_2_super or taehv1_5_super."""
    pretrained: str = ""
    """A .pth or .safetensors file in the public keys to start from; empty: from scratch."""
    patch_size: int | None = None
    """Side of the pixel blocks folded into channels before the encoder."""
    latent_channels: int | None = None
    """Channels of the latent."""
    encoder_width: int = 64
    """Channels throughout the encoder; 64 in every public checkpoint."""
    decoder_widths: Widths | None = None
    """Channels of the decoder's three stages, and of the last one's output."""
    encoder_time_downscale: PerStage | None = None
    """Per encoder stage: whether it halves the number of frames."""
    decoder_time_upscale: PerStage | None = None
    """Per decoder stage: whether it doubles the number of frames."""
    decoder_space_upscale: PerStage = (True, True, True)
    """Per decoder stage: whether it doubles height and width."""

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            near = difflib.get_close_matches(self.variant, VARIANTS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"model.variant is {self.variant!r}, which is not known; did you mean {near!r}? "
                f"Known: {', '.join(VARIANTS)}"
            )
        architecture = self.architecture
        for name in ("patch_size", "latent_channels", "encoder_width"):
            if getattr(architecture, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if min(architecture.decoder_widths) < 1:
            raise ValueError(
                f"model.decoder_widths is {self.decoder_widths}; each must be at least 1"
            )
        if architecture.super_decoder and not all(self.decoder_space_upscale):
            raise ValueError(
                f"model.decoder_space_upscale is {self.decoder_space_upscale}, but the super "
                f"decoder of {self.variant} upscales in all three stages"
            )

    @property
    def architecture(self) -> Architecture:
        """The variant's row with this configuration's own settings put in."""
        chosen = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("variant", "pretrained") and getattr(self, field.name) is not None
        }
        return dataclasses.replace(VARIANTS[self.variant], **chosen)
