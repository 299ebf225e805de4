"""The teacher against its own public class, and every way in which it may be missing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from taehv.errors import TrainingError
from taehv.losses.teacher import (
    Teacher,
    TeacherConfig,
    check_teacher,
    frame_rule_warning,
    slope_to_student,
    slope_warning,
)
from tests.helpers.small_teacher import save_small_teacher

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(folder, tmp_path / "broken")
    return tmp_path / "broken"


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return Teacher.load(TeacherConfig(str(folder)), "cpu")


@pytest.fixture(scope="module")
def vae(folder: Path) -> Any:
    """The same weights, loaded by diffusers alone."""
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX.from_pretrained(folder, subfolder="vae").eval()


def clip(num_frames: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    return torch.rand(2, num_frames, 3, size, size, generator=generator)


def test_latents_are_the_raw_mode_of_the_posterior(teacher: Teacher, vae: Any) -> None:
    frames = clip(9)
    with torch.no_grad():
        moments = vae.encoder((2 * frames - 1).permute(0, 2, 1, 3, 4))[0]
    expected = moments[:, :16].permute(0, 2, 1, 3, 4)

    latents = teacher.encode(frames)

    assert latents.shape == (2, 3, 16, 4, 4)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, expected)


def test_latent_scale_multiplies_the_latents_and_is_undone_by_decode(folder: Path) -> None:
    plain = Teacher.load(TeacherConfig(str(folder)), "cpu")
    scaled = Teacher.load(TeacherConfig(str(folder), latent_scale=0.7), "cpu")
    frames = clip(9, size=16)

    latents = plain.encode(frames)

    torch.testing.assert_close(scaled.encode(frames), 0.7 * latents)
    torch.testing.assert_close(scaled.decode(0.7 * latents), plain.decode(latents))


def test_decode_is_the_public_decoder_in_our_range(teacher: Teacher, vae: Any) -> None:
    latents = 3 * torch.randn(1, 3, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        video = vae.decode(latents.permute(0, 2, 1, 3, 4)).sample
    expected = ((video + 1) / 2).clamp(0, 1).permute(0, 2, 1, 3, 4)

    frames = teacher.decode(latents)

    assert frames.shape == (1, 9, 3, 32, 32)
    torch.testing.assert_close(frames, expected)


@pytest.mark.parametrize("num_frames", [1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 25])
def test_number_of_latents(teacher: Teacher, num_frames: int) -> None:
    latents = teacher.encode(clip(num_frames, size=16))
    assert latents.shape[1] == -(-num_frames // teacher.time_factor)


def test_a_clip_of_any_length_is_reconstructed_frame_by_frame(teacher: Teacher, vae: Any) -> None:
    frames = clip(12, size=16)
    extended = torch.cat([frames, frames[:, -1:].repeat(1, 5, 1, 1, 1)], dim=1)
    with torch.no_grad():
        video = (2 * extended - 1).permute(0, 2, 1, 3, 4)
        decoded = vae.decode(vae.encode(video).latent_dist.mode()).sample
    expected = ((decoded + 1) / 2).clamp(0, 1).permute(0, 2, 1, 3, 4)[:, :12]

    assert extended.shape[1] == 17
    torch.testing.assert_close(teacher.reconstruct(frames), expected)


def test_the_teacher_is_frozen(folder: Path) -> None:
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX.from_pretrained(folder, subfolder="vae").train()
    latents = Teacher(vae).encode(clip(9).requires_grad_())

    assert not latents.requires_grad
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert not vae.training


def test_sizes_that_the_teacher_cannot_halve_are_refused(teacher: Teacher) -> None:
    with pytest.raises(ValueError, match="multiples of 8, got 20x32"):
        teacher.encode(torch.rand(1, 9, 3, 20, 32))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"teacher\.latent_scale"):
        TeacherConfig(latent_scale=scale)


def test_check_accepts_a_whole_folder(folder: Path) -> None:
    check_teacher(folder)


def damage(folder: Path, kind: str) -> None:
    config = folder / "vae/config.json"
    match kind:
        case "no folder":
            shutil.rmtree(folder)
        case "no vae":
            shutil.rmtree(folder / "vae")
        case "no config":
            config.unlink()
        case "torn config":
            config.write_text(config.read_text()[:40])
        case "config is a list":
            config.write_text("[]")
        case "another class":
            config.write_text(json.dumps({"_class_name": "AutoencoderKL"}))
        case "no weights":
            (folder / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no folder", "no such folder"),
        ("no vae", "holds no vae/ folder"),
        ("no config", r"config\.json: No such file"),
        ("torn config", "not JSON"),
        ("config is a list", "_class_name is None"),
        ("another class", "_class_name is 'AutoencoderKL', expected 'AutoencoderKLCogVideoX'"),
        ("no weights", "weights are missing"),
    ],
)
def test_what_is_missing_is_named_before_loading(broken: Path, kind: str, message: str) -> None:
    damage(broken, kind)
    with pytest.raises(TrainingError, match=message) as caught:
        check_teacher(broken)
    assert str(broken) in str(caught.value)
    with pytest.raises(TrainingError, match=message):
        Teacher.load(TeacherConfig(str(broken)), "cpu")


def test_truncated_weights_stop_the_run(broken: Path) -> None:
    weights = (broken / WEIGHTS).read_bytes()
    (broken / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(TrainingError, match="could not be loaded"):
        Teacher.load(TeacherConfig(str(broken)), "cpu")


def test_empty_weights_stop_the_run(broken: Path) -> None:
    (broken / WEIGHTS).write_bytes(b"")
    with pytest.raises(TrainingError, match="could not be loaded"):
        Teacher.load(TeacherConfig(str(broken)), "cpu")


def test_weights_of_another_size_stop_the_run(broken: Path) -> None:
    config = broken / "vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"latent_channels": 4}))
    with pytest.raises(TrainingError, match=r"could not be loaded|do not belong together"):
        Teacher.load(TeacherConfig(str(broken)), "cpu")


@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_weights_that_do_not_fill_the_network_stop_the_run(broken: Path, kind: str) -> None:
    """diffusers itself only warns, and leaves random values in the gaps."""
    from safetensors.torch import load_file, save_file

    state = load_file(broken / WEIGHTS)
    if kind == "missing":
        del state["encoder.conv_out.conv.weight"]
    else:
        state["surplus"] = torch.zeros(1)
    save_file(state, broken / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=f"1 {kind} keys"):
        Teacher.load(TeacherConfig(str(broken)), "cpu")


def test_a_student_of_another_shape_is_refused(teacher: Teacher, tmp_path: Path) -> None:
    teacher.check_matches(latent_channels=16, time_factor=4, space_factor=8)
    with pytest.raises(TrainingError, match="latent channels: teacher 16, student 4") as caught:
        teacher.check_matches(latent_channels=4, time_factor=8, space_factor=16)
    assert "compression in time: teacher 4, student 8" in str(caught.value)
    assert "compression in space: teacher 8, student 16" in str(caught.value)

    four = Teacher.load(TeacherConfig(str(save_small_teacher(tmp_path, 4))), "cpu")
    with pytest.raises(TrainingError, match="latent channels: teacher 4, student 16"):
        four.check_matches(latent_channels=16, time_factor=4, space_factor=8)


def test_frame_rule() -> None:
    assert [t for t in range(1, 34) if frame_rule_warning(t) is None] == [1, 9, 17, 25, 33]
    assert "12 frames" in str(frame_rule_warning(12))
    assert "9 or 17 would be clean" in str(frame_rule_warning(12))


def test_slope_is_that_of_an_independent_regression() -> None:
    random = torch.Generator().manual_seed(0)
    theirs = torch.randn(2, 3, 16, 4, 4, generator=random)
    ours = 0.7 * theirs + 0.3 + 0.1 * torch.randn(theirs.shape, generator=random)
    design = torch.stack([theirs.flatten(), torch.ones(theirs.numel())], dim=1).double()
    expected = torch.linalg.lstsq(design, ours.flatten().double()[:, None]).solution[0].item()

    assert slope_to_student(ours, theirs) == pytest.approx(expected, rel=1e-9)
    assert slope_to_student(theirs, theirs) == pytest.approx(1)
    with pytest.raises(ValueError, match="differ in shape"):
        slope_to_student(ours[:1], theirs)


def test_slope_warns_beyond_five_percent() -> None:
    assert slope_warning(0.96) is None
    assert slope_warning(1.04) is None
    assert "0.700 times" in str(slope_warning(0.7))
    assert slope_warning(1.06) is not None
    assert slope_warning(float("nan")) is not None
