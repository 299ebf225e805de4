"""The generator's losses: each one value per clip, so that a batch can be split at will."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class LossConfig:
    """total = reconstruction * MSE(decoded, video) + encoder * MSE(encoded, teacher's latents)
    + seraena * MSE(decoded, Seraena's corrected target)"""

    reconstruction: float = 10.0
    """Weight of the error against the video."""
    encoder: float = 0.1
    """Weight of the error against the teacher's latents; without a teacher it has no effect."""
    seraena: float = 0.1
    """Weight of the error against the adversary's corrected targets; 0 trains without one."""
    decoder_input: Literal["student", "teacher"] = "student"
    """Whose latents the decoder decodes: the student's (an autoencoder) or the teacher's
    (distillation)."""

    def __post_init__(self) -> None:
        for name in ("reconstruction", "encoder", "seraena"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"loss.{name} is {getattr(self, name)}: a weight is finite and not negative"
                )
        if self.reconstruction + self.encoder + self.seraena == 0:
            raise ValueError("all weights of loss are 0: nothing would be learned")

    @property
    def gradient_scale(self) -> float:
        """By what a healthy gradient norm is larger than at the default weights: it scales with
        the reconstruction loss, which dominates it."""
        return self.reconstruction / 10


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per clip, in float32: two [N, ...] of the same shape to [N]."""
    if output.shape != target.shape:
        raise ValueError(f"shapes differ: {tuple(output.shape)} and {tuple(target.shape)}")
    return (output.float() - target.float()).square().flatten(1).mean(1)
