"""Methods give back every frame at its place; latents cost what they should."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from taehv.errors import TrainingError
from taehv.evaluation.judgement import AgainstTeacher, Speed, judge_evaluation
from taehv.evaluation.linear import BlockShape, LinearLimit
from taehv.evaluation.methods import (
    LinearMethod,
    Method,
    NetworkMethod,
    TeacherMethod,
    baseline_methods,
    stream_together,
)
from taehv.evaluation.rate import LatentStatistics, Rate, int8_round_trip
from taehv.evaluation.timing import measure
from taehv.evaluation.verdict import Thresholds
from taehv.losses.teacher import Teacher
from taehv.model import ModelConfig, build_model

LIMITS = Thresholds()


def network(variant: str = "taecvx") -> NetworkMethod:
    torch.manual_seed(0)
    small = {"encoder_width": 8, "decoder_widths": (16, 8, 8, 8)}
    return NetworkMethod(build_model(ModelConfig(variant=variant, **small)), "n", "n")  # type: ignore[arg-type]


def clip(frames: int) -> torch.Tensor:
    return torch.rand(1, frames, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", ["taecvx", "taehv"])
@pytest.mark.parametrize("frames", [1, 2, 4, 5, 9, 12, 13])
def test_a_network_gives_every_frame_back(variant: str, frames: int) -> None:
    """At once or as a stream, by the rule of `reconstruct_video`."""
    method, video = network(variant), clip(frames)
    expected = method.model.reconstruct_video(video)
    torch.testing.assert_close(method.clip(video), expected)
    streamed = torch.stack([*method.stream(video.unbind(1), frames)], dim=1)
    torch.testing.assert_close(streamed, expected, rtol=1e-4, atol=1e-5)
    t, channels, height, width = method.latent_shape(frames, 16, 24)
    assert method.encode(video).shape == (1, t, channels, height, width)


def linear() -> LinearMethod:
    block = BlockShape(frames=4, pixels=8)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(block.values, 16, generator=generator))[0].T
    return LinearMethod(LinearLimit(block, torch.full((block.values,), 0.5), basis))


@pytest.mark.parametrize("frames", [3, 4, 9])
def test_what_needs_no_network_streams_too(frames: int) -> None:
    methods: list[Method] = [*baseline_methods(), linear()]
    for method in methods:
        video = clip(frames)
        streamed = torch.stack([*method.stream(video.unbind(1), frames)], dim=1)
        torch.testing.assert_close(streamed, method.clip(video))


def test_methods_go_through_a_video_together_as_each_by_itself() -> None:
    """Though they answer after one frame, four or more; no frame waits for longer than that."""
    methods: list[Method] = [network(), linear(), *baseline_methods()]
    frames = (clip(23) * 255).round().byte()
    read: list[int] = []

    def source() -> Iterator[torch.Tensor]:
        for t, frame in enumerate(frames.unbind(1)):
            read.append(t)
            yield frame

    found: dict[str, list[torch.Tensor]] = {method.key: [] for method in methods}
    for t, (original, made) in enumerate(stream_together(methods, source(), 23)):
        assert torch.equal(original, frames[:, t].float() / 255)
        assert len(read) <= t + 9
        for key, frame in made.items():
            found[key].append(frame)
    for method in methods:
        alone = [*method.stream((frames.float() / 255).unbind(1), 23)]
        torch.testing.assert_close(torch.stack(found[method.key]), torch.stack(alone))


def test_the_teacher_is_given_long_videos_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=2, layers_per_block=1, latent_channels=4
    )
    method = TeacherMethod(Teacher(vae))
    monkeypatch.setattr("taehv.evaluation.methods.TEACHER_STRETCH", 9)
    video = clip(11)
    streamed = torch.stack([*method.stream(video.unbind(1), 11)], dim=1)
    torch.testing.assert_close(streamed[:, :9], method.clip(video[:, :9]))
    assert streamed.shape == video.shape


def test_a_decoder_that_drops_frames_is_refused() -> None:
    model = build_model(
        ModelConfig(
            encoder_width=8, decoder_widths=(8, 8, 8, 8), decoder_time_upscale=(False, False, True)
        )
    )
    with pytest.raises(TrainingError, match="fewer or smaller frames"):
        NetworkMethod(model, "n", "n")


def test_int8_keeps_latents_within_half_a_step() -> None:
    latents = 3 * torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    span = latents.amax((-2, -1), keepdim=True) - latents.amin((-2, -1), keepdim=True)
    error = (int8_round_trip(latents) - latents).abs()
    # Half a step, and what half precision moves the range's ends by.
    assert (error <= 0.5 * span / 255 + 0.005).all()
    levels = {len(channel.unique()) for channel in int8_round_trip(latents).flatten(0, 2)}
    assert max(levels) <= 256
    assert torch.equal(int8_round_trip(torch.zeros(1, 1, 1, 2, 2)), torch.zeros(1, 1, 1, 2, 2))


def test_the_rate_counts_every_bit() -> None:
    """16 channels of 2x4x4 for 5 frames of 32x32."""
    rate = Rate.of((2, 16, 4, 4), 5 * 32 * 32)
    assert rate.half == pytest.approx(2 * 16 * 16 * 16 / 5120)
    assert rate.int8 == pytest.approx((2 * 16 * 16 * 8 + 2 * 16 * 2 * 16) / 5120)


def test_statistics_of_latents_in_float64() -> None:
    latents = torch.randn(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 2 + 1
    one, other = LatentStatistics(), LatentStatistics()
    assert one.observe(latents[:1]) is not None
    other.observe(latents[1:])
    one.merge(other)
    found, values = one.summary(), latents.double().numpy()
    assert found["mean"] == pytest.approx(values.mean())
    assert found["std"] == pytest.approx(values.std())
    np.testing.assert_allclose(found["channel_std"], values.std(axis=(0, 1, 3, 4)))
    np.testing.assert_allclose(found["channel_min"], values.min(axis=(0, 1, 3, 4)))
    np.testing.assert_allclose(found["channel_max"], values.max(axis=(0, 1, 3, 4)))


def test_a_measured_cost_is_that_of_the_work() -> None:
    held = []

    def work() -> None:
        held.append(torch.ones(2_000_000, dtype=torch.float32))
        held.pop()

    found = measure(work, torch.device("cpu"))
    assert 0 < found.seconds < 1
    assert found.repeats == 5
    assert found.peak_bytes is None or found.peak_bytes >= 0


def levels(speed: Speed, teacher: AgainstTeacher | None) -> dict[str, str]:
    scores = {"mse": 0.002, "psnr": 30.0, "ssim": 0.9}
    floor = {"mean_colour": 15.0, "down_and_up": 24.0}
    found = judge_evaluation(scores, floor, [], speed, teacher, LIMITS)
    return {finding.name: finding.level for finding in found}


def test_speed_is_judged_on_a_gpu_alone() -> None:
    assert len(levels(Speed(9.0, 9.0, on_gpu=False), None)) == 4
    found = levels(Speed(0.119, 0.16, on_gpu=True), None)
    assert found["encode, s per clip"] == "pass"
    assert found["decode, s per clip"] == "warning"
    assert levels(Speed(0.51, 0.1, on_gpu=True), None)["encode, s per clip"] == "failure"


def test_the_gap_to_the_teacher_is_relative_psnr_and_a_gain_of_2_is_three_times_as_fast() -> None:
    speed = Speed(1.0, 1.0, on_gpu=False)
    near = levels(speed, AgainstTeacher(28.6, 30.0, 1.0, 3.1))
    assert near["PSNR's gap to the teacher, %"] == "pass"
    assert near["speed gain over the teacher, %"] == "pass"
    far = levels(speed, AgainstTeacher(28.4, 30.0, 1.0, 2.9))
    assert far["PSNR's gap to the teacher, %"] == "warning"
    assert far["speed gain over the teacher, %"] == "warning"
