"""A real teacher of the public class with random weights: a megabyte on disk, fast on a CPU."""

from pathlib import Path

import torch


def save_small_teacher(folder: Path, latent_channels: int = 16) -> Path:
    """Save a small `AutoencoderKLCogVideoX` as `folder/vae`, as save_pretrained does.

    4x in time, 8x in space, like the full one. The same weights at every call. Gives the folder.
    """
    from diffusers import AutoencoderKLCogVideoX

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            norm_num_groups=2,
            layers_per_block=1,
            latent_channels=latent_channels,
            sample_height=64,
            sample_width=64,
        )
    vae.save_pretrained(folder / "vae")
    return folder
