"""The teacher: a frozen CogVideoX VAE, the encoder's target and the reference for a student.

The public class is diffusers' `AutoencoderKLCogVideoX`: NCTHW, values in [-1, 1], 4x in time, 8x in
space, causal. `Teacher` converts from and to the trainer's layout: NTCHW, RGB in [0, 1].

If it cannot be loaded, the run stops. There is no fallback.

Shape letters: N clips, T frames, C channels, H height, W width, t latents, h and w latent size.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taehv.errors import TrainingError
from taehv.losses.latent_cache import LatentCache, process_cache
from taehv.model.alignment import repeat_last_frame

CLASS_NAME = "AutoencoderKLCogVideoX"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")
FRAME_BLOCK = 8
"""The teacher encodes blocks of 8 frames; the first block takes the remainder as well."""

SLOPE_TOLERANCE = 0.05
"""How far the slope of student on teacher latents may lie from 1 before it is worth a warning."""


@dataclass(frozen=True)
class TeacherConfig:
    """Which teacher, and the scale of its latents."""

    path: str = ""
    """Folder made by `save_pretrained`, holding `vae/`. Empty: no teacher."""
    latent_scale: float = 1.0
    """Factor on the teacher's raw latents. 1 is right for students that decode raw latents, as the
    public ones do; it is not the pipeline's `scaling_factor`."""
    cache_gigabytes: float = 0.0
    """Latents, in 10^9 bytes of a worker's host memory, that are remembered for clips that come
    again: those of a sweep's next trial, and those after a rollback. Within a run no clip recurs.
    0: none."""

    def __post_init__(self) -> None:
        if not 0 <= self.cache_gigabytes < math.inf:
            raise ValueError(
                f"teacher.cache_gigabytes is {self.cache_gigabytes}: it is finite and not negative"
            )
        if not (math.isfinite(self.latent_scale) and self.latent_scale > 0):
            raise ValueError(
                f"teacher.latent_scale must be a number above 0, got {self.latent_scale}"
            )


def check_teacher(path: str | Path) -> None:
    """Check that a folder holds a teacher, without loading its weights.

    Raises TrainingError naming the path, what is missing and what to do.
    """
    folder = Path(path) / "vae"
    remedy = (
        "teacher.path must name a folder made by save_pretrained, such as a download of "
        "CogVideoX-2b with its vae/ folder"
    )
    if not Path(path).is_dir():
        raise TrainingError(f"teacher {path}: no such folder; {remedy}")
    if not folder.is_dir():
        raise TrainingError(f"teacher {path}: it holds no vae/ folder; {remedy}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(
            f"teacher {folder / 'config.json'}: {error.strerror}; {remedy}"
        ) from error
    except ValueError as error:  # not JSON, or not text
        raise TrainingError(f"teacher {folder / 'config.json'}: not JSON ({error})") from error
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found != CLASS_NAME:
        raise TrainingError(
            f"teacher {folder / 'config.json'}: _class_name is {found!r}, expected {CLASS_NAME!r}; "
            f"{remedy}"
        )
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise TrainingError(
            f"teacher {folder}: the weights are missing ({' or '.join(WEIGHTS)}); finish the "
            "download, or save the model again with save_pretrained(safe_serialization=True)"
        )


class Teacher:
    """A frozen CogVideoX VAE. No `nn.Module`, so no optimizer or checkpoint can pick it up."""

    def __init__(
        self, vae: Any, latent_scale: float = 1.0, cache: LatentCache | None = None
    ) -> None:
        """vae: an `AutoencoderKLCogVideoX`, on its device and in its dtype. It is frozen here.
        latent_scale: see `TeacherConfig`. cache: for `targets`."""
        self._vae = vae.eval().requires_grad_(False)
        self._latent_scale = latent_scale
        self._cache = cache
        self.latent_channels = int(vae.config.latent_channels)
        self.time_factor = int(vae.config.temporal_compression_ratio)
        self.space_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @classmethod
    def load(cls, config: TeacherConfig, device: torch.device | str) -> "Teacher":
        """Load from disk, never from the network: bf16 on CUDA, fp32 elsewhere.

        Raises TrainingError where anything is missing, damaged or left over.
        """
        check_teacher(config.path)
        # diffusers takes seconds to import, and most runs have no teacher.
        from diffusers import AutoencoderKLCogVideoX
        from safetensors import SafetensorError

        device = torch.device(device)
        try:
            vae, report = AutoencoderKLCogVideoX.from_pretrained(
                config.path,
                subfolder="vae",
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                torch_dtype=_dtype_on(device),
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise TrainingError(
                f"teacher {config.path}: it could not be loaded ({error}); compare its vae/ folder "
                "with the published one, or download it again"
            ) from error
        # diffusers gives random values to weights that the file lacks, and only warns.
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[kind]:
                keys = sorted(str(key) for key in report[kind])
                raise TrainingError(
                    f"teacher {config.path}: {len(keys)} {kind.replace('_', ' ')} in its weights "
                    f"(first: {keys[0]}); weights and vae/config.json do not belong together"
                )
        cache = None
        if config.cache_gigabytes:
            key = f"{_identity(config.path)} {config.latent_scale} {device}"
            cache = process_cache(key, int(config.cache_gigabytes * 1e9))
        return cls(vae.to(device), config.latent_scale, cache)

    def to(self, device: torch.device) -> "Teacher":
        """The teacher on `device`, in the dtype that `load` would give it there."""
        vae, dtype = self._vae.to(device), _dtype_on(device)
        return Teacher(vae if vae.dtype == dtype else vae.to(dtype), self._latent_scale)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Mode of the posterior, unscaled, times `latent_scale`.

        NTCHW RGB in [0, 1] -> NtChw float32. ValueError where H or W is no multiple of 8.
        """
        height, width = frames.shape[-2:]
        if height % self.space_factor or width % self.space_factor:
            raise ValueError(
                f"the teacher needs height and width in multiples of {self.space_factor}, "
                f"got {height}x{width}"
            )
        # In float32, of which bf16 keeps more of a dark grey once it is near 0.
        video = frames.to(self._vae.device).float().mul(2).sub(1).transpose(1, 2)
        video = video.to(self._vae.dtype)
        latents: Tensor = self._vae.encode(video).latent_dist.mode()
        return latents.transpose(1, 2).float() * self._latent_scale

    def targets(self, clips: np.ndarray, frames: Tensor) -> Tensor:
        """`encode(frames)`, from the cache if there is one.

        Args:
            clips: uint8 [N, T, 3, H, W], contiguous.
            frames: the same clips in [0, 1], on the teacher's device.
        """
        if self._cache is None:
            return self.encode(frames)
        return self._cache.get(clips, frames.device, lambda: self.encode(frames))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Inverse of `encode`. NtChw -> NTCHW RGB float32, clamped to [0, 1].

        An odd number t of latents gives 4(t - 1) + 1 frames, an even one 4t.
        """
        video = (latents.float() / self._latent_scale).to(self._vae.device, self._vae.dtype)
        decoded: Tensor = self._vae.decode(video.transpose(1, 2)).sample
        return decoded.transpose(1, 2).float().add(1).div(2).clamp(0, 1)

    def reconstruct(self, frames: Tensor) -> Tensor:
        """Encode and decode a clip of any length. NTCHW -> NTCHW, both in [0, 1].

        The clip is extended to 8k + 1 frames by repeating its last one, and cropped afterwards, so
        that frame t of the result reconstructs frame t of the clip.
        """
        num_frames = frames.shape[1]
        surplus = -(num_frames - 1) % FRAME_BLOCK
        extended = repeat_last_frame(frames, num_frames + surplus)
        return self.decode(self.encode(extended))[:, :num_frames]

    def check_matches(self, latent_channels: int, time_factor: int, space_factor: int) -> None:
        """Check that a student's latents have the shape of the teacher's.

        Raises TrainingError naming every difference.
        """
        pairs = {
            "latent channels": (self.latent_channels, latent_channels),
            "compression in time": (self.time_factor, time_factor),
            "compression in space": (self.space_factor, space_factor),
        }
        differences = [
            f"{name}: teacher {ours}, student {theirs}"
            for name, (ours, theirs) in pairs.items()
            if ours != theirs
        ]
        if differences:
            raise TrainingError(
                f"the teacher does not fit the student ({'; '.join(differences)}); choose a "
                "student of the teacher's shape, or leave teacher.path empty and set loss.encoder 0"
            )


def _identity(path: str) -> str:
    """Identifies the teacher in a folder by its files' names, sizes and modification times."""
    files = sorted((Path(path).resolve() / "vae").iterdir())
    return repr([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def _dtype_on(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def frame_rule_warning(num_frames: int) -> str | None:
    """A warning where the teacher does not encode clips of this length cleanly; None for 8k + 1."""
    if num_frames % FRAME_BLOCK == 1:
        return None
    below = max(num_frames - 1, 0) // FRAME_BLOCK * FRAME_BLOCK + 1
    return (
        f"clips of {num_frames} frames: the teacher is made for 8k + 1 frames and does not treat "
        f"the first frame apart, or counts it twice, at other lengths; "
        f"{below if below > 1 else 9} or {below + FRAME_BLOCK} would be clean"
    )


def slope_to_student(student_latents: Tensor, teacher_latents: Tensor) -> float:
    """Least-squares slope, with an intercept, of student on teacher latents of the same shape.

    1 is right; NaN if the teacher's latents are all equal.
    """
    if student_latents.shape != teacher_latents.shape:
        raise ValueError(
            f"student latents {tuple(student_latents.shape)} and teacher latents "
            f"{tuple(teacher_latents.shape)} differ in shape"
        )
    student = student_latents.double() - student_latents.double().mean()
    teacher = teacher_latents.double() - teacher_latents.double().mean()
    return float((student * teacher).sum() / teacher.square().sum())


def slope_warning(slope: float) -> str | None:
    """A warning where teacher and student differ in scale; None within 5 %."""
    if abs(slope - 1) <= SLOPE_TOLERANCE:
        return None
    return (
        f"student latents are {slope:.3f} times the teacher's, more than {SLOPE_TOLERANCE:.0%} off "
        "1: the student was made for other weights or for scaled latents (teacher.latent_scale)"
    )
