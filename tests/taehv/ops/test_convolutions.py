"""Fused convolutions against the layers one by one, in float64, with all their gradients."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taehv.ops import convolution_kernels
from taehv.ops.convolutions import convolve_relu, relu_convolution_of_two_steps
from taehv.ops.fused import convolve_steps_together, pool_and_convolve, stack_steps
from taehv.ops.group_norm import all_at_once, group_by_group


@pytest.fixture(params=["plain", "as on a GPU"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second with cuDNN's two convolutions stood in for by formulas: who calls them is real."""
    if request.param == "plain":
        return

    def add_relu(
        x: Tensor,
        weight: Tensor,
        added: Tensor,
        factor: float,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        *_: object,
    ) -> Tensor:
        assert added.is_contiguous(memory_format=torch.channels_last)
        assert factor == 1.0
        # A NaN of fresh memory would come out.
        out: Tensor = F.relu(F.conv2d(x, weight, bias, stride, padding) + added)
        return out

    def convolve_into(out: Tensor, x: Tensor, weight: Tensor, padding: int) -> None:
        out.copy_(F.conv2d(x, weight, padding=padding))

    def dirty_room(*arguments: Any) -> Tensor:
        return room(*arguments).fill_(torch.nan)

    room = convolution_kernels._empty_output
    monkeypatch.setattr(convolution_kernels, "_has_cudnn", lambda x, weight: True)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    monkeypatch.setattr(convolution_kernels, "_convolve_into", convolve_into)
    monkeypatch.setattr(convolution_kernels, "_empty_output", dirty_room)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def same_with_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Equal values, and equal gradients of a random weighting of them."""
    assert torch.allclose(found, expected, atol=1e-12)
    weights = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("adds", [False, True])
def test_a_convolution_with_a_sum_and_relu(stride: int, adds: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, stride, padding=1).double()
    x = draw(4, 3, 8, 6)
    added = None
    if adds:
        added = draw(4, 5, 8 // stride, 6 // stride)
        added = added.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    inputs = [x, *conv.parameters(), *([added] if added is not None else [])]
    expected = F.relu(conv(x) + (added if added is not None else 0))
    same_with_gradients(convolve_relu(conv, x, added), expected, inputs)
    with torch.no_grad():
        assert torch.allclose(convolve_relu(conv, x, added), expected, atol=1e-12)


def test_no_gradient_is_made_that_nobody_wants() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1).double().requires_grad_(False)
    x = draw(2, 3, 4, 4)
    torch.autograd.backward(convolve_relu(conv, x).sum())
    assert x.grad is not None
    assert all(p.grad is None for p in conv.parameters())


def test_a_bias_may_train_where_its_weight_does_not() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    conv.weight.requires_grad_(False)
    assert conv.bias is not None
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    same_with_gradients(convolve_relu(conv, x), F.relu(conv(x)), [conv.bias])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("has_past", [False, True])
def test_two_steps_are_the_convolution_of_both(clips: int, steps: int, has_past: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 5, 3, padding=1).double()
    x = draw(steps * clips, 3, 6, 4)
    past = draw(clips, 3, 6, 4) if has_past else None
    before = torch.cat([torch.zeros_like(x[:clips]) if past is None else past, x[:-clips]])
    expected = F.relu(conv(torch.cat([x, before], 1)))
    inputs = [x, *conv.parameters(), *([past] if past is not None else [])]
    found = relu_convolution_of_two_steps(conv, x, past, clips)
    same_with_gradients(found, expected, inputs)
    with torch.no_grad():
        again = relu_convolution_of_two_steps(conv, x, past, clips)
    assert torch.allclose(again, expected, atol=1e-12)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("height", [12, 1])
@pytest.mark.parametrize("has_past", [False, True])
def test_what_libraries_fuse_is_what_float64_says(
    dtype: torch.dtype, error: float, layout: torch.memory_format, height: int, has_past: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 8, 3, padding=1)
    width = 10 if height > 1 else 1
    x = torch.randn(6, 8, height, width)
    past = torch.randn(2, 8, height, width) if has_past else None
    exact, rounded = copy.deepcopy(conv).double(), copy.deepcopy(conv)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = relu_convolution_of_two_steps(rounded, x.to(memory_format=layout), past, clips=2)
        again = convolve_relu(halved(rounded), x.to(memory_format=layout), found)
        with torch.no_grad():
            unseen = relu_convolution_of_two_steps(
                rounded, x.to(memory_format=layout), past, clips=2
            )
    assert found.dtype == dtype
    assert torch.equal(found, unseen)
    twice = None if past is None else past.double()
    expected = relu_convolution_of_two_steps(exact, x.double(), twice, clips=2)
    summed = convolve_relu(halved(exact), x.double(), expected)
    for ours, theirs in ((found, expected), (again, summed)):
        assert (ours.double() - theirs).abs().max() < error * theirs.abs().max()
    given, wanted = (
        torch.autograd.grad(out.double().square().sum(), list(network.parameters()))
        for out, network in ((found, rounded), (expected, exact))
    )
    for ours, theirs in zip(given, wanted, strict=True):
        assert (ours.double() - theirs).abs().max() < error * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learns", [True, False])
def test_what_is_not_a_number_stays_so(dtype: torch.dtype, learns: bool) -> None:
    """Some libraries' fused ReLU would make 0 of it."""
    conv = nn.Conv2d(16, 8, 3, padding=1)
    x = torch.randn(4, 8, 6, 6).to(memory_format=torch.channels_last)
    x[0, 0, 2, 2] = torch.nan
    half = halved(conv)
    autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with torch.set_grad_enabled(learns), autocast:
        y = relu_convolution_of_two_steps(conv, x, None, clips=2)
        z = convolve_relu(half, x, torch.zeros_like(y))
    # All that the pixel reaches; in the first case also as the step before.
    for out, rows in ((y, [0, 2]), (z, [0])):
        reached = out.isnan().flatten(1).any(1)
        assert reached.nonzero().flatten().tolist() == rows
        assert out[rows][:, :, 1:4, 1:4].isnan().all()


def halved(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution of the present alone."""
    half = nn.Conv2d(8, 8, 3, padding=1).to(conv.weight.dtype)
    half.load_state_dict({"weight": conv.weight[:, :8], "bias": conv.bias})
    return half


@pytest.mark.parametrize("channels", [3, 4, 12])
@pytest.mark.parametrize(("clips", "stride"), [(1, 2), (3, 2), (2, 1)])
def test_steps_together_then_pooled_are_steps_apart(channels: int, clips: int, stride: int) -> None:
    """Against the layers as they stand: frames apart, stacked clip by clip, 1x1, then 3x3."""
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 5, 3, padding=1).double()
    pool = nn.Conv2d(stride * 5, 5, 1, bias=False).double()
    down = nn.Conv2d(5, 4, 3, stride=2, padding=1, bias=False).double()
    steps = 2 * stride
    x = draw(steps * clips, channels, 6, 4)
    apart = F.relu(conv(x)).view(steps, clips, 5, 6, 4)
    stacked = torch.stack(
        [
            torch.cat([apart[stride * step + k, clip] for k in range(stride)])
            for step in range(2)
            for clip in range(clips)
        ]
    )
    expected = down(pool(stacked))
    together = convolve_steps_together(conv, x, clips, stride)
    assert torch.allclose(together, stacked, atol=1e-12)
    assert torch.equal(stack_steps(apart.flatten(0, 1), clips, stride), stacked)
    inputs = [x, *conv.parameters(), *pool.parameters(), *down.parameters()]
    same_with_gradients(pool_and_convolve(pool, down, together), expected, inputs)


@pytest.mark.parametrize("groups", [1, 3])
def test_both_ways_to_normalise_groups_are_one(groups: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = draw(6, 4, 5, 3), draw(4), draw(4)
    ways = [way(x, weight, bias, groups, 1e-5) for way in (all_at_once, group_by_group)]
    for found, expected in zip(*(statistics for _, *statistics in ways), strict=True):
        assert torch.allclose(found, expected, atol=1e-12)
        assert not found.requires_grad
    same_with_gradients(ways[0][0], ways[1][0], [x, weight, bias])
