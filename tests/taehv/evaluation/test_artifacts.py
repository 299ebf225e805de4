"""Each artifact is planted, and found; on sound reconstructions nothing is."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taehv.evaluation.artifact_verdict import ARTIFACTS, judge_artifacts
from taehv.evaluation.artifacts import CONTROL, Gains, Parts, gains, grid, parts_of
from taehv.evaluation.baselines import down_and_up
from taehv.evaluation.clip_artifacts import clip_figures, clip_parts
from taehv.evaluation.frames import FrameScorer
from taehv.evaluation.verdict import Thresholds
from taehv.model.alignment import FrameAlignment

ALIGNMENT = FrameAlignment()

Planted = Callable[[Tensor, Tensor], Tensor]
"""Puts an artifact into a reconstruction of an original."""


def clip(frames: int = 13, side: int = 128, seed: int = 0) -> Tensor:
    """[T, 3, H, W]: a moving picture whose spectrum falls as that of photographs."""
    generator = torch.Generator().manual_seed(seed)
    size = 2 * side
    frequency = torch.fft.fftfreq(size).square()
    falling = (frequency[:, None] + frequency[None]).sqrt().clamp(min=1 / size).pow(-1.2)
    noise = torch.fft.fft2(torch.randn(3, size, size, generator=generator))
    picture = torch.fft.ifft2(noise * falling).real
    picture = 0.5 + 0.25 * (picture - picture.mean()) / picture.std()
    moved = [picture[:, 2 * t : 2 * t + side, 3 * t : 3 * t + side] for t in range(frames)]
    return torch.stack(moved).clamp(0, 1)


def parts(original: Tensor, made: Tensor) -> tuple[Parts, Parts]:
    """Of a reconstruction, and of the control."""
    scorer = FrameScorer()
    scorer.add(original, {"made": made, CONTROL: down_and_up(original[None])[0]})
    tables = scorer.tables()
    return parts_of(tables["made"], ALIGNMENT), parts_of(tables[CONTROL], ALIGNMENT)


def figures(original: Tensor, made: Tensor) -> dict[str, float]:
    ours, theirs = parts(original, made)
    return gains([ours], [theirs]).figures() | {
        f"grid_{period}": excess for period, excess in grid([ours]).items()
    }


def noisy(original: Tensor, deviation: float = 0.01) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return original + deviation * torch.randn(original.shape, generator=generator)


def blurred(original: Tensor) -> Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(original, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


@pytest.mark.parametrize("made", ["same", "noise", "blur", "noise and blur", "half the contrast"])
def test_sound_reconstructions_are_silent(made: str) -> None:
    original = clip()
    reconstructions = {
        "same": original,
        "noise": noisy(original),
        "blur": blurred(original),
        "noise and blur": noisy(blurred(original)),
        "half the contrast": 0.5 + 0.5 * (original - 0.5),
    }
    found = figures(original, reconstructions[made])
    assert {"phase", "border", "grid_8", "grid_4", "grid_2", "moving"} <= found.keys()
    limits = Thresholds()
    assert found["phase"] < limits.artifact_phase / 2
    assert found["border"] < limits.artifact_border / 2
    assert max(found[f"grid_{period}"] for period in (8, 4, 2)) < limits.artifact_grid / 2
    assert min(found["moving"], found["dark"], found["bright"]) > limits.artifact_gain or made == (
        "half the contrast"
    )


def late_frames(original: Tensor, made: Tensor) -> Tensor:
    """Motion that stops within a latent: its last frame is the one before."""
    result = made.clone()
    result[4::4] = made[3::4][: len(made[4::4])]
    return result


def dim_border(original: Tensor, made: Tensor) -> Tensor:
    result = 0.85 * made
    result[..., 4:-4, 4:-4] = made[..., 4:-4, 4:-4]
    return result


def striped(period: int, strength: float, across: bool = True) -> Planted:
    def plant(original: Tensor, made: Tensor) -> Tensor:
        place = torch.arange(made.shape[-1])
        wave = strength * (place % period < period / 2).float() - strength / 2
        return made + (wave if across else wave[:, None])

    return plant


def modulated(original: Tensor, made: Tensor) -> Tensor:
    """Every eighth column is stronger than the original there, as by uneven upsampling."""
    return torch.where(torch.arange(made.shape[-1]) % 8 == 0, made * 1.03, made)


def frozen(original: Tensor, made: Tensor) -> Tensor:
    """What moves stays where it was in the first frame."""
    return made[:1].expand_as(made)


def lifted(original: Tensor, made: Tensor) -> Tensor:
    return torch.where(original < 0.2, 0.3, made)


def dulled(original: Tensor, made: Tensor) -> Tensor:
    return torch.where(original > 0.8, 0.7, made)


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("phase", late_frames),
        ("border", dim_border),
        ("grid_8", striped(8, 0.015)),
        ("grid_8", striped(8, 0.015, across=False)),
        ("grid_8", modulated),
        ("grid_4", striped(4, 0.015)),
        ("grid_2", striped(2, 0.015)),
        ("moving", frozen),
        ("dark", lifted),
        ("bright", dulled),
    ],
)
def test_a_planted_artifact_is_found(name: str, plant: Planted) -> None:
    original = clip()
    # As blurred and noisy as a network's reconstruction is.
    sound = noisy(blurred(original))
    before, after = figures(original, sound), figures(original, plant(original, sound))
    levels = [
        {f.name: f.level for f in judge_artifacts(found, Thresholds())}[ARTIFACTS[name].label]
        for found in (before, after)
    ]
    assert levels == ["pass", "warning"], (before[name], after[name])


def test_clips_in_memory_have_the_figures_of_the_frame_table() -> None:
    originals = [clip(9, 96, seed) for seed in (0, 1)]
    made = [late_frames(x, noisy(blurred(x))) for x in originals]
    pairs = [parts(x, y) for x, y in zip(originals, made, strict=True)]
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    expected = gains(ours, theirs).figures()
    expected |= {f"grid_{period}": excess for period, excess in grid(ours).items()}
    columns = clip_parts(torch.stack(originals), torch.stack(made), ALIGNMENT)
    clips = [{name: values[k].item() for name, values in columns.items()} for k in range(2)]
    assert clip_figures([c | {"psnr": 1.0} for c in clips]) == pytest.approx(expected, rel=1e-4)


def test_a_decoder_of_fewer_frames_has_their_phases() -> None:
    """Two frames of a latent: the first of all is alone, and then they take turns."""
    table = {"mse": np.array([9.0, 1.0, 2.0, 1.0, 2.0])}
    found = parts_of(table, FrameAlignment(4, 2))
    assert [found[f"phase_{k}_error"] for k in range(2)] == [2, 4]
    assert [found[f"phase_{k}_frames"] for k in range(2)] == [2, 2]


def test_frames_that_are_not_trimmed_have_the_phases_of_their_latents() -> None:
    """Of an even number of latents the exception drops none: the first four are the first's."""
    table = {"mse": np.array([9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0])}
    found = parts_of(table, FrameAlignment(trims_even=False), trim=0)
    assert [found[f"phase_{k}_error"] for k in range(4)] == [1, 2, 3, 4]
    assert [found[f"phase_{k}_frames"] for k in range(4)] == [1, 1, 1, 1]


def test_a_phase_that_is_no_number_is_not_passed_over() -> None:
    assert np.isnan(Gains([1.0, float("nan"), 2.0, 1.0], {}).figures()["phase"])
