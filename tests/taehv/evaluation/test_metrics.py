"""Metrics and baselines against float64 NumPy, written out from their formulas."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from taehv.evaluation import baselines, metrics

Array = NDArray[np.float64]
CLIPS = 3


@pytest.fixture
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    """Moving waves and a blurred, noisy copy that leaves [0, 1] here and there."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:20, :27]
    original = np.empty((CLIPS, 4, 3, 20, 27))
    for n, t, c in np.ndindex(CLIPS, 4, 3):
        original[n, t, c] = 0.5 + 0.5 * np.sin(x / (2 + n) + y / (3 + c) + t)
    strength = 0.03 * np.arange(1, 1 + CLIPS)[:, None, None, None, None]
    noise = strength * random.normal(size=original.shape)
    reconstructed = 0.9 * original + 0.06 + noise
    assert reconstructed.max() > 1
    return torch.from_numpy(original).float(), torch.from_numpy(reconstructed).float()


def arrays(clips: tuple[torch.Tensor, torch.Tensor]) -> tuple[Array, Array]:
    """The two as the reference sees them: float64, the reconstruction clamped."""
    original, reconstructed = (clip.double().numpy() for clip in clips)
    return np.clip(original, 0, 1), np.clip(reconstructed, 0, 1)


def ssim_of_plane(a: Array, b: Array) -> float:
    """Wang et al. 2004, one window at a time, about every pixel."""
    a, b = (np.pad(plane, 5, mode="reflect") for plane in (a, b))
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            p, q = (plane[top : top + 11, left : left + 11] for plane in (a, b))
            mean_p, mean_q = (window * p).sum(), (window * q).sum()
            var_p = (window * (p - mean_p) ** 2).sum()
            var_q = (window * (q - mean_q) ** 2).sum()
            covariance = (window * (p - mean_p) * (q - mean_q)).sum()
            values.append(
                (2 * mean_p * mean_q + c1)
                * (2 * covariance + c2)
                / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
            )
    return float(np.mean(values))


def laplacian_energy(clip: Array) -> float:
    inner = clip[..., 1:-1, 1:-1]
    across = clip[..., 1:-1, :-2] + clip[..., 1:-1, 2:]
    along = clip[..., :-2, 1:-1] + clip[..., 2:, 1:-1]
    return float(np.mean((across + along - 4 * inner) ** 2))


def test_mse(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = arrays(clips)
    expected = [np.mean((a[n] - b[n]) ** 2) for n in range(CLIPS)]
    np.testing.assert_allclose(metrics.mse(*clips), expected, rtol=1e-5)


def test_psnr_is_of_the_clip(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = arrays(clips)
    expected = [20 * np.log10(1 / np.sqrt(np.mean((a[n] - b[n]) ** 2))) for n in range(CLIPS)]
    np.testing.assert_allclose(metrics.psnr(*clips), expected, rtol=1e-5)


def test_ssim(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = arrays(clips)
    expected = [
        np.mean([ssim_of_plane(a[n, t, c], b[n, t, c]) for t, c in np.ndindex(4, 3)])
        for n in range(CLIPS)
    ]
    np.testing.assert_allclose(metrics.ssim(*clips), expected, atol=1e-5)


def test_temporal(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = arrays(clips)
    expected = [np.mean((np.diff(a[n], axis=0) - np.diff(b[n], axis=0)) ** 2) for n in range(CLIPS)]
    np.testing.assert_allclose(metrics.temporal(*clips), expected, rtol=1e-5)


def test_temporal_is_blind_to_what_stands_still(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    dark = clips[0] * 0.5
    assert metrics.temporal(dark, dark + 0.25).max() < 1e-12
    assert torch.equal(metrics.temporal(clips[0][:, :1], clips[1][:, :1]), torch.zeros(CLIPS))


def test_sharpness(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = arrays(clips)
    expected = [laplacian_energy(b[n]) / laplacian_energy(a[n]) for n in range(CLIPS)]
    np.testing.assert_allclose(metrics.sharpness(*clips), expected, rtol=1e-3)


def test_sharpness_tells_blur_from_noise(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    original = clips[0]
    blurred = original.clone()
    blurred[..., 1:-1] = (original[..., :-2] + original[..., 1:-1] + original[..., 2:]) / 3
    assert metrics.sharpness(original, blurred).max() < 0.95
    assert metrics.sharpness(original, clips[1]).min() > 1.1


def test_sharpness_of_a_flat_original_is_finite() -> None:
    flat = torch.full((1, 2, 3, 16, 16), 0.4)
    assert metrics.sharpness(flat, flat).item() == 1
    noisy = flat + 0.1 * torch.rand(flat.shape, generator=torch.Generator().manual_seed(0))
    assert 100 < metrics.sharpness(flat, noisy).item() < float("inf")


def test_identical_clips(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores = metrics.score_clips(clips[0], clips[0])
    expected = {"mse": 0.0, "psnr": 100.0, "ssim": 1.0, "temporal": 0.0, "sharpness": 1.0}
    measured = {"laplacian_error": 0.0}
    assert scores.keys() == expected.keys() | measured.keys() | {"laplacian", "spread"}
    for name, value in (expected | measured).items():
        torch.testing.assert_close(scores[name], torch.full((CLIPS,), value))


def test_rounding_to_eight_bits_stays_below_the_cap(
    clips: tuple[torch.Tensor, torch.Tensor],
) -> None:
    rounded = (clips[0] * 255).round() / 255
    assert 55 < metrics.psnr(clips[0], rounded).min() <= metrics.psnr(clips[0], rounded).max() < 65


def test_every_clip_is_scored_alone(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    together = metrics.score_clips(*clips)
    for n in range(CLIPS):
        alone = metrics.score_clips(clips[0][n : n + 1], clips[1][n : n + 1])
        for name, value in alone.items():
            torch.testing.assert_close(value, together[name][n : n + 1])


def test_scores_see_clamped_frames(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    loose = metrics.score_clips(*clips)
    clamped = metrics.score_clips(clips[0], clips[1].clamp(0, 1))
    for name in loose:
        assert torch.equal(loose[name], clamped[name])


def test_half_precision_is_raised(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    half = clips[1].bfloat16()
    for name, value in metrics.score_clips(clips[0], half).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, metrics.score_clips(clips[0], half.float())[name])


def test_not_a_number_stays_one(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    clips[1][0, 1, 0, 10, 10] = float("nan")
    scores = metrics.score_clips(*clips)
    for name in scores.keys() - {"laplacian", "spread"}:
        assert scores[name].isnan().tolist() == [True, False, False]
    pooled = metrics.pool([{name: float(scores[name][n]) for name in scores} for n in range(CLIPS)])
    assert {name for name, value in pooled.items() if value == value} == {"flat_clips"}


def test_scores_are_pooled_over_clips(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Against float64 over all values of all clips at once."""
    x, y = clips[0].clone(), clips[1].clamp(0, 1)
    x[1], y[1] = 0.5, 0.501
    scores = metrics.score_clips(x, y)
    pooled = metrics.pool([{name: float(scores[name][n]) for name in scores} for n in range(CLIPS)])
    x64, y64 = x.double().numpy(), y.double().numpy()
    assert pooled["psnr"] == pytest.approx(-10 * np.log10(((x64 - y64) ** 2).mean()), abs=1e-4)
    assert pooled["psnr"] < pooled["psnr_mean"] - 5
    assert pooled["psnr_mean"] == pytest.approx(float(scores["psnr"].mean()), abs=1e-5)
    error, own = (
        (
            -4 * v[..., 1:-1, 1:-1]
            + v[..., 2:, 1:-1]
            + v[..., :-2, 1:-1]
            + v[..., 1:-1, 2:]
            + v[..., 1:-1, :-2]
        )
        for v in (x64 - y64, x64)
    )
    assert pooled["detail"] == pytest.approx(1 - (error**2).sum() / (own**2).sum(), rel=1e-4)
    assert pooled["flat_clips"] == pytest.approx(1 / CLIPS)


def test_detail_is_right_at_1_none_at_0_and_negative_for_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 3, 32, 32, generator=generator)
    blurred = x.mean(dim=(-1, -2), keepdim=True).expand_as(x)
    noisy = blurred + 0.3 * torch.randn(x.shape, generator=generator)

    def detail(y: torch.Tensor) -> float:
        return metrics.pool([{k: float(v[0]) for k, v in metrics.score_clips(x, y).items()}])[
            "detail"
        ]

    assert detail(x) == 1
    assert detail(blurred) == pytest.approx(0, abs=1e-6)
    assert detail(noisy) < -0.5


def test_what_is_no_pair_is_refused() -> None:
    frames = torch.rand(1, 4, 3, 16, 16)
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.mse(frames, frames[:, 1:])
    with pytest.raises(ValueError, match="NTCHW"):
        metrics.mse(frames[0], frames[0])
    with pytest.raises(ValueError, match="uint8"):
        metrics.mse(frames.byte(), frames.byte())
    with pytest.raises(ValueError, match="at least 11x11 pixels, got 16x10"):
        metrics.ssim(frames[..., :10], frames[..., :10])


def test_mean_colour(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    original = clips[0].double().numpy()
    expected = np.empty_like(original)
    for n, t, c in np.ndindex(CLIPS, 4, 3):
        expected[n, t, c] = original[n, t, c].mean()
    np.testing.assert_allclose(baselines.mean_colour(clips[0]), expected, rtol=1e-5)


def cubic(distance: Array) -> Array:
    """The interpolation kernel of Keys 1981 with a = -0.75, as PyTorch and OpenCV have it."""
    a, d = -0.75, np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def test_down_and_up(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    frames = torch.nn.functional.pad(clips[0].flatten(0, 1), (0, 5, 0, 4), mode="reflect")
    original = frames.double().numpy()  # 24x32 pixels: 3x4 blocks
    small = original.reshape(-1, 3, 3, 8, 4, 8).mean(axis=(3, 5))

    def weights(length: int) -> Array:
        place = (np.arange(length) + 0.5) / 8 - 0.5
        matrix = np.zeros((length, length // 8))
        for source in range(-2, length // 8 + 2):
            # Beyond the border the outermost pixel goes on.
            matrix[:, np.clip(source, 0, length // 8 - 1)] += cubic(place - source)
        return matrix

    expected = np.clip(weights(24) @ small @ weights(32).T, 0, 1)
    result = baselines.down_and_up(frames.reshape(CLIPS, 4, 3, 24, 32))
    np.testing.assert_allclose(result.flatten(0, 1), expected, atol=1e-5)


def test_down_and_up_stays_in_range_and_wants_whole_blocks() -> None:
    step = torch.zeros(1, 1, 3, 32, 32)
    step[..., 16:] = 1
    result = baselines.down_and_up(step)
    assert result.min() == 0
    assert result.max() == 1
    with pytest.raises(ValueError, match="20x32 pixels cannot be averaged in blocks of 8"):
        baselines.down_and_up(step[..., :20, :])
