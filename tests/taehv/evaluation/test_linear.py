"""The linear limit against numpy's decomposition of the blocks, cut out one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from taehv.evaluation.linear import FEWEST_BLOCKS, BlockShape, LinearFit, LinearLimit

Blocks = NDArray[np.float64]


def smooth_clips(clips: int, frames: int, size: int, seed: int = 0) -> torch.Tensor:
    """NTCHW in [0, 1]: noise, each of whose neighbours are alike."""
    noise = torch.rand(clips, frames, 3, size, size, generator=torch.Generator().manual_seed(seed))
    blurred = torch.nn.functional.avg_pool2d(noise.flatten(0, 1), 5, 1, 2)
    return (blurred.reshape(noise.shape) * 3 - 1).clamp(0, 1)


def blocks_of(clips: torch.Tensor, time: int, space: int) -> Blocks:
    """[B, D], cut by loops; the last frame stands for those that are missing."""
    blocks = []
    for clip in clips.double().numpy():
        while len(clip) % time:
            clip = np.concatenate([clip, clip[-1:]])
        for t in range(0, len(clip), time):
            for y in range(0, clip.shape[2], space):
                for x in range(0, clip.shape[3], space):
                    cut = clip[t : t + time, :, y : y + space, x : x + space]
                    blocks.append(cut.ravel())
    return np.stack(blocks)


@pytest.mark.parametrize(("time", "space", "frames"), [(4, 8, 9), (1, 16, 3), (8, 4, 5)])
def test_it_is_the_principal_components_of_all_blocks(time: int, space: int, frames: int) -> None:
    clips = smooth_clips(24, frames, 64)
    fit = LinearFit(BlockShape(time, space), coefficients=16)
    for part in torch.split(clips, 7):
        fit.add(part)
    limit = fit.result()
    assert limit is not None
    assert limit.label == "linear, 16 coefficients"

    blocks = blocks_of(clips, time, space)
    mean = blocks.mean(0)
    components = np.linalg.svd(blocks - mean, full_matrices=False)[2][:16]
    np.testing.assert_allclose(limit.mean, mean, atol=1e-5)
    # Components are unique but for their signs, and for turns among those of equal variance.
    projector = limit.basis.double().numpy().T @ limit.basis.double().numpy()
    np.testing.assert_allclose(projector, components.T @ components, atol=2e-3)

    held_out = smooth_clips(2, frames, 64, seed=1)
    expected = np.clip(
        (blocks_of(held_out, time, space) - mean) @ components.T @ components + mean, 0, 1
    )
    reconstructed = limit.reconstruct(held_out)
    np.testing.assert_allclose(blocks_of(reconstructed, time, space)[:16], expected[:16], atol=2e-4)
    assert reconstructed.shape == held_out.shape


def test_large_blocks_are_decomposed_at_random_to_the_same_error() -> None:
    clips = smooth_clips(30, 5, 96)
    fit = LinearFit(BlockShape(4, 24), coefficients=8)
    assert fit.block.values > 4096
    for part in torch.split(clips, 5):
        if not fit.is_full:
            fit.add(part)
    limit = fit.result()
    assert limit is not None
    seen = clips[:25]
    blocks = blocks_of(seen, 4, 24)
    centred = blocks - blocks.mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    best = (values[8:] ** 2).sum() / blocks.size
    coded = (blocks - limit.mean.numpy()) @ limit.basis.numpy().T @ limit.basis.numpy()
    error = np.mean((coded + limit.mean.numpy() - blocks) ** 2)
    assert error < 1.1 * best


def test_of_too_few_blocks_there_is_none() -> None:
    fit = LinearFit(BlockShape(4, 8), coefficients=16)
    clips = smooth_clips(FEWEST_BLOCKS * 16 // 16, 4, 32)
    fit.add(clips[:-1])
    assert fit.result() is None
    fit.add(clips[-1:])
    assert fit.result() is not None


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    fit = LinearFit(BlockShape(4, 8), coefficients=4)
    clips = smooth_clips(20, 5, 32)
    fit.add(clips)
    limit = fit.result()
    assert limit is not None
    limit.save(tmp_path / "limit.safetensors")
    loaded = LinearLimit.load(tmp_path / "limit.safetensors")
    assert loaded.block == limit.block
    assert torch.equal(loaded.reconstruct(clips), limit.reconstruct(clips))
