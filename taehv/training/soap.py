"""SOAP: Adam in the eigenbases of the gradients' covariances.

Vyas et al. 2024, "SOAP: Improving and Stabilizing Shampoo using Adam", arXiv 2409.11321. As in
Shampoo (Gupta et al. 2018, arXiv 1802.09568) a convolution's gradient [out, in, taps] has a basis
for each of its modes, so that no matrix is larger than a layer has channels. Behind ReLUs channels
are strongly correlated. Adam treats each weight alone, and what its step does to all of them
together is largest where the loss is steep.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from taehv import distributed

MOST_CHANNELS = 1024
"""A mode longer than this has no basis: a decomposition of it would cost more than a step."""

EARLY_STEPS = (1, 2, 4, 7)
"""After these the bases are renewed as well, since the first gradients say little."""


class Soap(torch.optim.Optimizer):
    """Adam, with decoupled weight decay, in bases that turn with the gradients.

    What is not a matrix, a bias for example, is left to Adam as it is. Like PyTorch's fused AdamW
    it clips and refuses updates on the device: `grad_scale`, if there is one, divides the
    gradients, and nothing moves, state included, where `found_inf` is 1.

    Args:
        parameters: of a network; float32.
        lr, betas, weight_decay, eps: as in AdamW. The covariances decay by the second beta.
        renew_every: steps between two renewals of the bases, one step each of orthogonal iteration.
            10 and 50 gave the same picture; a renewal costs as much as a step or two.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float = 1e-8,
        renew_every: int = 50,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps}
        super().__init__(parameters, defaults)
        self._renew_every = renew_every
        self._made: int | None = None
        """Steps so far, on the CPU, where it is decided whether the bases are renewed."""

    @staticmethod
    def empty_state(parameter: Tensor) -> dict[str, Tensor]:
        """The state before the first step, by name."""
        state = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros(parameter.shape, device=parameter.device),
            "exp_avg_sq": torch.zeros(parameter.shape, device=parameter.device),
        }
        for mode in _modes(parameter):
            size = _as_modes(parameter).shape[mode]
            state[f"covariance_{mode}"] = torch.zeros(size, size, device=parameter.device)
            state[f"basis_{mode}"] = torch.eye(size, device=parameter.device)
        return state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. It takes no closure, which would have to be called on the device."""
        pairs = [
            (group, parameter)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for _, parameter in pairs:
            if not self.state[parameter]:
                self.state[parameter] = self.empty_state(parameter)
        if self._made is None:
            self._made = max((int(self.state[p]["step"]) for _, p in pairs), default=0)
        first = self._made == 0
        self._made += 1
        renews = self._made % self._renew_every == 0 or self._made in EARLY_STEPS
        for group, parameter in pairs:
            self._update(group, parameter, first, renews)
        if first or renews:
            # Workers on other kinds of machines round differently, and where there is no gradient
            # rounding decides what an eigenvector is. AdamW has nothing that would drift apart.
            distributed.copy_from_main(
                tensor
                for _, parameter in pairs
                for tensor in (parameter.detach(), *self.state[parameter].values())
            )

    def _update(
        self, group: dict[str, Any], parameter: nn.Parameter, first: bool, renews: bool
    ) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        gradient, keep = self._gradient_of(parameter)
        state["step"] += keep
        state["exp_avg"].lerp_(gradient, (1 - beta1) * keep)
        seen, mean = _as_modes(gradient), _as_modes(state["exp_avg"])
        bases = {mode: state[f"basis_{mode}"] for mode in _modes(parameter)}
        for mode, basis in bases.items():
            rows = seen.movedim(mode, 0).flatten(1)
            covariance = state[f"covariance_{mode}"]
            covariance.lerp_(rows @ rows.T, keep if first else (1 - beta2) * keep)
            if first:
                # The largest eigenvalue first, as orthogonal iteration has them.
                basis.copy_(torch.linalg.eigh(covariance)[1].flip(1))
        turned = _turn(seen, bases)
        squares = _as_modes(state["exp_avg_sq"])
        squares.lerp_(turned.square(), (1 - beta2) * keep)
        correction1 = 1 - beta1 ** state["step"]
        correction2 = 1 - beta2 ** state["step"]
        # Where the very first step is refused both are 0, and so are the moments.
        scale = (squares / correction2.clamp(min=1 - beta2)).sqrt_().add_(group["eps"])
        direction = _turn(mean, bases) / correction1.clamp(min=1 - beta1) / scale
        update = _turn(direction, {mode: basis.T for mode, basis in bases.items()})
        parameter.mul_(1 - group["lr"] * group["weight_decay"] * keep)
        parameter.sub_(update.reshape(parameter.shape) * (group["lr"] * keep))
        if renews:
            self._renew(state, bases, keep)

    def _renew(self, state: dict[str, Tensor], bases: dict[int, Tensor], keep: Tensor) -> None:
        """Turn the bases towards the eigenvectors, and the mean squares with them.

        A mean square in a new coordinate is what those in the old ones, taken as uncorrelated, sum
        up to. Left as they were, a coordinate that turns from where no gradient was to where there
        is one would have a step of many times the learning rate.
        """
        for mode, basis in bases.items():
            image = state[f"covariance_{mode}"] @ basis
            # QR keeps the first columns' directions best: those of the largest eigenvalues.
            order = (basis * image).sum(0).argsort(descending=True)
            renewed = torch.linalg.qr(image[:, order])[0]
            shares = (renewed.T @ basis).square_()
            squares = _as_modes(state["exp_avg_sq"])
            turned = torch.tensordot(squares, shares, ([mode], [1])).movedim(-1, mode)
            # Where an update is refused, nothing moves.
            squares.copy_(torch.where(keep > 0, turned, squares))
            basis.copy_(torch.where(keep > 0, renewed, basis))

    def _gradient_of(self, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
        """The gradient, clipped, and 1; or zeros, and 0, where the update is refused."""
        gradient = parameter.grad
        assert gradient is not None
        if self.grad_scale is not None:
            gradient = gradient / self.grad_scale
        if self.found_inf is None:
            return gradient, gradient.new_ones(())
        keep = (1 - self.found_inf).to(gradient.dtype)
        return torch.where(keep > 0, gradient, torch.zeros_like(gradient)), keep


def bases_bytes(parameter: Tensor) -> int:
    """What a parameter's covariances and bases take, beside Adam's moments."""
    sizes = _as_modes(parameter).shape
    return sum(2 * 4 * sizes[mode] ** 2 for mode in _modes(parameter))


def _as_modes(parameter: Tensor) -> Tensor:
    """[out, in, taps] of a convolution's [out, in, height, width]; anything else as it is."""
    return parameter.flatten(2) if parameter.ndim > 2 else parameter


def _modes(parameter: Tensor) -> list[int]:
    """The modes that have a basis."""
    if parameter.ndim < 2:
        return []
    sizes = _as_modes(parameter).shape
    return [mode for mode, size in enumerate(sizes) if 1 < size <= MOST_CHANNELS]


def _turn(value: Tensor, bases: dict[int, Tensor]) -> Tensor:
    """In the coordinates of `bases`, whose columns are the vectors."""
    for mode, basis in bases.items():
        value = torch.tensordot(value, basis, ([mode], [0])).movedim(-1, mode)
    return value
