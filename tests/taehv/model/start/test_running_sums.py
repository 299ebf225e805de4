"""Features from which upsampling by copies makes a block, against the layers that do it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taehv.model.start.running_sums import KEEPS, running_sums


def enlarged(features: Tensor, blocks: Tensor) -> Tensor:
    """The best that copies and a 3x3 convolution make of features [N, F, h, w]."""
    copies = F.interpolate(features, scale_factor=2.0, mode="nearest")
    copies = torch.cat([copies, torch.ones_like(copies[:, :1])], 1)
    patches = F.unfold(copies, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    wanted = blocks.flatten(2).transpose(1, 2).flatten(0, 1).double()
    found: Tensor = patches @ torch.linalg.lstsq(patches, wanted, driver="gelsd").solution
    found = found.reshape(len(blocks), -1, blocks.shape[1]).transpose(1, 2)
    return found.reshape(blocks.shape)


def test_a_difference_of_neighbours_is_the_difference_of_halves() -> None:
    """Less what the sum forgets."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(3, 1, 10, 12, generator=generator, dtype=torch.float64).float()
    # Of one channel: its mean, its differences of rows and of columns from two ends, of both from
    # four corners.
    mean, down, up, right, left, *corners = running_sums([blocks], 16)[0].unbind(1)
    rows = (blocks[:, 0, ::2] - blocks[:, 0, 1::2]).unfold(2, 2, 2).sum(3) / 2
    rows = rows - rows.mean()
    sign = torch.sign((down[:, 0] * rows[:, 0]).sum())
    torch.testing.assert_close(down[:, 1:] - KEEPS * down[:, :-1], sign * rows[:, 1:])
    torch.testing.assert_close(up[:, :-1] - KEEPS * up[:, 1:], sign * rows[:, :-1])
    pooled = about_pooled(blocks)
    torch.testing.assert_close(mean, torch.sign((mean * pooled).sum()) * pooled)
    assert not torch.allclose(right, left)
    assert len(corners) == 4


def about_pooled(blocks: Tensor) -> Tensor:
    pooled = 2 * F.avg_pool2d(blocks, 2)[:, 0]
    return pooled - pooled.mean()


@pytest.mark.parametrize("size", [8, 16])
def test_copies_make_more_of_them_than_of_the_blocks_themselves(size: int) -> None:
    """Noise, whose pixels tell nothing of each other: of a block's own pixels, copies give its mean
    and little more."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(32, 1, 2 * size, 2 * size, generator=generator)
    own = F.pixel_unshuffle(blocks, 2)
    sums = running_sums([blocks], 16)[0]
    lost_of_own = (enlarged(own, blocks) - blocks).square().mean() / blocks.square().mean()
    lost_of_sums = (enlarged(sums, blocks) - blocks).square().mean() / blocks.square().mean()
    assert lost_of_sums < 0.4 * lost_of_own


@pytest.mark.parametrize("count", [1, 2, 5, 16, 47])
def test_there_are_no_more_than_asked_for(count: int) -> None:
    blocks = torch.randn(2, 30, 8, 8, generator=torch.Generator().manual_seed(0))
    found = running_sums([blocks], count)[0]
    assert 1 <= found.shape[1] <= count
    assert found.shape[2:] == (4, 4)
    torch.testing.assert_close(found[:, 0].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
