"""The stand-in for `AutoencoderKLCogVideoX`: its numbers, and pipelines of diffusers that use it.

The transformers are tiny and random, and text embeddings are given: what a pipeline does with its
VAE is real.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
)
from PIL import Image

from taehv.errors import TrainingError
from taehv.model import TAEHV, ModelConfig
from taehv.model.diffusers_vae import DiffusersVAE, read_teacher_config
from tests.helpers.evaluate_run import export_small
from tests.helpers.small_teacher import save_small_teacher

SIDE = 32
WORDS, TEXT = 4, 8


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a factor that is nobody's default."""
    folder = save_small_teacher(tmp_path_factory.mktemp("teacher"))
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scaling_factor": 0.7}))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def vae(weights: Path, teacher: Path) -> DiffusersVAE:
    return DiffusersVAE.from_weights(weights, teacher)


def video(frames: int, seed: int = 0) -> torch.Tensor:
    """NCTHW in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, frames, SIDE, SIDE, generator=generator) * 2 - 1


def transformer(in_channels: int = 16) -> CogVideoXTransformer3DModel:
    torch.manual_seed(0)
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=in_channels,
        out_channels=16,
        time_embed_dim=8,
        text_embed_dim=TEXT,
        num_layers=1,
        sample_width=SIDE // 8,
        sample_height=SIDE // 8,
        sample_frames=9,
        max_text_seq_length=WORDS,
    ).eval()


def parts(vae: Any, **more: Any) -> dict[str, Any]:
    return {
        "tokenizer": None,
        "text_encoder": None,
        "vae": vae,
        "transformer": transformer(**more),
        "scheduler": CogVideoXDDIMScheduler(),
    }


def asked(**more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, 1, WORDS, TEXT, generator=generator)
    return {
        "prompt_embeds": embeddings[0],
        "negative_prompt_embeds": embeddings[1],
        "num_inference_steps": 2,
        "height": SIDE,
        "width": SIDE,
        "generator": generator,
        **more,
    }


def run(pipeline: Any, **more: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**asked(**more)).frames


def test_the_config_is_the_teachers(vae: DiffusersVAE, teacher: Path) -> None:
    theirs = AutoencoderKLCogVideoX.from_pretrained(teacher, subfolder="vae").config
    assert vae.config.scaling_factor == 0.7
    for name in theirs:
        if not name.startswith("_"):
            assert vae.config[name] == theirs[name], name


@pytest.mark.parametrize("frames", [1, 5, 8, 9, 13, 17])
def test_latents_and_frames_are_as_many_as_the_teachers(
    frames: int, vae: DiffusersVAE, teacher: Path
) -> None:
    theirs = AutoencoderKLCogVideoX.from_pretrained(teacher, subfolder="vae")
    with torch.no_grad():
        latents = vae.encode(video(frames)).latent_dist.mode()
        assert latents.shape == theirs.encode(video(frames)).latent_dist.mode().shape
        assert vae.decode(latents).sample.shape == theirs.decode(latents).sample.shape


def test_the_numbers_are_the_networks(vae: DiffusersVAE) -> None:
    frames = (video(9).transpose(1, 2) + 1) / 2
    with torch.no_grad():
        latents = vae.model.encode_video(frames)
        decoded = vae.model.decode_video(latents)
        posterior = vae.encode(video(9)).latent_dist
        sample = vae.decode(posterior.mode()).sample
    torch.testing.assert_close(posterior.mode(), latents.transpose(1, 2), rtol=0, atol=0)
    torch.testing.assert_close(posterior.sample(), posterior.mode(), rtol=0, atol=0)
    torch.testing.assert_close(sample, decoded.transpose(1, 2) * 2 - 1)
    assert sample.abs().max() <= 1
    assert torch.equal(vae.encode(video(9), return_dict=False)[0].mode(), posterior.mode())
    assert torch.equal(vae.decode(posterior.mode(), return_dict=False)[0], sample)


def test_little_memory_gives_the_same_numbers(vae: DiffusersVAE) -> None:
    with torch.no_grad():
        latents = vae.encode(video(13)).latent_dist.mode()
        sample = vae.decode(latents).sample
        vae.enable_tiling()
        torch.testing.assert_close(vae.encode(video(13)).latent_dist.mode(), latents)
        torch.testing.assert_close(vae.decode(latents).sample, sample)


def test_a_student_of_scaled_latents_is_scaled_back(weights: Path, teacher: Path) -> None:
    plain = DiffusersVAE.from_weights(weights, teacher)
    scaled = DiffusersVAE.from_weights(weights, teacher, latent_scale=0.5)
    with torch.no_grad():
        latents = plain.encode(video(5)).latent_dist.mode()
        torch.testing.assert_close(scaled.encode(video(5)).latent_dist.mode(), latents * 2)
        torch.testing.assert_close(
            scaled.decode(latents * 2).sample, plain.decode(latents).sample, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("frames", [5, 9])
def test_text_to_video_ends_in_the_networks_frames(frames: int, vae: DiffusersVAE) -> None:
    """What comes out is the network's decoding of the latents without the pipeline's factor."""
    pipeline = CogVideoXPipeline(**parts(vae))
    latents = run(pipeline, num_frames=frames, output_type="latent")
    shown = run(pipeline, num_frames=frames, output_type="pt")
    with torch.no_grad():
        expected = vae.model.decode_video(latents / 0.7)
    torch.testing.assert_close(shown, expected, rtol=1e-4, atol=1e-5)


def test_video_to_video_begins_with_the_networks_latents(vae: DiffusersVAE) -> None:
    """Seen before the noise, which is taken out here, is added to them."""
    pipeline = CogVideoXVideoToVideoPipeline(**parts(vae))
    original = [
        Image.fromarray(((frame + 1) * 127.5).byte().permute(1, 2, 0).numpy())
        for frame in video(9)[0].unbind(1)
    ]
    prepared = pipeline.video_processor.preprocess_video(original, height=SIDE, width=SIDE)
    timestep = torch.tensor([0])
    added = pipeline.scheduler.add_noise
    pipeline.scheduler.add_noise = lambda latents, *_: latents
    with torch.no_grad():
        made = pipeline.prepare_latents(
            prepared, 1, 16, SIDE, SIDE, torch.float32, torch.device("cpu"), timestep=timestep
        )
        expected = vae.model.encode_video(prepared.transpose(1, 2).add(1).div(2))
    pipeline.scheduler.add_noise = added
    assert made.shape == (1, 3, 16, SIDE // 8, SIDE // 8)
    torch.testing.assert_close(made, expected * 0.7)
    shown = run(pipeline, video=original, strength=0.5, output_type="pt")
    assert shown.shape == (1, 9, 3, SIDE, SIDE)
    assert shown.isfinite().all()


def test_image_to_video_runs_through(vae: DiffusersVAE) -> None:
    pipeline = CogVideoXImageToVideoPipeline(**parts(vae, in_channels=32))
    picture = Image.new("RGB", (SIDE, SIDE), (200, 100, 50))
    shown = run(pipeline, image=picture, num_frames=9, output_type="pt")
    assert shown.shape == (1, 9, 3, SIDE, SIDE)
    assert shown.isfinite().all()


def test_it_takes_the_vaes_place_in_a_saved_pipeline(
    vae: DiffusersVAE, teacher: Path, tmp_path: Path
) -> None:
    """The way that users go: `from_pretrained(folder, vae=...)`."""
    theirs = AutoencoderKLCogVideoX.from_pretrained(teacher, subfolder="vae")
    CogVideoXPipeline(**parts(theirs)).save_pretrained(tmp_path)
    pipeline = CogVideoXPipeline.from_pretrained(
        tmp_path, vae=vae, tokenizer=None, text_encoder=None, local_files_only=True
    )
    assert pipeline.vae is vae
    assert pipeline.vae_scaling_factor_image == 0.7
    pipeline.to(torch.float64)
    assert vae.dtype == torch.float64


def test_what_does_not_fit_is_refused(weights: Path, teacher: Path, tmp_path: Path) -> None:
    other = save_small_teacher(tmp_path / "other", latent_channels=4)
    with pytest.raises(TrainingError, match=r"latent channels 4, .* its own are 16, 4 and 8"):
        DiffusersVAE.from_weights(weights, other)
    patched = TAEHV(ModelConfig(variant="taehv1_5", encoder_width=8))
    with pytest.raises(TrainingError, match="cannot stand in"):
        DiffusersVAE(patched, read_teacher_config(teacher), 1.0)
    (tmp_path / "vae").mkdir()
    for content in (None, "nonsense", '{"_class_name": "AutoencoderKL"}'):
        if content is not None:
            (tmp_path / "vae" / "config.json").write_text(content)
        with pytest.raises(TrainingError, match=r"config\.json cannot be read"):
            DiffusersVAE.from_weights(weights, tmp_path)
