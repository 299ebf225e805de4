"""Seraena's patch discriminator, conditioned on the latents (source: madebyollin/seraena)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taehv import distributed
from taehv.ops.convolutions import relu_convolution, to_autocast_dtype
from taehv.ops.group_norm import relu_group_norm

SCORE_STRIDE = 8
"""Every score map has one score per 8x8 pixels."""


class GroupBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm, with a ReLU, whose training statistics are those of fixed groups of the batch.

    A group is normalised by its own mean and variance. The running statistics move once per step,
    by the average over the groups of ALL workers (`commit_statistics`). Neither depends on how
    groups are shared out among workers and passes, and no worker waits for another within a layer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        # Not persistent: the sums live from a step's first pass to `commit_statistics`.
        self.register_buffer("sums", torch.zeros(2, channels), persistent=False)
        self.sums: Tensor

    def forward(self, input: Tensor, group_weights: Tensor | None = None) -> Tensor:
        """Normalise [N, C, H, W], then ReLU, in training mode.

        Args:
            input: of equal groups, side by side.
            group_weights: [groups], each group's weight in the running statistics: 0 for surplus
                ones. None: it is all one group.
        """
        if group_weights is None:
            group_weights = torch.ones(1, device=input.device)
        out, *statistics = relu_group_norm(
            input, self.weight, self.bias, len(group_weights), self.eps
        )
        weighted = torch.stack(statistics) * group_weights.to(self.sums.dtype).view(1, -1, 1)
        self.sums += weighted.sum(1)
        return out

    def folded_into(self, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """Weight and bias of `conv` with this norm folded in, by the running statistics, without
        gradients, in the dtype that convolutions take."""
        assert self.running_mean is not None
        assert self.running_var is not None
        with torch.no_grad():
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            bias = torch.addcmul(self.bias, self.running_mean, scale, value=-1)
            return to_autocast_dtype(conv.weight * scale.view(-1, 1, 1, 1)), to_autocast_dtype(bias)


Block = tuple[nn.Conv2d, GroupBatchNorm2d]


class Discriminator(nn.Module):
    """Scores patches of grouped frames: -1 for real, +1 for fake.

    Six blocks of convolution, BatchNorm, ReLU; each has its own 1x1 projection to one score map.

    Args:
        image_channels: 3 * frames in a group.
        context_channels: the latents' channels.
        widths: the six blocks' output channels.
    """

    KERNELS = ((3, 1), (4, 2), (4, 2), (4, 2), (3, 1), (3, 1))  # size, stride

    def __init__(self, image_channels: int, context_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        inputs = (image_channels + context_channels, *widths[:-1])
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(n_in, n_out, size, stride, padding=1, bias=False),
                GroupBatchNorm2d(n_out),
            )
            for n_in, n_out, (size, stride) in zip(inputs, widths, self.KERNELS, strict=True)
        )
        self.projections = nn.ModuleList(nn.Conv2d(n, 1, 1, bias=False) for n in widths)

    def forward(
        self, images: Tensor, context: Tensor, group_weights: Tensor | None = None
    ) -> Tensor:
        """Score maps of the images; in evaluation mode those of `frozen`.

        Args:
            images: [N, image_channels, H, W] in [0, 1]; H and W are multiples of 8.
            context: [N, context_channels, h, w]; resized (nearest) to the images.
            group_weights: one weight per equal group of the batch; see `GroupBatchNorm2d`.

        Returns [N, 6, H/8, W/8], one map per block, at least float32.
        """
        if not self.training:
            return self.frozen()(images, context)

        def run(block: Block, x: Tensor) -> Tensor:
            conv, norm = block
            normalised: Tensor = norm(conv(x), group_weights)
            return normalised

        return self._scores([partial(run, block) for block in self._blocks()], images, context)

    def frozen(self) -> Callable[[Tensor, Tensor], Tensor]:
        """A function from images and context to scores that uses the running statistics and the
        present weights as constants, so that only the inputs receive gradients."""
        constants = [(conv, *norm.folded_into(conv)) for conv, norm in self._blocks()]

        def run(conv: nn.Conv2d, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
            stride, padding = conv.stride[0], int(conv.padding[0])
            return relu_convolution(x, weight, bias, stride=stride, padding=padding)

        return partial(self._scores, [partial(run, *constant) for constant in constants])

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, nn.Sequential)
            conv, norm = block
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, GroupBatchNorm2d)
            yield conv, norm

    def _scores(
        self, blocks: Sequence[Callable[[Tensor], Tensor]], images: Tensor, context: Tensor
    ) -> Tensor:
        height, width = images.shape[-2:]
        size = (height // SCORE_STRIDE, width // SCORE_STRIDE)
        x = _concatenate(images * 2 - 1, context)
        scores = []
        for block, projection in zip(blocks, self.projections, strict=True):
            x = block(x)
            score = projection(x)
            at_least_float32 = torch.promote_types(score.dtype, torch.float32)
            scores.append(F.adaptive_avg_pool2d(score.to(at_least_float32), size))
        return torch.cat(scores, 1)


def _concatenate(images: Tensor, context: Tensor) -> Tensor:
    """Both along channels, the context resized, in the dtype and the memory format that
    convolutions take."""
    images = to_autocast_dtype(images)
    resized = F.interpolate(context.to(images.dtype), size=images.shape[-2:], mode="nearest")
    parts = [part.contiguous(memory_format=torch.channels_last) for part in (images, resized)]
    return torch.cat(parts, 1)


def batch_norms(discriminator: nn.Module) -> list[GroupBatchNorm2d]:
    return [m for m in discriminator.modules() if isinstance(m, GroupBatchNorm2d)]


@torch.no_grad()
def commit_statistics(
    discriminator: nn.Module, groups: int, skip_update: Tensor | None = None
) -> None:
    """Update the running statistics by the average over this step's `groups` groups of all
    workers, unless the scalar `skip_update` is 1. A collective: once a step."""
    norms = batch_norms(discriminator)
    sums = distributed.sum_over_workers(torch.cat([norm.sums.flatten() for norm in norms]))
    running, counts = [], []
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        running += [norm.running_mean, norm.running_var]
        counts.append(norm.num_batches_tracked)
    averages, step = sums / groups, torch.ones_like(counts[0])
    if skip_update is not None:
        averages = torch.where(skip_update > 0, torch.cat(running), averages)
        step -= skip_update.to(step.dtype)
    momentum = norms[0].momentum
    assert momentum is not None
    torch._foreach_lerp_(running, torch.split(averages, [r.numel() for r in running]), momentum)
    torch._foreach_add_(counts, [step] * len(counts))
    torch._foreach_zero_([norm.sums for norm in norms])
