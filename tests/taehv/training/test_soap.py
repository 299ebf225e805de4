"""Soap against the same update written out in numpy and float64, and what it is for."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from taehv.training import soap
from taehv.training.optimizer import OptimConfig, build_optimizer
from taehv.training.soap import Soap

Array = NDArray[np.floating[Any]]


class Reference:
    """One convolution, with whole Kronecker matrices instead of a product for each mode."""

    def __init__(self, weight: Array, lr: float, beta1: float, beta2: float, decay: float) -> None:
        self.weight, self.shape = weight.ravel().copy(), weight.shape
        self.lr, self.beta1, self.beta2, self.decay = lr, beta1, beta2, decay
        self.mean, self.squares = np.zeros_like(self.weight), np.zeros_like(self.weight)
        self.covariances: list[Array] = [np.zeros((size, size)) for size in weight.shape]
        self.bases: list[Array] = []
        self.steps = 0

    def step(self, gradient: Array, renews: bool) -> None:
        self.steps += 1
        for mode, old in enumerate(self.covariances):
            rows = np.moveaxis(gradient, mode, 0).reshape(self.shape[mode], -1)
            share = 1.0 if self.steps == 1 else 1 - self.beta2
            self.covariances[mode] = old + share * (rows @ rows.T - old)
        if self.steps == 1:
            self.bases = [np.linalg.eigh(covariance)[1][:, ::-1] for covariance in self.covariances]
        turn: Array = np.ones((1, 1))
        for basis in self.bases:
            turn = np.kron(turn, basis)
        flat = gradient.ravel()
        self.mean += (1 - self.beta1) * (flat - self.mean)
        self.squares += (1 - self.beta2) * ((turn.T @ flat) ** 2 - self.squares)
        spread = np.sqrt(self.squares / (1 - self.beta2**self.steps)) + 1e-8
        update = turn @ (turn.T @ self.mean / (1 - self.beta1**self.steps) / spread)
        self.weight = self.weight * (1 - self.lr * self.decay) - self.lr * update
        if renews:
            pairs = zip(self.covariances, self.bases, strict=True)
            self.bases = [self._renewed(covariance, basis) for covariance, basis in pairs]
            new: Array = np.ones((1, 1))
            for basis in self.bases:
                new = np.kron(new, basis)
            self.squares = np.square(new.T @ turn) @ self.squares

    @staticmethod
    def _renewed(covariance: Array, basis: Array) -> Array:
        eigenvalues = np.diag(basis.T @ covariance @ basis)
        return np.linalg.qr(covariance @ basis[:, np.argsort(-eigenvalues)])[0]


def test_steps_are_those_of_kronecker_matrices_in_float64() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(4, 3, 6))
    reference = Reference(weight, lr=0.01, beta1=0.9, beta2=0.95, decay=0.1)
    # float32 would not bear the comparison: small eigenvalues decide directions.
    parameter = nn.Parameter(torch.from_numpy(weight.reshape(4, 3, 2, 3)))
    optimizer = Soap([parameter], 0.01, (0.9, 0.95), 0.1, renew_every=10)
    for step in range(1, 25):
        gradient = random.normal(size=weight.shape) * np.exp(random.normal(size=(1, 3, 1)))
        parameter.grad = torch.from_numpy(gradient.reshape(4, 3, 2, 3))
        optimizer.step()
        reference.step(gradient, renews=step in (1, 2, 4, 7, 10, 20))
        np.testing.assert_allclose(
            parameter.detach().numpy().ravel(), reference.weight, rtol=0, atol=1e-9
        )


def test_parameters_of_one_shape_move_as_each_would_alone() -> None:
    """They are updated together. One of them has no gradient for a while and then stays where it
    is. Half way all of it is loaded into an optimizer that has made no step, later into itself."""
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(6, 4, 3, 3)) for _ in range(3)]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in together]
    optimizer = Soap(together, 0.01, (0.9, 0.95), 0.1)
    others = [Soap([parameter], 0.01, (0.9, 0.95), 0.1) for parameter in alone]
    for step in range(12):
        if step == 6:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = Soap(together, 0.01, (0.9, 0.95), 0.1)
            optimizer.load_state_dict(saved)
        if step == 9:
            # A state of before, loaded into an optimizer that has batches of its own.
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for index, (own, other) in enumerate(zip(together, alone, strict=True)):
            own.grad = None if index == 1 and step in (3, 4) else torch.randn_like(own)
            other.grad = None if own.grad is None else own.grad.clone()
        optimizer.step()
        for each in others:
            each.step()
        for own, other in zip(together, alone, strict=True):
            torch.testing.assert_close(own, other)
    assert [int(optimizer.state[parameter]["step"]) for parameter in together] == [12, 10, 12]


def test_what_has_no_basis_moves_as_by_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias, and a matrix with more channels than bases are made for."""
    monkeypatch.setattr(soap, "MOST_CHANNELS", 4)
    torch.manual_seed(0)
    first = [nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(8, 5))]
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    ours = Soap(first, 0.01, (0.9, 0.95), 0.1)
    theirs = torch.optim.AdamW(second, 0.01, (0.9, 0.95), weight_decay=0.1)
    for _ in range(12):
        for own, other in zip(first, second, strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        ours.step()
        theirs.step()
    for own, other in zip(first, second, strict=True):
        torch.testing.assert_close(own, other)


def test_no_step_is_larger_than_the_learning_rate_has_it() -> None:
    """While the first gradients, of rank one each, turn the bases most."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(32, 32))
    optimizer = Soap([parameter], lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)
    moved = []
    for _ in range(12):
        before = parameter.detach().clone()
        parameter.grad = torch.outer(torch.randn(32), torch.randn(32))
        optimizer.step()
        moved.append(float((parameter.detach() - before).norm()))
    # Where every weight moves by 1 it is 32. The very first is made of rounding for the most part.
    assert max(moved[1:]) < 32


def test_correlated_inputs_do_not_slow_it_down() -> None:
    """A linear layer behind channels that are nearly the same, each optimizer at the best of its
    learning rates: as many steps leave a much smaller error."""

    def train(kind: type[Soap] | type[torch.optim.AdamW], rate: float) -> float:
        torch.manual_seed(0)
        layer, wanted = nn.Linear(16, 16, bias=False), torch.randn(16, 16)
        optimizer = kind(layer.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        for step in range(200):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / 200)
            # What the channels share is ten times what tells them apart.
            x = torch.randn(32, 16) * 0.1 + torch.randn(32, 1)
            loss = (layer(x) - x @ wanted.T).square().mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return float(loss.detach())

    def best(kind: type[Soap] | type[torch.optim.AdamW]) -> float:
        return min(train(kind, rate) for rate in (0.01, 0.03, 0.1, 0.3))

    assert best(Soap) < 0.2 * best(torch.optim.AdamW)


def test_soap_needs_whole_gradients() -> None:
    with pytest.raises(ValueError, match=r"optim\.zero_stage is 1"):
        build_optimizer([], OptimConfig(optimizer="soap", zero_stage=1))
