"""Weights in and out: the round trip, less time upscaling, and every refusal's message."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from taehv.errors import TrainingError
from taehv.model import TAEHV, ModelConfig, build_model
from taehv.model.shapes import expected_shapes, infer_config
from taehv.model.variants import VARIANTS
from taehv.model.weights import export_weights, load_weights

SMALL = ModelConfig("taehv", encoder_width=8, decoder_widths=(12, 10, 8, 6))
State = dict[str, Tensor]


def random_state(config: ModelConfig = SMALL) -> State:
    torch.manual_seed(0)
    return TAEHV(config).state_dict()


def saved(state: object, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def refusal(path: str | Path, config: ModelConfig = SMALL) -> str:
    """The message with which the file is refused; the model must be untouched by it."""
    model = TAEHV(config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(TrainingError) as caught:
        load_weights(model, path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    state = random_state()
    export_weights(state, tmp_path / "w.pth", tmp_path / "w.safetensors")
    config = dataclasses.replace(SMALL, pretrained=str(tmp_path / f"w.{suffix}"))
    back = build_model(config).state_dict()
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_exported_files_are_plain_and_alone(tmp_path: Path) -> None:
    # Half precision, a transposed view and one storage for two entries: none of it may get out.
    state = {key: value.half() for key, value in random_state().items()}
    state["encoder.0.weight"] = state["encoder.0.weight"].transpose(2, 3)
    state["encoder.5.conv.2.weight"] = state["encoder.5.conv.4.weight"]
    folder = tmp_path / "new" / "folder"
    export_weights(state, folder / "w.pth", folder / "w.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == ["w.pth", "w.safetensors"]
    plain = torch.load(folder / "w.pth", weights_only=True)
    assert type(plain) is dict
    for file in (plain, load_file(folder / "w.safetensors")):
        assert set(file) == set(state)
        for key, value in file.items():
            assert type(value) is torch.Tensor
            assert value.dtype == torch.float32
            assert value.is_contiguous()
            assert not value.requires_grad
            assert torch.equal(value, state[key].float())
    storages = {value.untyped_storage().data_ptr() for value in plain.values()}
    assert len(storages) == len(plain)


def test_export_replaces_a_file_and_a_failure_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tmp_path / "w.pth", tmp_path / "w.safetensors"
    export_weights(random_state(), *paths)
    old = paths[0].read_bytes()

    def full_disk(state: State, path: Path) -> None:
        path.write_bytes(b"half a fi")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export_weights({k: v * 0 for k, v in random_state().items()}, *paths)
    assert paths[0].read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth", "w.safetensors"]
    monkeypatch.undo()
    export_weights({k: v * 0 for k, v in random_state().items()}, *paths)
    assert not any(v.any() for v in load_file(paths[1]).values())


def test_export_refuses_what_others_could_not_load(tmp_path: Path) -> None:
    paths = tmp_path / "w.pth", tmp_path / "w.safetensors"
    wrapped = {f"module.{key}": value for key, value in random_state().items()}
    with pytest.raises(TrainingError, match=r"not those of a TAEHV.*module\.encoder\.0"):
        export_weights(wrapped, *paths)
    broken = random_state()
    broken["decoder.22.bias"] = torch.tensor([0.0, float("nan"), 0.0])
    with pytest.raises(TrainingError, match=r"not finite: decoder\.22\.bias"):
        export_weights(broken, *paths)
    assert not list(tmp_path.iterdir())


def test_half_precision_files_load_into_the_models_own_precision(tmp_path: Path) -> None:
    half = {key: value.half() for key, value in random_state().items()}
    model = TAEHV(SMALL)
    load_weights(model, saved(half, tmp_path / "w.pth"))
    loaded = model.state_dict()["decoder.22.weight"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, half["decoder.22.weight"].float())


def test_a_decoder_of_fewer_frames_makes_the_full_ones_each_second_frame(tmp_path: Path) -> None:
    # The last TGrow has no memory behind it, so the frames that stay are the very same.
    path = saved(random_state(), tmp_path / "w.pth")
    full = build_model(dataclasses.replace(SMALL, pretrained=path))
    config = dataclasses.replace(SMALL, pretrained=path, decoder_time_upscale=(False, True, False))
    fewer = build_model(config)
    kernel, kept = (m.state_dict()["decoder.19.conv.weight"] for m in (full, fewer))
    assert torch.equal(kept, kernel[kernel.shape[0] // 2 :])
    frames = torch.rand(1, 9, 3, 16, 16)
    with torch.no_grad():
        all_frames = full.reconstruct_video(frames)
        some_frames = fewer.reconstruct_video(frames)
    assert some_frames.shape[1] == 5
    torch.testing.assert_close(some_frames, all_frames[:, ::2], rtol=0, atol=1e-6)


def test_a_decoder_without_time_upscaling_takes_the_tail_of_every_kernel(tmp_path: Path) -> None:
    state = random_state()
    config = dataclasses.replace(SMALL, decoder_time_upscale=(False, False, False))
    model = TAEHV(config)
    load_weights(model, saved(state, tmp_path / "w.pth"))
    for index, width in ((7, 12), (13, 10), (19, 8)):
        key = f"decoder.{index}.conv.weight"
        assert torch.equal(model.state_dict()[key], state[key][-width:])


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_tell_the_variant_up_to_its_twins(name: str) -> None:
    shapes = expected_shapes(VARIANTS[name])
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = infer_config(state)
    assert config == ModelConfig(variant=config.variant)
    twins = {
        "taehv": "taecvx",
        "taew2_1": "taecvx",
        "taeos1_3": "taecvx",
        "taeltx2_3": "taeltx_2",
    }
    assert config.variant == twins.get(name, name)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("taecvx", encoder_width=8, decoder_widths=(12, 10, 8, 6)),
        ModelConfig("taehv1_5_super", encoder_width=16, decoder_widths=(12, 10, 8, 6)),
        ModelConfig("taecvx", latent_channels=4, decoder_time_upscale=(False, False, False)),
        ModelConfig("taecvx", encoder_time_downscale=(True, False, False)),
    ],
)
def test_shapes_tell_a_network_of_its_own_kind(config: ModelConfig) -> None:
    with torch.device("meta"):
        state = TAEHV(config).state_dict()
    assert infer_config(state) == config


@pytest.mark.parametrize("drop", ["decoder.1.weight", "encoder.17.bias", "encoder.9.conv.2.bias"])
def test_shapes_of_something_else_are_refused(drop: str) -> None:
    state = random_state()
    del state[drop]
    with pytest.raises(TrainingError, match="not those of a TAEHV"):
        infer_config(state)
    with pytest.raises(TrainingError, match="not those of a TAEHV"):
        infer_config({})


def test_another_variants_file_is_recognised(tmp_path: Path) -> None:
    path = saved(random_state(ModelConfig("taew2_2")), tmp_path / "a.pth")
    message = refusal(path, ModelConfig("taecvx"))
    assert str(path) in message
    assert "(64, 12, 3, 3) in the file, (64, 3, 3, 3) in the model" in message
    assert "encoder.17.weight" in message
    assert "looks like taew2_2: pass --model.variant taew2_2" in message


def test_a_file_of_other_widths_comes_with_its_flags(tmp_path: Path) -> None:
    message = refusal(saved(random_state(), tmp_path / "a.pth"), ModelConfig("taehv"))
    assert "and " in message
    assert "more" in message
    assert message.count("in the file, ") == 8
    assert message.endswith(
        "--model.variant taecvx --model.encoder-width 8 --model.decoder-widths 12 10 8 6"
    )


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path) -> None:
    state = random_state()
    del state["encoder.17.bias"]
    state["decoder.99.weight"] = torch.zeros(1)
    message = refusal(saved(state, tmp_path / "a.pth"))
    assert "1 missing in the file: encoder.17.bias" in message
    assert "1 not in the model: decoder.99.weight" in message
    assert "of another shape" not in message
    assert "fits no TAEHV" in message


def test_no_file(tmp_path: Path) -> None:
    assert f"{tmp_path / 'a.pth'}: there is no such" in refusal(tmp_path / "a.pth")
    assert "there is no such" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file(tmp_path: Path, suffix: str, share: float) -> None:
    export_weights(random_state(), tmp_path / "w.pth", tmp_path / "w.safetensors")
    whole = (tmp_path / f"w.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole[: int(len(whole) * share)])
    message = refusal(cut)
    assert str(cut) in message
    assert "weights" in message


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"<!doctype html><title>404</title>",
        bytes(range(256)) * 8,
        b"\x80\x02.",
        b"PK\x03\x04 not a zip",
        b"\x00" * 4096,
    ],
)
def test_a_file_of_another_kind(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"other.{suffix}"
    path.write_bytes(content)
    assert str(path) in refusal(path)


class Unwelcome:
    """Anything that only unpickling could bring back."""


def test_a_pickle_of_objects(tmp_path: Path) -> None:
    message = refusal(saved({"model": Unwelcome()}, tmp_path / "a.pth"))
    assert str(tmp_path / "a.pth") in message
    assert "weights_only=True" in message


def test_other_plain_contents(tmp_path: Path) -> None:
    assert "holds a list, not a state dict" in refusal(saved([1], tmp_path / "a.pth"))
    nested = {"epoch": 3, "generator": random_state()}
    message = refusal(saved(nested, tmp_path / "b.pth"))
    assert "'epoch' is a int" in message
    assert "it holds epoch, generator" in message
    integers = {key: value.int() for key, value in random_state().items()}
    assert "encoder.0.weight is torch.int32" in refusal(saved(integers, tmp_path / "c.pth"))


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    state = random_state()
    state["decoder.22.bias"][1] = float("inf")
    save_file(state, tmp_path / "a.safetensors")
    message = refusal(tmp_path / "a.safetensors")
    assert "decoder.22.bias holds values that are not finite" in message
