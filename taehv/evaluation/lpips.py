"""LPIPS, the learned perceptual distance, from a weights file that the user gives."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from taehv.errors import TrainingError
from taehv.model.weights import read_weights

CONVOLUTIONS = (
    ("net.slice1.0", 4, 2),
    ("net.slice2.3", 1, 2),
    ("net.slice3.6", 1, 1),
    ("net.slice4.8", 1, 1),
    ("net.slice5.10", 1, 1),
)
"""AlexNet's, by key: stride, padding."""

POOLED = (1, 2)
"""Convolutions that a 3x3 max-pooling with stride 2 stands before."""

SMALLEST_SIDE = 32
"""Pixels; smaller pictures leave nothing for the last convolutions."""

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What the images, in [-1, 1], are normalised by."""


class Lpips:
    """Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric",
    version 0.1 over AlexNet.

    Squared distances between unit feature vectors of five layers, weighted by channel, averaged
    over the picture, and summed over the layers. The file is what this writes, once, anywhere:
    `torch.save(lpips.LPIPS(net="alex").state_dict(), "lpips_alex.pth")`.
    """

    def __init__(self, state: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """state: the public package's keys. Raises KeyError where one is missing."""
        self._state = state
        self._layers = [
            (state[f"{key}.weight"].to(device), state[f"{key}.bias"].to(device), stride, padding)
            for key, stride, padding in CONVOLUTIONS
        ]
        self._weights = [
            state[f"lin{k}.model.1.weight"].to(device) for k in range(len(CONVOLUTIONS))
        ]

    @classmethod
    def load(cls, path: str, device: torch.device | str) -> "Lpips":
        """From a file. Raises TrainingError, naming it and what it should be."""
        state = read_weights(Path(path))
        try:
            return cls(state, device)
        except KeyError as error:
            raise TrainingError(
                f"--lpips {path}: holds no {error.args[0]}; give the state dict of the public "
                'lpips.LPIPS(net="alex")'
            ) from error

    def to(self, device: torch.device | str) -> "Lpips":
        """The same weights on another device."""
        return Lpips(self._state, device)

    @torch.no_grad()
    def __call__(self, original: Tensor, reconstructed: Tensor) -> Tensor:
        """[T, 3, H, W] twice, in [0, 1], on the device of the weights -> [T], 0 is right; NaN for
        pictures of fewer than `SMALLEST_SIDE` pixels a side."""
        if min(original.shape[-2:]) < SMALLEST_SIDE:
            return original.new_full((len(original),), torch.nan)
        total = original.new_zeros(len(original))
        features = zip(self._features(original), self._features(reconstructed), strict=True)
        for weight, (a, b) in zip(self._weights, features, strict=True):
            distance = (_unit(a) - _unit(b)).square()
            total = total + F.conv2d(distance, weight).mean(dim=(1, 2, 3))
        return total

    def _features(self, frames: Tensor) -> list[Tensor]:
        shift, scale = (frames.new_tensor(v)[:, None, None] for v in (SHIFT, SCALE))
        x = (frames * 2 - 1 - shift) / scale
        features = []
        for layer, (weight, bias, stride, padding) in enumerate(self._layers):
            if layer in POOLED:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            features.append(x)
        return features


def _unit(features: Tensor) -> Tensor:
    """Each position's vector of length 1."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
