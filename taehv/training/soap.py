"""SOAP: Adam in the eigenbases of the gradients' covariances.

Vyas et al. 2024, "SOAP: Improving and Stabilizing Shampoo using Adam", arXiv 2409.11321. As in
Shampoo (Gupta et al. 2018, arXiv 1802.09568) a convolution's gradient [out, in, taps] has a basis
for each of its modes, so that no matrix is larger than a layer has channels. Behind ReLUs channels
are strongly correlated. Adam treats each weight alone, and what its step does to all of them
together is largest where the loss is steep.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taehv import distributed

MOST_CHANNELS = 1024
"""A mode longer than this has no basis: a decomposition of it would cost more than a step."""

EARLY_STEPS = (1, 2, 4, 7)
"""After these the bases are renewed as well, since the first gradients say little."""


@dataclass(frozen=True)
class _Batch:
    """Parameters of one shape, which are updated together: on a GPU a product of small matrices
    takes no longer for many of them than for one."""

    group: dict[str, Any]
    """Of the optimizer's settings."""
    parameters: list[nn.Parameter]
    state: dict[str, Tensor]
    """All parameters' state, by name, stacked: [parameters, ...]."""
    modes: list[int]
    """Those that have a basis, as dimensions of what is stacked."""


class Soap(torch.optim.Optimizer):
    """Adam, with decoupled weight decay, in bases that turn with the gradients.

    What is not a matrix, a bias for example, is left to Adam as it is. Like PyTorch's fused AdamW
    it clips and refuses updates on the device: `grad_scale`, if there is one, divides the
    gradients, and nothing moves, state included, where `found_inf` is 1.

    Args:
        parameters: of a network. The state is of their dtype.
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
        self._batches: list[_Batch] = []
        self._batched: list[tuple[nn.Parameter, dict[str, Tensor]]] = []
        """The parameters, and their state, of which the batches were made."""

    @staticmethod
    def empty_state(parameter: Tensor) -> dict[str, Tensor]:
        """The state before the first step, by name."""
        alike: dict[str, Any] = {"dtype": parameter.dtype, "device": parameter.device}
        state = {
            "step": torch.zeros((), **alike),
            "exp_avg": torch.zeros(parameter.shape, **alike),
            "exp_avg_sq": torch.zeros(parameter.shape, **alike),
        }
        for mode, size in _modes(parameter).items():
            state[f"covariance_{mode}"] = torch.zeros(size, size, **alike)
            state[f"basis_{mode}"] = torch.eye(size, **alike)
        return state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. It takes no closure, which would have to be called on the device."""
        batches = self._in_batches()
        if self._made is None:
            self._made = max((int(batch.state["step"].max()) for batch in batches), default=0)
        first = self._made == 0
        self._made += 1
        renews = self._made % self._renew_every == 0 or self._made in EARLY_STEPS
        for batch in batches:
            self._update(batch, first, renews)
        if first or renews:
            # Workers on other kinds of machines round differently, and where there is no gradient
            # rounding decides what an eigenvector is. AdamW has nothing that would drift apart.
            distributed.copy_from_main(
                tensor
                for batch in batches
                for tensor in (*(p.detach() for p in batch.parameters), *batch.state.values())
            )

    def _in_batches(self) -> list[_Batch]:
        """Parameters that have a gradient, by shape. Their state becomes a part of the batch's."""
        pairs = [
            (group, parameter)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        found = [(parameter, self.state[parameter]) for _, parameter in pairs]
        # After a state is loaded, or a parameter frozen, the batches of before do not serve.
        if [(id(p), id(own)) for p, own in found] == [(id(p), id(own)) for p, own in self._batched]:
            return self._batches
        alike: dict[Any, tuple[dict[str, Any], list[nn.Parameter]]] = {}
        for group, parameter in pairs:
            key = id(group), parameter.shape, parameter.device
            alike.setdefault(key, (group, []))[1].append(parameter)
        self._batches = [self._stack(group, parameters) for group, parameters in alike.values()]
        self._batched = found
        return self._batches

    def _stack(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> _Batch:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, own in zip(parameters, states, strict=True):
            if not own:
                own.update(self.empty_state(parameter))
        stacked = {name: torch.stack([own[name] for own in states]) for name in states[0]}
        for index, own in enumerate(states):
            own.update({name: whole[index] for name, whole in stacked.items()})
        return _Batch(group, parameters, stacked, [mode + 1 for mode in _modes(parameters[0])])

    def _update(self, batch: _Batch, first: bool, renews: bool) -> None:
        group, state, (beta1, beta2) = batch.group, batch.state, batch.group["betas"]
        gradient, keep = self._gradient_of(batch)
        state["step"] += keep
        state["exp_avg"].lerp_(gradient, (1 - beta1) * keep)
        seen, mean = _as_modes(gradient), _as_modes(state["exp_avg"])
        bases = {mode: state[f"basis_{mode - 1}"] for mode in batch.modes}
        _add_to_covariances(batch, seen, keep if first else (1 - beta2) * keep)
        if first:
            for mode, basis in bases.items():
                # The largest eigenvalue first, as orthogonal iteration has them.
                basis.copy_(torch.linalg.eigh(state[f"covariance_{mode - 1}"])[1].flip(-1))
        squares = _as_modes(state["exp_avg_sq"])
        squares.lerp_(_turn(seen, bases).square_(), (1 - beta2) * keep)
        # [parameters, 1, ...]: each has a count of its own.
        step = state["step"].view(-1, *[1] * (seen.ndim - 1))
        # Where the very first step is refused both are 0, and so are the moments.
        correction1 = (1 - beta1**step).clamp_(min=1 - beta1)
        correction2 = (1 - beta2**step).clamp_(min=1 - beta2)
        scale = (squares / correction2).sqrt_().add_(group["eps"])
        direction = _turn(mean, bases) / correction1 / scale
        update = _turn(direction, {mode: basis.mT for mode, basis in bases.items()})
        update = (update * (group["lr"] * keep)).view_as(gradient)
        decay = 1 - group["lr"] * group["weight_decay"] * keep
        for parameter, own in zip(batch.parameters, update, strict=True):
            parameter.mul_(decay).sub_(own)
        if renews:
            _renew(batch, bases, squares, keep)

    def _gradient_of(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """The gradients, clipped and stacked, and 1; or zeros, and 0, where updates are refused."""
        gradient = torch.stack([p.grad for p in batch.parameters if p.grad is not None])
        if self.grad_scale is not None:
            gradient = gradient / self.grad_scale
        if self.found_inf is None:
            return gradient, gradient.new_ones(())
        keep = (1 - self.found_inf).to(gradient.dtype)
        return torch.where(keep > 0, gradient, torch.zeros_like(gradient)), keep


def bases_bytes(parameter: Tensor) -> int:
    """What a parameter's covariances and bases take, beside Adam's moments."""
    return sum(2 * 4 * size**2 for size in _modes(parameter).values())


def _add_to_covariances(batch: _Batch, gradient: Tensor, share: Tensor) -> None:
    """Move each mode's covariance towards the gradient's, by a `share` of the way."""
    for mode in batch.modes:
        rows = gradient.movedim(mode, 1).flatten(2)
        batch.state[f"covariance_{mode - 1}"].lerp_(rows @ rows.mT, share)


def _renew(batch: _Batch, bases: dict[int, Tensor], squares: Tensor, keep: Tensor) -> None:
    """Turn the bases towards the eigenvectors, and the mean squares with them.

    A mean square in a new coordinate is what those in the old ones, taken as uncorrelated, sum
    up to. Left as they were, a coordinate that turns from where no gradient was to where there
    is one would have a step of many times the learning rate.
    """
    shares = {}
    for mode, basis in bases.items():
        image = batch.state[f"covariance_{mode - 1}"] @ basis
        # QR keeps the first columns' directions best: those of the largest eigenvalues.
        order = (basis * image).sum(1, keepdim=True).argsort(descending=True)
        renewed = torch.linalg.qr(image.take_along_dim(order, 2))[0]
        shares[mode] = (basis.mT @ renewed).square_()
        # Where an update is refused, nothing moves.
        basis.copy_(torch.where(keep > 0, renewed, basis))
    squares.copy_(torch.where(keep > 0, _turn(squares, shares), squares))


def _as_modes(stacked: Tensor) -> Tensor:
    """[n, out, in, taps] of n convolutions' [n, out, in, height, width]; anything else as it is."""
    return stacked.flatten(3) if stacked.ndim > 3 else stacked


def _modes(parameter: Tensor) -> dict[int, int]:
    """The modes that have a basis, and their sizes: 0 output, 1 input, 2 taps."""
    if parameter.ndim < 2:
        return {}
    sizes = enumerate(_as_modes(parameter[None]).shape[1:])
    return {mode: size for mode, size in sizes if 1 < size <= MOST_CHANNELS}


def _turn(value: Tensor, bases: dict[int, Tensor]) -> Tensor:
    """Stacked values in the coordinates of `bases`, by dimension, whose columns are the vectors."""
    for mode, basis in bases.items():
        rows = value.movedim(mode, 1)
        value = (basis.mT @ rows.flatten(2)).view(rows.shape).movedim(1, mode)
    return value
