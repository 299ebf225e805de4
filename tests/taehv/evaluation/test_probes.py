"""What probes find of codecs whose faults are known, and that they are silent about a sound one."""

import math

import pytest
import torch
from torch import Tensor

from taehv.evaluation.artifact_verdict import ARTIFACTS, judge_artifacts
from taehv.evaluation.probes import (
    COLOURS,
    GREYS,
    SETTLING_FRAMES,
    Codec,
    Probes,
    crops_by_size,
    errors_by_size,
    flat_clip,
    flat_errors,
    shimmer,
)
from taehv.evaluation.verdict import Thresholds
from taehv.model import TAEHV, ModelConfig

CPU = torch.device("cpu")


def picture(height: int = 192, width: int = 320, frames: int = 5) -> Tensor:
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(0))


def probe(codec: Codec) -> dict[str, float]:
    frames = picture()
    return Probes(
        flat_errors(codec, CPU),
        {"a": shimmer(codec, frames[0])},
        {"a": errors_by_size(codec, frames, 8)},
    ).figures()


def sound(clip: Tensor) -> Tensor:
    """Off by the same everywhere, and always."""
    return clip + 0.01


def shaded_greys(clip: Tensor) -> Tensor:
    """A wave of a twentieth over all of it, but for saturated colours."""
    wave = 0.05 * torch.sin(torch.arange(clip.shape[-1]) / 3)
    saturated = clip.amax(2, keepdim=True) - clip.amin(2, keepdim=True) > 0.5
    return clip + wave * ~saturated


def pale_colours(clip: Tensor) -> Tensor:
    grey = clip.mean(2, keepdim=True)
    return grey + 0.7 * (clip - grey)


def flickering(clip: Tensor) -> Tensor:
    """By a hundredth, every fourth frame."""
    return clip + 0.02 * (torch.arange(clip.shape[1]) % 4 == 0).float().view(1, -1, 1, 1, 1)


def worse_when_large(clip: Tensor) -> Tensor:
    return clip + (0.01 if clip.shape[-1] <= 128 else 0.011)


@pytest.mark.parametrize(
    ("codec", "found"),
    [
        (sound, []),
        (lambda clip: clip, []),
        (shaded_greys, ["flat_grey"]),
        (pale_colours, ["flat_colour"]),
        (flickering, ["shimmer"]),
        (worse_when_large, ["size"]),
    ],
)
def test_each_fault_and_no_other_is_found(codec: Codec, found: list[str]) -> None:
    figures = probe(codec)
    assert figures.keys() == {"flat_grey", "flat_colour", "shimmer", "size"}
    findings = judge_artifacts(figures, Thresholds())
    warned = {finding.name for finding in findings if finding.level != "pass"}
    assert warned == {ARTIFACTS[name].label for name in found}, figures


def test_the_figures_are_the_worst_of_each_group() -> None:
    errors = flat_errors(pale_colours, CPU)
    # Red, green or blue: 0.3 of two thirds in one channel, of one third in the two others.
    expected = 0.3 * ((4 / 9 + 1 / 9 + 1 / 9) / 3) ** 0.5
    assert errors["red"] == pytest.approx(expected, rel=1e-5)
    assert max(errors[name] for name in GREYS) < 1e-6
    assert probe(pale_colours)["flat_colour"] == pytest.approx(max(errors[c] for c in COLOURS))


def test_a_codec_that_settles_does_not_shimmer() -> None:
    def settling(clip: Tensor) -> Tensor:
        late = torch.arange(clip.shape[1]) >= SETTLING_FRAMES
        return clip + 0.1 * late.view(1, -1, 1, 1, 1)

    assert shimmer(settling, picture()[0]) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [
        ((540, 960), 8, [(128, 128), (256, 256), (480, 848), (536, 960)]),
        ((540, 960), 32, [(128, 128), (256, 256), (480, 832), (512, 960)]),
        ((1080, 1920), 8, [(128, 128), (256, 256), (480, 848), (720, 1280)]),
        ((720, 1280), 16, [(128, 128), (256, 256), (480, 848), (720, 1280)]),
        ((192, 320), 8, [(128, 128), (192, 320)]),
        ((128, 128), 8, [(128, 128)]),
        ((120, 400), 8, []),
    ],
)
def test_crops_hold_the_same_pixels_in_the_same_place_of_a_latent(
    size: tuple[int, int], multiple: int, expected: list[tuple[int, int]]
) -> None:
    frames = picture(*size, frames=1)
    crops = crops_by_size(frames, multiple)
    assert [crop.size for crop in crops] == expected
    for crop in crops:
        rows, columns = crop.middle
        middle = crop.middle_of(crop.frames)
        assert middle.shape[-2:] == (64, 64)
        assert torch.equal(middle, crops[0].middle_of(crops[0].frames))
        assert (rows.start - crops[0].middle[0].start) % multiple == 0
        assert (columns.start - crops[0].middle[1].start) % multiple == 0


def test_a_clip_of_one_colour_fits_any_network() -> None:
    assert flat_clip((0, 1, 0), CPU).shape[-2:] == (64, 64)
    assert flat_clip((0, 1, 0), CPU, multiple=24).shape[-2:] == (72, 72)
    model = TAEHV(ModelConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8), patch_size=3))
    with torch.no_grad():
        errors = flat_errors(model.reconstruct_video, CPU, model.space_downscale)
    assert all(math.isfinite(error) for error in errors.values())


def test_a_figure_is_no_number_where_any_of_its_errors_is_none() -> None:
    def no_green(clip: Tensor) -> Tensor:
        return clip * (math.nan if clip[0, 0, :, 0, 0].tolist() == [0, 1, 0] else 1)

    sizes = {(128, 128): 0.1, (256, 256): math.nan, (480, 848): 0.1}
    found = Probes(flat_errors(no_green, CPU), {"a": 0.1, "b": math.nan}, {"a": sizes}).figures()
    assert {name for name, figure in found.items() if math.isnan(figure)} == {
        "flat_colour",
        "shimmer",
        "size",
    }
    judged = judge_artifacts(found, Thresholds())
    assert sum(finding.level == "failure" for finding in judged) == 3
