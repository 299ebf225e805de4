"""Seraena's patch discriminator, conditioned on the latents (source: madebyollin/seraena)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taehv import distributed

SCORE_STRIDE = 8
"""Every score map has one score per 8x8 pixels."""


class GroupBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose training statistics are those of fixed groups of the batch.

    A group is normalised by its own mean and variance. The running statistics move once per step,
    by the average over the groups of ALL workers (`commit_statistics`). Neither depends on how
    groups are shared out among workers and passes, and no worker waits for another within a layer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.group_weights: Sequence[float] = (1.0,)
        """Weight of each group of the batch in the running statistics; 0 for surplus groups."""
        # Not state: the sums only live from a step's first pass to `commit_statistics`.
        self.register_buffer("sums", torch.zeros(2, channels), persistent=False)
        self.sums: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        outputs = []
        for group, weight in zip(
            input.chunk(len(self.group_weights)), self.group_weights, strict=True
        ):
            # momentum 1 makes the functional form write this group's own statistics.
            mean, variance = torch.zeros_like(self.sums[0]), torch.zeros_like(self.sums[1])
            outputs.append(
                F.batch_norm(
                    group, mean, variance, self.weight, self.bias, True, momentum=1.0, eps=self.eps
                )
            )
            self.sums.add_(torch.stack([mean, variance]), alpha=weight)
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


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
                nn.ReLU(inplace=True),
            )
            for n_in, n_out, (size, stride) in zip(inputs, widths, self.KERNELS, strict=True)
        )
        self.projections = nn.ModuleList(nn.Conv2d(n, 1, 1, bias=False) for n in widths)

    def forward(
        self, images: Tensor, context: Tensor, group_weights: Sequence[float] = (1.0,)
    ) -> Tensor:
        """
        Args:
            images: [N, image_channels, H, W] in [0, 1]; H and W are multiples of 8.
            context: [N, context_channels, h, w]; resized (nearest) to the images.
            group_weights: one weight per equal group of the batch; see `GroupBatchNorm2d`.

        Returns:
            [N, 6, H/8, W/8], one map per block, at least float32.
        """
        for norm in batch_norms(self):
            norm.group_weights = group_weights
        height, width = images.shape[-2:]
        context = F.interpolate(context.to(images.dtype), size=(height, width), mode="nearest")
        x = torch.cat([images * 2 - 1, context], 1)
        # Convolutions and norms are faster on it, and keep it.
        x = x.contiguous(memory_format=torch.channels_last)
        size = (height // SCORE_STRIDE, width // SCORE_STRIDE)
        scores = []
        for block, projection in zip(self.blocks, self.projections, strict=True):
            x = block(x)
            score = projection(x)
            at_least_float32 = torch.promote_types(score.dtype, torch.float32)
            scores.append(F.adaptive_avg_pool2d(score.to(at_least_float32), size))
        return torch.cat(scores, 1)


def batch_norms(discriminator: nn.Module) -> list[GroupBatchNorm2d]:
    return [m for m in discriminator.modules() if isinstance(m, GroupBatchNorm2d)]


@torch.no_grad()
def commit_statistics(discriminator: nn.Module, groups: int) -> None:
    """Move the running statistics by the average over this step's `groups` groups of all workers.

    A collective: every worker calls it once a step.
    """
    norms = batch_norms(discriminator)
    sums = distributed.sum_over_workers(torch.cat([norm.sums.flatten() for norm in norms]))
    parts = torch.split(sums, [norm.sums.numel() for norm in norms])
    for norm, part in zip(norms, parts, strict=True):
        mean, variance = (part / groups).view_as(norm.sums)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.momentum is not None
        assert norm.num_batches_tracked is not None
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance, norm.momentum)
        norm.num_batches_tracked.add_(1)
        norm.sums.zero_()
