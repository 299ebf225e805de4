"""Parallel, sequential, streaming and a naive float64 reference give the same numbers."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taehv.evaluation.methods import NetworkMethod
from taehv.model import TAEHV, ModelConfig
from taehv.model.streaming import StreamingDecoder, StreamingEncoder

SMALL: dict[str, ModelConfig] = {
    "taehv": ModelConfig("taehv", encoder_width=8, decoder_widths=(12, 10, 8, 6)),
    "taecvx": ModelConfig("taecvx", encoder_width=8, decoder_widths=(12, 10, 8, 6)),
    "taew2_2": ModelConfig("taew2_2", encoder_width=8, decoder_widths=(12, 10, 8, 6)),
    "taeltx_2": ModelConfig("taeltx_2", encoder_width=8, decoder_widths=(12, 10, 8, 6)),
    "taew2_2_super": ModelConfig("taew2_2_super", encoder_width=8, decoder_widths=(12, 10, 8, 6)),
    "less time": ModelConfig(
        "taehv",
        encoder_width=8,
        decoder_widths=(12, 10, 8, 6),
        encoder_time_downscale=(True, False, False),
        decoder_time_upscale=(False, False, True),
    ),
    "less space": ModelConfig(
        "taehv",
        encoder_width=8,
        decoder_widths=(12, 10, 8, 6),
        decoder_space_upscale=(False, True, True),
    ),
    "no time": ModelConfig(
        "taehv",
        encoder_width=8,
        decoder_widths=(12, 10, 8, 6),
        encoder_time_downscale=(False, False, False),
        decoder_time_upscale=(False, False, False),
    ),
}


def random_model(config: ModelConfig) -> TAEHV:
    """A network in which every weight matters, the memory's too, and values stay about 1."""
    generator = torch.Generator().manual_seed(0)
    model = TAEHV(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel()
            spread = (1 / fan_in) ** 0.5 if parameter.ndim == 4 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return model


def stream_encode(model: TAEHV, frames: Tensor) -> Tensor:
    encoder = StreamingEncoder(model)
    latents = [encoder.encode(frame) for frame in frames.unbind(1)] + [encoder.flush()]
    return torch.stack([latent for latent in latents if latent is not None], 1)


def stream_decode(model: TAEHV, latents: Tensor) -> Tensor:
    decoder = StreamingDecoder(model, num_latents=latents.shape[1])
    return torch.stack([f for latent in latents.unbind(1) for f in decoder.decode(latent)], 1)


@pytest.mark.parametrize("name", SMALL)
def test_parallel_sequential_and_streaming_agree_at_every_length(name: str) -> None:
    model = random_model(SMALL[name])
    side = model.space_downscale
    video = torch.rand(2, 17, 3, side, 2 * side)
    for num_frames in range(1, 18):
        frames = video[:, :num_frames]
        with torch.no_grad():
            latents = model.encode_video(frames)
            decoded = model.decode_video(latents)
            one_by_one = model.encode_video(frames, parallel=False)
            decoded_one_by_one = model.decode_video(latents, parallel=False)
        assert latents.shape[1] == model.alignment.num_latents(num_frames)
        assert decoded.shape[1] == model.alignment.num_decoded(num_frames)
        for other in (one_by_one, stream_encode(model, frames)):
            torch.testing.assert_close(other, latents, rtol=0, atol=1e-5)
        for other in (decoded_one_by_one, stream_decode(model, latents)):
            torch.testing.assert_close(other, decoded, rtol=0, atol=1e-5)


class Reference:
    """The network in plain float64 arithmetic with a Python loop over time.

    Written from the published layer table against the state dict's keys; shares no code with the
    package. Works on lists of frames [N, C, H, W].
    """

    def __init__(self, model: TAEHV) -> None:
        self.weights = {key: value.double() for key, value in model.state_dict().items()}
        self.config = model.config
        self.patch = model.patch_size

    def conv(self, key: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.weights[f"{key}.weight"]
        padding = weight.shape[-1] // 2
        bias = self.weights.get(f"{key}.bias")
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)

    def memory(self, key: str, frames: list[Tensor]) -> list[Tensor]:
        out, past = [], torch.zeros_like(frames[0])
        for x in frames:
            y = self.conv(f"{key}.conv.0", torch.cat([x, past], 1)).clamp(min=0)
            y = self.conv(f"{key}.conv.2", y).clamp(min=0)
            out.append((self.conv(f"{key}.conv.4", y) + x).clamp(min=0))
            past = x
        return out

    def super_memory(self, key: str, frames: list[Tensor]) -> list[Tensor]:
        out, past = [], torch.zeros_like(frames[0])
        for x in frames:
            y = self.conv(f"{key}.conv.0", torch.cat([x, past], 1), groups=2 * x.shape[1])
            y = self.conv(f"{key}.conv.1", y).clamp(min=0)
            out.append(self.conv(f"{key}.conv.3", y) + x)
            past = x
        return out

    def pool(self, key: str, frames: list[Tensor]) -> list[Tensor]:
        weight = self.weights[f"{key}.conv.weight"]
        stride = weight.shape[1] // weight.shape[0]
        starts = range(0, len(frames), stride)
        return [self.conv(f"{key}.conv", torch.cat(frames[t : t + stride], 1)) for t in starts]

    def grow(self, key: str, frames: list[Tensor]) -> list[Tensor]:
        out = []
        for x in frames:
            y = self.conv(f"{key}.conv", x)
            width = x.shape[1]
            out += [y[:, start : start + width] for start in range(0, y.shape[1], width)]
        return out

    def encode(self, frames: list[Tensor], time_downscale: int) -> list[Tensor]:
        while len(frames) % time_downscale:
            frames = [*frames, frames[-1]]
        p = self.patch
        n, c, h, w = frames[0].shape
        # The definition of pixel_unshuffle: channel c*p*p + i*p + j holds pixel (i, j) of a block.
        x = [
            f.reshape(n, c, h // p, p, w // p, p).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
            for f in frames
        ]
        x = [self.conv("encoder.0", f).clamp(min=0) for f in x]
        for start in (2, 7, 12):
            x = self.pool(f"encoder.{start}", x)
            x = [self.conv(f"encoder.{start + 1}", f, stride=2) for f in x]
            for block in (2, 3, 4):
                x = self.memory(f"encoder.{start + block}", x)
        return [self.conv("encoder.17", f) for f in x]

    def decode(self, latents: list[Tensor]) -> list[Tensor]:
        x = self._super(latents) if self.config.variant.endswith("super") else self._plain(latents)
        p = self.patch
        x = [self.conv("decoder.22", f) for f in x]
        n, _, h, w = x[0].shape
        return [
            f.reshape(n, 3, p, p, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, 3, h * p, w * p)
            for f in x
        ]

    def _plain(self, latents: list[Tensor]) -> list[Tensor]:
        x = [3 * torch.tanh(f / 3) for f in latents]
        x = [self.conv("decoder.1", f).clamp(min=0) for f in x]
        for start, doubles in zip((3, 9, 15), self.config.decoder_space_upscale, strict=True):
            for block in (0, 1, 2):
                x = self.memory(f"decoder.{start + block}", x)
            if doubles:
                x = [f.repeat_interleave(2, 2).repeat_interleave(2, 3) for f in x]
            x = self.grow(f"decoder.{start + 4}", x)
            x = [self.conv(f"decoder.{start + 5}", f) for f in x]
        return [f.clamp(min=0) for f in x]

    def _super(self, latents: list[Tensor]) -> list[Tensor]:
        x = [self.conv("decoder.0", f) for f in latents]
        for start in (1, 8, 15):
            for block in (0, 1, 2):
                x = self.super_memory(f"decoder.{start + block}", x)
            x = [self.conv(f"decoder.{start + 3}", f).clamp(min=0) for f in x]
            n, c, h, w = x[0].shape
            x = [
                f.reshape(n, c // 4, 2, 2, h, w)
                .permute(0, 1, 4, 2, 5, 3)
                .reshape(n, c // 4, 2 * h, 2 * w)
                for f in x
            ]
            x = self.grow(f"decoder.{start + 6}", x)
        return x


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("num_frames", [1, 6, 9])
def test_the_network_agrees_with_a_naive_float64_reference(name: str, num_frames: int) -> None:
    model = random_model(SMALL[name])
    side = model.space_downscale
    frames = torch.rand(2, num_frames, 3, 2 * side, side)
    reference = Reference(model)
    latents = reference.encode(list(frames.double().unbind(1)), model.time_downscale)
    raw = reference.decode(latents)
    keeps_all = model.config.variant == "taecvx" and len(latents) % 2 == 0
    expected = torch.stack(raw if keeps_all else raw[model.time_upscale - 1 :], 1)
    double = model.double()
    with torch.no_grad():
        encoded, decoded = double(frames.double())
    torch.testing.assert_close(encoded, torch.stack(latents, 1), rtol=0, atol=1e-10)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        clamped = double.decode_video(encoded)
    assert torch.equal(clamped, decoded.clamp(0, 1))


@pytest.mark.parametrize("name", ["taehv", "taeltx_2", "taew2_2_super"])
def test_the_future_never_reaches_back(name: str) -> None:
    model = random_model(SMALL[name]).double()
    d, side = model.time_downscale, model.space_downscale
    frames = torch.rand(1, 3 * d, 3, side, side, dtype=torch.float64)
    changed = frames.clone()
    changed[:, 2 * d :] = torch.rand_like(changed[:, 2 * d :])
    with torch.no_grad():
        (latents, decoded), (latents_changed, decoded_changed) = model(frames), model(changed)
    kept = model.alignment.num_decoded(2 * d)
    torch.testing.assert_close(latents[:, :2], latents_changed[:, :2], rtol=0, atol=1e-12)
    torch.testing.assert_close(decoded[:, :kept], decoded_changed[:, :kept], rtol=0, atol=1e-12)
    assert (latents[:, 2] - latents_changed[:, 2]).abs().min() > 1e-9
    assert ((decoded[:, kept:] - decoded_changed[:, kept:]).abs().amax((0, 2, 3, 4)) > 1e-6).all()


def test_the_past_reaches_on() -> None:
    model = random_model(SMALL["taehv"])
    frames = torch.rand(1, 8, 3, 8, 8)
    other = torch.cat([torch.rand(1, 4, 3, 8, 8), frames[:, 4:]], 1)
    with torch.no_grad():
        first, second = model.encode_video(frames), model.encode_video(other)
    assert not torch.allclose(first[:, 1], second[:, 1], atol=1e-3)


def test_a_batch_is_its_clips_one_by_one() -> None:
    model = random_model(SMALL["taehv"])
    frames = torch.rand(3, 9, 3, 16, 8)
    with torch.no_grad():
        latents, decoded = model(frames)
        for i in range(3):
            own_latents, own_decoded = model(frames[i : i + 1])
            torch.testing.assert_close(own_latents, latents[i : i + 1], rtol=0, atol=1e-5)
            torch.testing.assert_close(own_decoded, decoded[i : i + 1], rtol=0, atol=1e-5)


def test_given_latents_are_decoded_instead_of_the_models_own() -> None:
    model = random_model(SMALL["taehv"])
    frames, latents = torch.rand(1, 9, 3, 8, 8), torch.randn(1, 3, 16, 1, 1)
    with torch.no_grad():
        encoded, decoded = model(frames, latents)
        assert torch.equal(encoded, model.encode_video(frames))
        assert torch.equal(decoded, model.decode_video(latents, clamp=False))


@pytest.mark.parametrize("name", ["taehv", "taecvx", "taeltx_2"])
@pytest.mark.parametrize("parallel", [True, False])
def test_a_whole_video_comes_back_whole(name: str, parallel: bool) -> None:
    model = random_model(SMALL[name])
    side = model.space_downscale
    for num_frames in range(1, 11):
        with torch.no_grad():
            back = model.reconstruct_video(torch.rand(1, num_frames, 3, side, side), parallel)
        assert back.shape == (1, num_frames, 3, side, side)
        assert back.min() >= 0
        assert back.max() <= 1


@pytest.mark.parametrize("name", ["taehv", "taecvx"])
def test_a_frame_is_the_same_in_a_video_of_any_length(name: str) -> None:
    """Frames 0 to 4 need the first two latents, of eight frames. A network learns of some lengths,
    and is used on all others: it must not show its frames later or earlier there."""
    model = random_model(SMALL[name])
    frames = torch.rand(1, 21, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    of_a_clip = model.reconstruct_video(frames[:, :9])[:, :5]
    for length in range(8, 22):
        whole = model.reconstruct_video(frames[:, :length])
        assert whole.shape[1] == length
        torch.testing.assert_close(whole[:, :5], of_a_clip, rtol=1e-4, atol=1e-5)
        stream = list(NetworkMethod(model, name, name).stream(frames.unbind(1)[:length], length))
        torch.testing.assert_close(torch.stack(stream, 1), whole, rtol=1e-4, atol=1e-5)


def test_gradients_are_the_same_in_parallel_and_in_sequence() -> None:
    frames = torch.rand(1, 5, 3, 8, 8)
    gradients = []
    for parallel in (True, False):
        model = random_model(SMALL["taehv"])
        model(frames, parallel=parallel)[1].square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in itertools.zip_longest(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.rand(9, 3, 8, 8), r"five dimensions.*\(9, 3, 8, 8\)"),
        (torch.zeros(1, 9, 3, 8, 8, dtype=torch.uint8), r"floating point.*torch\.uint8"),
        (torch.rand(1, 3, 9, 8, 8), r"3 channels.*\(1, 3, 9, 8, 8\)"),
        (torch.rand(1, 0, 3, 8, 8), r"no frame.*\(1, 0, 3, 8, 8\)"),
        (torch.rand(1, 9, 3, 12, 8), r"multiples of 8.*\(1, 9, 3, 12, 8\)"),
        (torch.rand(1, 9, 3, 8, 0), r"multiples of 8.*\(1, 9, 3, 8, 0\)"),
    ],
)
def test_frames_that_do_not_fit_are_named(frames: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_model(SMALL["taehv"]).encode_video(frames)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.rand(3, 16, 1, 1), r"five dimensions.*\(3, 16, 1, 1\)"),
        (torch.rand(1, 3, 4, 1, 1), r"16 channels.*taehv.*\(1, 3, 4, 1, 1\)"),
        (torch.rand(1, 0, 16, 1, 1), r"hold nothing.*\(1, 0, 16, 1, 1\)"),
    ],
)
def test_latents_that_do_not_fit_are_named(latents: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_model(SMALL["taehv"]).decode_video(latents)


def test_the_cogvideox_stream_must_be_told_its_length() -> None:
    model = random_model(SMALL["taecvx"])
    with pytest.raises(ValueError, match="taecvx drops depends on the number of latents"):
        StreamingDecoder(model)
    with pytest.raises(ValueError, match="not both"):
        StreamingDecoder(model, num_latents=2, frames_to_trim=0)
    latent = torch.randn(1, 16, 1, 1)
    assert len(StreamingDecoder(model, frames_to_trim=3).decode(latent)) == 1
    assert len(StreamingDecoder(model, num_latents=2).decode(latent)) == 4


def test_a_stream_refuses_what_cannot_follow() -> None:
    model = random_model(SMALL["taehv"])
    encoder = StreamingEncoder(model)
    assert encoder.encode(torch.rand(1, 3, 8, 8)) is None
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\), but this one has \(1, 3, 16, 8\)"):
        encoder.encode(torch.rand(1, 3, 16, 8))
    with pytest.raises(ValueError, match="multiples of 8"):
        encoder.encode(torch.rand(1, 3, 9, 8))
    assert encoder.flush() is not None
    with pytest.raises(RuntimeError, match="flushed"):
        encoder.encode(torch.rand(1, 3, 8, 8))
    assert StreamingEncoder(model).flush() is None
    decoder = StreamingDecoder(model, num_latents=1)
    decoder.decode(torch.randn(1, 16, 1, 1))
    with pytest.raises(RuntimeError, match="more latents"):
        decoder.decode(torch.randn(1, 16, 1, 1))


def test_a_stream_keeps_one_activation_per_memory_block() -> None:
    model = random_model(SMALL["taehv"])
    decoder = StreamingDecoder(model)
    held = []
    for _ in range(4):
        decoder.decode(torch.randn(1, 16, 1, 1))
        held.append([layer for layer in model.decoder if layer in decoder._stream.stepper.memory])
    assert held == [[model.decoder[i] for i in (3, 4, 5, 9, 10, 11, 15, 16, 17)]] * 4
