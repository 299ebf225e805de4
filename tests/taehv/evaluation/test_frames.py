"""The frame table against float64 NumPy, FFmpeg's own filter, and the scores of training."""

import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import structural_similarity_index_measure

from taehv.evaluation import metrics
from taehv.evaluation.frames import FrameScorer, FrameTable
from taehv.evaluation.lpips import CONVOLUTIONS, Lpips
from taehv.evaluation.metrics import STILL
from taehv.evaluation.scores import (
    METRICS,
    broken_scores,
    clip_scores,
    pooled_scores,
    value_of,
)
from taehv.evaluation.structure import WEIGHTS, ms_ssim, ssim
from tests.taehv.evaluation.test_metrics import ssim_of_plane

Array = NDArray[np.float64]
Pair = tuple[torch.Tensor, torch.Tensor]


def pair(frames: int = 7, height: int = 32, width: int = 40, seed: int = 0) -> Pair:
    """[T, 3, H, W]: waves, half of them moving, and a noisy copy."""
    random = np.random.default_rng(seed)
    t, c, y, x = np.indices((frames, 3, height, width))
    moving = np.where(x < width // 2, 0, t)
    original = 0.5 + 0.4 * np.sin(x / 3 + y / (4 + c) + moving)
    noisy = 0.95 * original + 0.05 * random.normal(size=original.shape)
    return torch.from_numpy(original).float(), torch.from_numpy(noisy).float()


def table_of(original: torch.Tensor, other: torch.Tensor, pieces: int = 100) -> FrameTable:
    scorer = FrameScorer()
    for first in range(0, len(original), pieces):
        piece = slice(first, first + pieces)
        scorer.add(original[piece], {"other": other[piece]})
    return scorer.tables()["other"]


def test_clip_scores_are_those_of_training() -> None:
    original, other = pair()
    scores = clip_scores(table_of(original, other))
    for name, value in metrics.score_clips(original[None], other[None]).items():
        assert scores[name] == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("pieces", [1, 2, 3, 6])
def test_pieces_make_no_difference(pieces: int) -> None:
    whole, parts = table_of(*pair()), table_of(*pair(), pieces=pieces)
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_several_reconstructions_are_scored_as_each_by_itself() -> None:
    original, other = pair(5, 176, 180)
    others = {"noisy": other, "same": original, "dark": 0.5 * original}
    scorer = FrameScorer()
    for piece in (slice(0, 2), slice(2, 5)):
        scorer.add(original[piece], {name: frames[piece] for name, frames in others.items()})
    for name, table in scorer.tables().items():
        alone = table_of(original, others[name])
        for column in alone:
            np.testing.assert_allclose(table[column], alone[column], rtol=1e-5, atol=1e-7)


def test_differences_between_frames_in_float64() -> None:
    original, other = pair()
    x, y = original.double().numpy(), other.double().clamp(0, 1).numpy()
    dx, dy = np.diff(x, axis=0), np.diff(y, axis=0)
    still = np.abs(dx).max(axis=1) <= STILL
    table = table_of(original, other)
    assert 0.4 < still.mean() < 0.6
    assert all(np.isnan(table[name][0]) for name in ("temporal", "flicker", "motion", "static"))
    np.testing.assert_allclose(table["temporal"][1:], ((dy - dx) ** 2).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(table["motion"][1:], np.abs(dx).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(table["static"][1:], still.mean((1, 2)), rtol=1e-6)
    flicker = [np.abs(dy[t]).mean(0)[still[t]].mean() for t in range(len(dy))]
    np.testing.assert_allclose(table["flicker"][1:], flicker, rtol=1e-4)
    luma = np.einsum("c,tchw->t", [0.299, 0.587, 0.114], x) / x[0, 0].size
    np.testing.assert_allclose(table["brightness"], luma, rtol=1e-5)


def test_flicker_sees_what_pixel_errors_do_not() -> None:
    original = pair()[0][:1].repeat(6, 1, 1, 1)
    sign = torch.tensor([1.0, -1.0] * 3)[:, None, None, None]
    standing, flickering = original + 0.02, original + 0.02 * sign
    scores = [clip_scores(table_of(original, other)) for other in (standing, flickering)]
    assert scores[0]["mse"] == pytest.approx(scores[1]["mse"], rel=0.01)
    assert scores[0]["flicker"] == pytest.approx(0, abs=1e-6)
    assert scores[1]["flicker"] == pytest.approx(0.04, rel=0.05)
    assert scores[1]["flicker_original"] == 0


def test_a_clip_in_which_nothing_stands_still_has_no_flicker() -> None:
    original = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scores = clip_scores(table_of(original, original))
    assert np.isnan(scores["flicker"])
    # The mean over clips passes over it; a broken reconstruction's NaN is not passed over.
    still = clip_scores(table_of(original[:1].repeat(4, 1, 1, 1), original))
    assert pooled_scores([scores, still])["flicker"] == still["flicker"]
    assert np.isnan(pooled_scores([still | {"ssim": np.nan}, still])["ssim"])
    assert broken_scores(scores) == []


def test_which_scores_a_clip_may_lack() -> None:
    """One small frame lacks what needs two, or 176 pixels; a broken one has no score at all."""
    one = pair()[0][:1]
    lacking = clip_scores(table_of(one, one))
    missing = {name for name in METRICS if name in lacking and value_of(lacking, name) is None}
    assert missing == {"ms_ssim", "temporal", "flicker"}
    assert broken_scores(lacking) == []
    original = one.repeat(4, 1, 1, 1)
    broken = clip_scores(table_of(original, torch.full_like(original, torch.nan)))
    assert {*broken_scores(broken)} == METRICS.keys() - {"lpips", "psnr_mean"}


def test_a_score_that_is_infinite_is_broken() -> None:
    assert broken_scores({"mse": 0.01, "psnr": np.inf, "flicker": np.nan}) == ["psnr"]


def blurred(plane: Array) -> Array:
    """Means over all 11x11 Gaussian windows inside of a plane."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    views = np.lib.stride_tricks.sliding_window_view(plane, (11, 11))
    result: Array = np.einsum("ijkl,kl->ij", views, window)
    return result


def ms_ssim_of_plane(a: Array, b: Array) -> float:
    """Wang, Simoncelli, Bovik 2003, one scale after the other."""
    product = 1.0
    for scale, weight in enumerate(WEIGHTS):
        ma, mb = blurred(a), blurred(b)
        va, vb = blurred(a * a) - ma**2, blurred(b * b) - mb**2
        value = (2 * (blurred(a * b) - ma * mb) + 0.03**2) / (va + vb + 0.03**2)
        if scale == 4:
            value = value * (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
        product *= max(value.mean(), 0) ** weight
        height, width = (side // 2 for side in a.shape)
        a, b = (
            p[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3)) for p in (a, b)
        )
    return product


def test_ms_ssim_in_float64() -> None:
    original, other = (frames.clamp(0, 1) for frames in pair(1, 180, 190))
    x, y = original.double().numpy(), other.double().numpy()
    expected = np.mean([ms_ssim_of_plane(x[0, c], y[0, c]) for c in range(3)])
    assert ms_ssim(original, other).item() == pytest.approx(expected, abs=1e-5)
    assert ms_ssim(original, original).item() == pytest.approx(1)


def test_ssim_in_float64_as_in_training_and_as_in_torchmetrics() -> None:
    original, other = (frames.clamp(0, 1) for frames in pair(2, 21, 29))
    x, y = original.double().numpy(), other.double().numpy()
    expected = [np.mean([ssim_of_plane(x[t, c], y[t, c]) for c in range(3)]) for t in range(2)]
    np.testing.assert_allclose(ssim(original, other), expected, rtol=0, atol=1e-5)
    training = metrics.ssim(original[:, None], other[:, None])
    torch.testing.assert_close(ssim(original, other), training, rtol=0, atol=2e-6)
    public = structural_similarity_index_measure(
        other, original, kernel_size=11, sigma=1.5, data_range=1.0, reduction="none"
    )
    torch.testing.assert_close(training, public, rtol=0, atol=2e-6)


def test_ms_ssim_is_missing_where_pictures_are_small() -> None:
    assert np.isnan(table_of(*pair())["ms_ssim"]).all()
    assert not np.isnan(table_of(*pair(1, 176, 176))["ms_ssim"]).any()


def write_lossless(path: Path, frames: NDArray[np.uint8]) -> None:
    """uint8 [T, H, W, C] as FFV1, which names its 8-bit planes of RGB bgr0."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def ffmpeg_mse(first: Path, second: Path) -> list[float]:
    """Each frame's MSE, of values up to 255, by FFmpeg's psnr filter."""
    graph = av.filter.Graph()
    with av.open(str(first)) as a, av.open(str(second)) as b:
        sources = [graph.add_buffer(template=c.streams.video[0]) for c in (a, b)]
        measure, sink = graph.add("psnr"), graph.add("buffersink")
        for number, source in enumerate(sources):
            planes = graph.add("format", "gbrp")
            source.link_to(planes)
            planes.link_to(measure, 0, number)
        measure.link_to(sink)
        graph.configure()
        found = []
        for frame_a, frame_b in zip(a.decode(video=0), b.decode(video=0), strict=True):
            sources[0].push(frame_a)
            sources[1].push(frame_b)
            measured = sink.pull()
            assert measured.format.name == "gbrp"
            found.append(float(measured.metadata["lavfi.psnr.mse_avg"]))
    return found


def test_psnr_is_ffmpegs(tmp_path: Path) -> None:
    pictures = [(frames.clamp(0, 1) * 255).round().byte() for frames in pair(5, 48, 64)]
    for name, frames in zip("ab", pictures, strict=True):
        write_lossless(tmp_path / f"{name}.mkv", frames.permute(0, 2, 3, 1).numpy())
    theirs = np.array(ffmpeg_mse(tmp_path / "a.mkv", tmp_path / "b.mkv"))
    original, other = (frames.float() / 255 for frames in pictures)
    ours = table_of(original, other)
    np.testing.assert_allclose(
        -10 * np.log10(ours["mse"]), 10 * np.log10(255**2 / theirs), atol=0.01
    )
    expected = 10 * np.log10(255**2 / theirs.mean())
    assert clip_scores(ours)["psnr"] == pytest.approx(expected, abs=0.01)


def test_a_shift_by_one_frame_lowers_the_score() -> None:
    original, other = pair(9)
    right = clip_scores(table_of(original, other))
    for shifted in (table_of(original[1:], other[:-1]), table_of(original[:-1], other[1:])):
        wrong = clip_scores(shifted)
        assert wrong["psnr"] < right["psnr"] - 5
        assert wrong["ssim"] < right["ssim"] - 0.05


def lpips_state() -> dict[str, torch.Tensor]:
    """Random weights in the shapes and keys of the public package."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]
    state = {}
    for k, ((key, _, _), (out, inner, side)) in enumerate(zip(CONVOLUTIONS, shapes, strict=True)):
        weight = torch.randn(out, inner, side, side, generator=generator)
        state[f"{key}.weight"] = weight / (inner * side**2) ** 0.5
        state[f"{key}.bias"] = 0.1 * torch.randn(out, generator=generator)
        state[f"lin{k}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    return state


def test_lpips_by_its_formula(tmp_path: Path) -> None:
    """AlexNet from torch's own layers in float64; distances one layer at a time."""
    state = lpips_state()
    torch.save(state, tmp_path / "lpips.pth")
    original, other = (frames.clamp(0, 1) for frames in pair(2, 64, 72))
    layers: list[torch.nn.Module] = []
    for (key, stride, padding), channels in zip(
        CONVOLUTIONS, [(3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3)],
        strict=True,
    ):  # fmt: skip
        layer = torch.nn.Conv2d(*channels, stride=stride, padding=padding)
        layer.load_state_dict({n: state[f"{key}.{n}"] for n in ("weight", "bias")})
        layers.append(layer.double())
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    a, b = ((2 * f.double() - 1 - shift) / scale for f in (original, other))
    expected = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for k, convolution in enumerate(layers):
            if k in (1, 2):
                a, b = (torch.nn.MaxPool2d(3, 2)(f) for f in (a, b))
            a, b = convolution(a).relu(), convolution(b).relu()
            unit_a, unit_b = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-10) for f in (a, b))
            weighted = (unit_a - unit_b) ** 2 * state[f"lin{k}.model.1.weight"].double()
            expected += weighted.sum(1).mean((1, 2))
    found = Lpips.load(str(tmp_path / "lpips.pth"), "cpu")(original, other)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_small_pictures_lack_lpips_and_are_not_broken() -> None:
    original, other = pair(2, 24, 40)
    scorer = FrameScorer(Lpips(lpips_state()))
    scorer.add(original, {"made": other})
    scores = clip_scores(scorer.tables()["made"])
    assert math.isnan(scores["lpips"])
    assert value_of(scores, "lpips") is None
    assert broken_scores(scores) == []
