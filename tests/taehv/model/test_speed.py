"""The fast ways to run the network against the plain one, layer by layer."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from benchmarks.plain import PlainTaehv
from taehv.model import TAEHV
from taehv.model.timesteps import TimeStepper
from tests.helpers.jobs_run import REPOSITORY
from tests.taehv.model.test_time import SMALL, random_model

PLAIN = [name for name in SMALL if not name.endswith("super")]

BF16_BACKWARD = """
import torch
from taehv.model import TAEHV, ModelConfig
model = TAEHV(ModelConfig(encoder_width=32, decoder_widths=(64, 48, 32, 32)))
for _ in range(3):
    with torch.autocast("cpu", torch.bfloat16):
        encoded, decoded = model(torch.rand(2, 9, 3, 64, 64))
    decoded.float().square().mean().backward()
print("whole")
"""


def gradients(model: TAEHV, outputs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    encoded, decoded = outputs
    by_time = torch.linspace(0, 1, decoded.shape[1], dtype=decoded.dtype).view(-1, 1, 1, 1)
    torch.autograd.backward(encoded.square().mean() + (decoded * by_time).sum())
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("num_frames", [1, 4, 9])
@pytest.mark.parametrize("name", PLAIN)
def test_values_and_gradients_are_the_plain_network_s_in_float64(
    name: str, num_frames: int
) -> None:
    model = random_model(SMALL[name]).double()
    side = model.space_downscale
    frames = torch.rand(2, num_frames, 3, side, 2 * side, dtype=torch.float64)
    ours, plain = model(frames), PlainTaehv(model)(frames)
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    expected_gradients = gradients(model, plain)
    found_gradients = gradients(model, ours)
    assert found_gradients.keys() == dict(model.named_parameters()).keys()
    for key, gradient in found_gradients.items():
        expected = expected_gradients[key]
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", PLAIN)
def test_bf16_is_as_near_to_float64_as_the_plain_network_s(name: str) -> None:
    model = random_model(SMALL[name])
    side = model.space_downscale
    frames = torch.rand(2, 9, 3, 4 * side, 4 * side)
    with torch.no_grad():
        exact = random_model(SMALL[name]).double()(frames.double())[1]
        with torch.autocast("cpu", torch.bfloat16):
            errors = [
                float((decoded.double() - exact).norm() / exact.norm())
                for _, decoded in (model(frames), PlainTaehv(model)(frames))
            ]
    assert errors[0] < max(1e-2, 1.2 * errors[1])


@pytest.mark.parametrize("name", SMALL)
def test_chunks_give_the_numbers_of_the_whole(name: str) -> None:
    model = random_model(SMALL[name]).double()
    side = model.space_downscale
    with torch.no_grad():
        for num_frames in (1, 9, 14):
            frames = torch.rand(2, num_frames, 3, side, side, dtype=torch.float64)
            latents = model.encode_video(frames)
            decoded = model.decode_video(latents)
            for chunk in (1, 2, 3, 100):
                found = model.encode_video(frames, chunk=chunk)
                torch.testing.assert_close(found, latents, rtol=0, atol=1e-12)
                found = model.decode_video(latents, chunk=chunk)
                torch.testing.assert_close(found, decoded, rtol=0, atol=1e-12)


def test_a_chunk_that_is_no_number_of_latents_is_refused() -> None:
    model = random_model(SMALL["taehv"])
    with pytest.raises(ValueError, match="chunk is -1"):
        model.encode_video(torch.rand(1, 5, 3, 8, 8), chunk=-1)
    with pytest.raises(ValueError, match="chunk is -2"):
        model.decode_video(torch.rand(1, 2, 16, 1, 1), chunk=-2)


def test_what_is_carried_from_chunk_to_chunk_is_one_step_a_layer() -> None:
    model = random_model(SMALL["taehv"])
    stepper = TimeStepper(model.decoder)
    with torch.no_grad():
        stepper.push(torch.randn(1, 5, 16, 2, 2))
    kept = stepper.memory
    assert len(kept) == 9
    for past in kept.values():
        assert len(past) == 1
        # Not a view of the whole chunk.
        assert past.untyped_storage().nbytes() == past.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="glibc checks the heap")
def test_bf16_backward_keeps_to_its_memory() -> None:
    found = subprocess.run(
        [sys.executable, "-c", BF16_BACKWARD],
        env=os.environ | {"MALLOC_CHECK_": "3", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert found.stdout == b"whole\n"
