"""Weights in and out: plain state dicts in the public keys, as .pth or .safetensors.

The shapes in a file decide what it is; its name does not. Loading is strict: each key of the model
must be in the file and the other way round, with one exception that is part of the format (a model
with less time upscaling than the file takes the last frames of each TGrow).
"""

import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from taehv.atomic import replacing
from taehv.errors import TrainingError
from taehv.model.blocks import TGrow
from taehv.model.shapes import infer_config, override_flags

_SHOWN = 8
# What torch.load raises for a file that is absent, cut short, not its format or not plain tensors.
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    pickle.UnpicklingError,
    SafetensorError,
)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or with torch.load from any other, to the CPU.

    Raises TrainingError, naming the file, where it is absent, truncated, holds anything but a
    plain dict of floating-point tensors by name, or holds a value that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingError(f"{path}: there is no such weights file")
    try:
        if path.suffix == ".safetensors":
            loaded: object = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TrainingError(
            f"{path}: not a plain state dict of tensors (torch.load refuses it with "
            f"weights_only=True), or not a weights file at all"
        ) from error
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainingError(
            f"{path}: cannot be read as weights, perhaps cut short or of another format ({reason})"
        ) from error
    return _checked_state_dict(loaded, path)


def _checked_state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise TrainingError(f"{path}: holds a {type(loaded).__name__}, not a state dict")
    state: dict[str, Tensor] = {}
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            held = _some([str(k) for k in loaded])
            raise TrainingError(
                f"{path}: not a plain state dict: {key!r} is a {type(value).__name__}, not a "
                f"tensor (it holds {held}); pass a file of the generator's weights alone"
            )
        if not value.is_floating_point():
            raise TrainingError(f"{path}: {key} is {value.dtype}, not floating point")
        if not torch.isfinite(value).all():
            raise TrainingError(f"{path}: {key} holds values that are not finite")
        state[key] = value
    return state


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a public-key weights file into a TAEHV in place, strictly.

    Raises TrainingError where the file cannot be read, or where keys or shapes do not match; the
    message lists what differs and the variant that the file's shapes would fit.
    """
    state = read_weights(path)
    _keep_last_frames(model, state)
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    differing = [
        f"{key} ({tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model)"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or differing:
        lines = [f"{path}: the weights do not fit the model"]
        for found, what in (
            (missing, "missing in the file"),
            (unexpected, "not in the model"),
            (differing, "of another shape"),
        ):
            if found:
                lines.append(f"  {len(found)} {what}: {_some(found)}")
        raise TrainingError("\n".join([*lines, _advice(state)]))
    model.load_state_dict(state)


def _keep_last_frames(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Cut TGrow kernels that grow more frames than the model's to the last output channels.

    Those make the latest of the frames: the ones that stay after the leading frames are trimmed.
    """
    for name, module in model.named_modules():
        if isinstance(module, TGrow):
            key = f"{name}.conv.weight"
            rows = module.conv.weight.shape[0]
            if key in state and state[key].shape[0] > rows and state[key].shape[0] % rows == 0:
                state[key] = state[key][-rows:]


def _advice(state: Mapping[str, Tensor]) -> str:
    try:
        config = infer_config(state)
    except TrainingError:
        return "  The file fits no TAEHV: it is of another network, or of a part of one."
    changed = override_flags(config)
    return f"  The file looks like {config.variant}: pass --model.variant {config.variant}{changed}"


def _some(items: list[str]) -> str:
    rest = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f", and {rest} more" if rest > 0 else "")


def export_weights(
    state_dict: Mapping[str, Tensor], path_pth: str | Path, path_safetensors: str | Path
) -> None:
    """Write a state dict for others: contiguous CPU float32 tensors under the public keys.

    Each file appears whole or not at all. Raises TrainingError where the keys and shapes are not
    those of a TAEHV (a wrapper's prefix, say) or a value is not finite, and OSError where the disk
    refuses.
    """
    infer_config(state_dict)
    plain = {
        key: value.detach().to("cpu", torch.float32, copy=True).contiguous()
        for key, value in state_dict.items()
    }
    broken = [key for key, value in plain.items() if not torch.isfinite(value).all()]
    if broken:
        raise TrainingError(f"weights to export are not finite: {_some(broken)}")
    _write(Path(path_pth), lambda temporary: torch.save(plain, temporary))
    write_safetensors(plain, Path(path_safetensors))


def write_safetensors(weights: dict[str, Tensor], path: Path) -> None:
    """Write contiguous CPU tensors; the file appears whole or not at all. Raises OSError."""
    # "format" is what other readers of safetensors look for.
    _write(path, lambda temporary: save_file(weights, temporary, {"format": "pt"}))


def _write(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        try:
            write(temporary)
        except (RuntimeError, SafetensorError) as error:
            # torch and safetensors raise these where a disk is full.
            raise OSError(f"{path} cannot be written: {error}") from error
