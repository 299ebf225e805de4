"""A trained TAEHV in the place of a diffusers pipeline's VAE, `AutoencoderKLCogVideoX`.

    vae = DiffusersVAE.from_weights("final_model.safetensors", teacher="CogVideoX-2b")
    pipe = CogVideoXPipeline.from_pretrained("CogVideoX-2b", vae=vae)

Three conventions meet here. A pipeline's video is NCTHW in [-1, 1]; the network's is NTCHW in
[0, 1]. A pipeline keeps latents multiplied by `config.scaling_factor`, and divides before it calls
`decode`; so what `encode` gives and `decode` takes are the teacher's raw latents, unscaled. The
network uses those, times the `teacher.latent_scale` that it was trained with.

Shape letters: N clips, C channels, T frames, H height, W width, t latents, h and w latent size.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, ConfigMixin, ModelMixin
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from taehv.errors import TrainingError
from taehv.model.build import build_model
from taehv.model.network import TAEHV
from taehv.model.shapes import infer_config
from taehv.model.variants import ModelConfig
from taehv.model.weights import read_weights


class DiffusersVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Stands in for `AutoencoderKLCogVideoX` in the pipelines of diffusers.

    `config` is the teacher's own, so a pipeline reads `scaling_factor`, `block_out_channels`,
    `temporal_compression_ratio`, `invert_scale_latents` and the rest as it would from the teacher.

    The number of frames follows the rule of `taehv.model.alignment`, which for taecvx is the
    teacher's: an odd number t of latents decodes to 4(t - 1) + 1 frames, an even one to 4t.
    """

    def __init__(self, model: TAEHV, teacher_config: dict[str, Any], latent_scale: float) -> None:
        """teacher_config: of `AutoencoderKLCogVideoX`, whole. latent_scale: see `TeacherConfig`.

        Raises TrainingError where the network's latents are not of the teacher's shape.
        """
        super().__init__()
        self.register_to_config(**teacher_config)
        self.model = model.eval().requires_grad_(False)
        self.latent_scale = latent_scale
        self.parallel = True
        """False: frame by frame, the same numbers in memory that does not depend on T."""
        theirs = {
            "latent channels": self.config.latent_channels,
            "compression in time": int(self.config.temporal_compression_ratio),
            "compression in space": 2 ** (len(self.config.block_out_channels) - 1),
        }
        mine = (model.latent_channels, model.time_downscale, model.space_downscale)
        up = (model.latent_channels, model.time_upscale, model.space_upscale)
        if mine != tuple(theirs.values()) or up != mine:
            wanted = ", ".join(f"{name} {value}" for name, value in theirs.items())
            raise TrainingError(
                f"this network cannot stand in for the teacher ({wanted}): its own are "
                f"{mine[0]}, {mine[1]} and {mine[2]}, and its decoder enlarges {up[1]} and {up[2]} "
                "times; use weights that were trained against this teacher"
            )

    @classmethod
    def from_weights(
        cls,
        weights: str | Path,
        teacher: str | Path,
        latent_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        config: ModelConfig | None = None,
    ) -> "DiffusersVAE":
        """From a weights file in the public keys, and the folder of the pipeline or the teacher.

        Of the teacher only `vae/config.json` is read. config: the network's (a run's `model`
        section), where the shapes of the weights leave it open. Raises TrainingError, naming the
        file.
        """
        network = config or infer_config(read_weights(weights))
        model = build_model(dataclasses.replace(network, pretrained=str(weights)))
        return cls(model.to(dtype), read_teacher_config(teacher), latent_scale)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """NCTHW in [-1, 1] -> an output whose `latent_dist` has `sample()` and `mode()`, NCthw.

        The posterior has no variance: a sample is the mode. The end is padded to whole latents.
        """
        frames = x.transpose(1, 2).add(1).div(2)
        latents = self.model.encode_video(frames, self.parallel) / self.latent_scale
        mean = latents.transpose(1, 2)
        # The second half is a log variance, which a deterministic posterior does not look at.
        both = torch.cat([mean, torch.zeros_like(mean)], dim=1)
        posterior = DiagonalGaussianDistribution(both, deterministic=True)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """Raw latents NCthw -> an output whose `sample` is NCTHW, clamped to [-1, 1]."""
        latents = z.transpose(1, 2) * self.latent_scale
        frames = self.model.decode_video(latents, self.parallel)
        sample = frames.mul(2).sub(1).transpose(1, 2)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def enable_tiling(self, *_: Any, **__: Any) -> None:
        """Work frame by frame, in little memory. Nothing is cut into tiles: there are no seams."""
        self.parallel = False

    def disable_tiling(self) -> None:
        """All frames at once again, which is fast."""
        self.parallel = True

    enable_slicing, disable_slicing = enable_tiling, disable_tiling


def read_teacher_config(folder: str | Path) -> dict[str, Any]:
    """All settings of a teacher, from `folder/vae/config.json`; what it lacks has its default.

    Raises TrainingError.
    """
    try:
        config = AutoencoderKLCogVideoX.load_config(
            str(folder), subfolder="vae", local_files_only=True
        )
        if config.get("_class_name") != AutoencoderKLCogVideoX.__name__:
            raise ValueError(f"it is of a {config.get('_class_name')}")
        with torch.device("meta"):
            teacher = AutoencoderKLCogVideoX.from_config(config)
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(
            f"teacher {Path(folder) / 'vae' / 'config.json'} cannot be read as that of an "
            f"{AutoencoderKLCogVideoX.__name__} ({' '.join(str(error).split())[:200]})"
        ) from error
    return {key: value for key, value in teacher.config.items() if not key.startswith("_")}
