"""Averaged weights: how fast they follow, and that a skipped update leaves them alone."""

import pytest
import torch
from torch import Tensor, nn

from taehv.training import ema
from taehv.training.ema import Ema

UPDATE, SKIP = torch.tensor(0.0), torch.tensor(1.0)


def _wander(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))


def _weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()]).double()


def test_it_follows_the_recursion_in_float64() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 6))
    average = Ema(network, decay=0.5)
    expected = _weights(network)
    for step in range(30):
        _wander(network)
        average.update(network, step, UPDATE)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * _weights(network)
    torch.testing.assert_close(_weights(average.network), expected, rtol=1e-5, atol=1e-5)


def test_a_skipped_update_moves_nothing() -> None:
    network = nn.Linear(5, 6)
    average = Ema(network, decay=0.9)
    before = _weights(average.network)
    _wander(network)
    average.update(network, 3, SKIP)
    assert torch.equal(_weights(average.network), before)
    average.update(network, 3, UPDATE)
    assert not torch.equal(_weights(average.network), before)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_weight_on_the_device_gives_the_same_average_as_a_python_number(weight: float) -> None:
    torch.manual_seed(1)
    averages = [torch.randn(7, 5), torch.randn(3)]
    targets = [torch.randn_like(a) for a in averages]
    expected = [
        torch.lerp(a.double(), t.double(), weight) for a, t in zip(averages, targets, strict=True)
    ]
    ema._lerp(averages, targets, torch.tensor(weight))
    for found, wanted in zip(averages, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
