"""Two reconstructions that need no network, with which every score can be compared.

A network that scores below `down_and_up` has learned little; one that scores below `mean_colour`
has learned nothing.

Shape letters: N clips, T frames, C channels, H height, W width.
"""

import torch.nn.functional as F
from torch import Tensor


def mean_colour(frames: Tensor) -> Tensor:
    """Each frame painted in its mean colour. NTCHW in [0, 1] -> NTCHW in [0, 1]."""
    return frames.mean(dim=(-2, -1), keepdim=True).expand_as(frames).contiguous()


def down_and_up(frames: Tensor, factor: int = 8) -> Tensor:
    """Each frame averaged over factor x factor pixels and enlarged again by bicubic interpolation.

    8 is the space compression of the smallest public networks, so the result shows what the
    resolution of their latents alone can hold. NTCHW in [0, 1] -> NTCHW in [0, 1].

    Raises ValueError where H or W is not a multiple of factor.
    """
    height, width = frames.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"{height}x{width} pixels cannot be averaged in blocks of {factor}")
    small = F.avg_pool2d(frames.flatten(0, 1), factor)
    large = F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)
    # Bicubic interpolation overshoots at edges.
    return large.clamp(0, 1).reshape(frames.shape)
