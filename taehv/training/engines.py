"""DeepSpeed: the only file that names it.

Each of the two networks (generator, discriminator) has an engine of its own. Weights stay float32
in the networks and bf16, where wanted, is autocast inside the forward pass: at 11 M parameters the
activations are what costs memory, and the averaged and exported weights stay exact.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from taehv import distributed
from taehv.ops.compiling import Compiled
from taehv.ops.cuda_graphs import GraphedCallable
from taehv.precision import autocast
from taehv.slots import SlotLayout

# Adam's moments, by which a parameter's optimizer state is saved; `step` is common to all.
MOMENTS = ("exp_avg", "exp_avg_sq")
# Between a moment's name and the offset of a piece of it.
_AT = "@"


@dataclass(frozen=True)
class OptimConfig:
    """The generator's AdamW and its schedule, and what DeepSpeed does for both networks."""

    learning_rate: float = 3e-4
    """Peak, reached after the warm-up."""
    final_learning_rate_ratio: float = 0.05
    """Learning rate at `train.max_steps`, as a fraction of the peak."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""
    weight_decay: float = 0.01
    """AdamW's."""
    gradient_clipping: float = 1.0
    """Largest gradient norm of the generator; 0: no clipping."""
    gradient_centralization: bool = True
    """Take from each gradient of a convolution its mean over the inputs, for every output channel
    (Yong et al. 2020, "Gradient Centralization"). The activations are never negative, and what all
    weights of a channel do together, move its mean, is what bounds the learning rate otherwise."""
    zero_stage: Literal[0, 1, 2] = 0
    """What DeepSpeed partitions over the workers: 0 nothing, 1 the optimizer's state, 2 the
    gradients too. (3, the weights, is of no use to a network of 11 M.) What it saves, of 90 MB of
    optimizer state, costs thousands of small operations a step."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"optim.learning_rate is {self.learning_rate}: it must be positive")
        if not 0 <= self.final_learning_rate_ratio <= 1:
            raise ValueError(
                f"optim.final_learning_rate_ratio is {self.final_learning_rate_ratio}: 0 to 1"
            )
        for name in ("warmup_steps", "weight_decay", "gradient_clipping"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}: it cannot be negative")

    def learning_rate_at(self, step: int, max_steps: int) -> float:
        """Linear warm-up, then a half cosine down to the final ratio; a pure function of step."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        floor = self.final_learning_rate_ratio
        return self.learning_rate * (floor + (1 - floor) * cosine)


class Engine(Protocol):
    """The part of `deepspeed.DeepSpeedEngine` in use here."""

    optimizer: Any

    def __call__(self, *inputs: Any) -> Any: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self) -> None: ...
    def get_global_grad_norm(self) -> Tensor | float | None: ...
    def zero_optimization_stage(self) -> int: ...


class _Autocast(nn.Module):
    """Runs a network under autocast, inside the engine, since the engine disables an outer one."""

    def __init__(
        self, network: nn.Module, name: str, dtype: torch.dtype | None, compiles: bool, graphs: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self._call = Compiled(network.forward, name) if compiles else network
        parameters = list(network.parameters())
        self._run = GraphedCallable(self._compute, name, parameters) if graphs else self._compute

    def forward(self, *inputs: Any) -> Any:
        return self._run(*inputs)

    def _compute(self, *inputs: Any) -> Any:
        with autocast(self.dtype):
            return self._call(*inputs)


def build_engine(
    network: nn.Module,
    name: str,
    optim: OptimConfig,
    layout: SlotLayout,
    dtype: torch.dtype | None,
    *,
    centralizes: bool = False,
    compiles: bool = False,
    graphs: bool = False,
) -> Engine:
    """A DeepSpeed engine with AdamW around `network`, which must hold its weights already.

    A step is `layout.passes` rounds of forward and `backward`, each followed by `step`; the last
    one updates the weights. Gradients are averaged over passes and workers. `dtype` is autocast's,
    and the log uses `name`. With `centralizes` gradients of convolutions lose their mean over the
    inputs (`OptimConfig.gradient_centralization`). With `compiles` the forward pass goes through
    torch.compile, with `graphs` both passes become CUDA graphs on a GPU; the network must then have
    no side effects.
    """
    deepspeed = _import_deepspeed()
    if centralizes:
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.register_post_accumulate_grad_hook(_centralize)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(
        network.parameters(),
        optim.learning_rate,
        betas=optim.betas,
        weight_decay=optim.weight_decay,
        fused=True,
    )
    config = {
        "train_micro_batch_size_per_gpu": layout.slots_per_pass,
        "gradient_accumulation_steps": layout.passes,
        # At stage 0 DeepSpeed would clip parameter by parameter; see `clip_or_skip_update`.
        "gradient_clipping": optim.gradient_clipping if optim.zero_stage else 0.0,
        # The defaults reserve gigabytes for buckets of 5e8 elements; two networks of about 10 M
        # parameters need no more than this.
        "zero_optimization": {
            "stage": optim.zero_stage,
            "reduce_bucket_size": 20_000_000,
            "allgather_bucket_size": 20_000_000,
        },
        "steps_per_print": 2**31,
        # The timer would synchronise with the device at every forward pass and step.
        "timers": {"throughput": {"enabled": False}},
    }
    engine, *_ = deepspeed.initialize(
        model=_Autocast(network, name, dtype, compiles, graphs),
        optimizer=optimizer,
        config=config,
        dist_init_required=False,
    )
    return engine  # type: ignore[no-any-return]


def _centralize(parameter: Tensor) -> None:
    """Take from a gradient [out, in, height, width] its mean for each output channel, in place."""
    gradient = parameter.grad
    assert gradient is not None
    gradient.sub_(gradient.mean(tuple(range(1, gradient.ndim)), keepdim=True))


def set_learning_rate(engine: Engine, value: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def gradient_norm_before_step(engine: Engine, network: nn.Module) -> Tensor | None:
    """The gradient norm at ZeRO stage 0, where DeepSpeed computes none; else None. Called before
    `step`, after the workers' gradients have been averaged."""
    if engine.zero_optimization_stage() > 0:
        return None
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def clip_or_skip_update(engine: Engine, skip_update: Tensor, norm: Tensor, max_norm: float) -> None:
    """Make the next `step` clip the gradients to `max_norm`, and skip it where `skip_update` is 1.

    Fused AdamW does both on the device, so that the CPU need not wait for the two scalars; a
    `max_norm` of 0 clips nothing. The engine must be at ZeRO stage 0.
    """
    # Fused AdamW takes both in float32, whatever the weights are.
    adamw, dtype = _adamw(engine), torch.float32
    adamw.found_inf = skip_update.to(dtype)  # type: ignore[attr-defined]
    scale = (norm / max_norm).clamp(min=1).to(dtype) if max_norm > 0 else None
    adamw.grad_scale = scale  # type: ignore[attr-defined]


def optimizer_pieces(engine: Engine, network: nn.Module) -> dict[str, Tensor]:
    """This worker's share of AdamW's state, by parameter, moment and offset. A collective.

    A piece is named `decoder.3.weight.exp_avg@512`: the elements of that moment, flat, from 512 on.
    The pieces of all workers make up the whole. Without ZeRO they are the main worker's alone, and
    the optimizer's own tensors.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    adamw = _adamw(engine)
    steps = [state["step"] for state in adamw.state.values() if "step" in state]
    pieces = {"step": torch.as_tensor(steps[0] if steps else 0.0).detach()}
    # DeepSpeed cannot be asked for moments that no step has made yet.
    if not steps:
        return pieces
    for name, parameter in network.named_parameters():
        share = -(-parameter.numel() // distributed.world_size())
        start = distributed.rank() * share
        for moment in MOMENTS:
            if engine.zero_optimization_stage() > 0:
                # All workers get the whole, and each keeps an equal share of it.
                whole = safe_get_full_optimizer_state(parameter, moment)
                piece = whole.flatten()[start : start + share].clone()
                if len(piece):
                    pieces[f"{name}.{moment}{_AT}{start}"] = piece
            elif distributed.is_main():
                pieces[f"{name}.{moment}{_AT}0"] = adamw.state[parameter][moment].detach().view(-1)
    return pieces


def load_optimizer_pieces(
    engine: Engine, network: nn.Module, pieces: Iterable[Mapping[str, Tensor]]
) -> None:
    """Load what `optimizer_pieces` gave on all workers, at this or another number of them.

    Raises ValueError where the pieces do not make up the state of `network`.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    state = _merge_pieces(network, pieces)
    if not float(state["step"]):
        return
    adamw = _adamw(engine)
    for group in adamw.param_groups:
        for parameter in group["params"]:
            adamw.state[parameter] = {
                "step": state["step"].to(parameter.device, copy=True),
                **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
            }
    if engine.zero_optimization_stage() > 0:
        # ZeRO ties its partitions to the parameters at the first step. They are needed before, and
        # no public call of DeepSpeed 0.19.8 does it: `safe_set_full_optimizer_state` then fails.
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in network.named_parameters():
        for moment in MOMENTS:
            whole = state[f"{name}.{moment}"].view_as(parameter)
            if engine.zero_optimization_stage() > 0:
                safe_set_full_optimizer_state(parameter, whole, moment)
            else:
                adamw.state[parameter][moment].copy_(whole)


def _merge_pieces(network: nn.Module, pieces: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The whole optimizer state, each moment flat."""
    state: dict[str, Tensor] = {"step": torch.zeros(())}
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for part in pieces:
        for key, values in part.items():
            name, _, start = key.partition(_AT)
            if name == "step":
                state["step"] = values
            else:
                found.setdefault(name, []).append((int(start), values))
    if not float(state["step"]):
        return state
    for name, parameter in network.named_parameters():
        for moment in MOMENTS:
            key = f"{name}.{moment}"
            in_order = sorted(found.pop(key, []), key=lambda piece: piece[0])
            end = 0
            for offset, values in in_order:
                if offset != end:
                    break
                end += values.numel()
            if end != parameter.numel():
                raise ValueError(f"{key} is there to element {end} of {parameter.numel()}")
            state[key] = torch.cat([values for _, values in in_order])
    if found:
        raise ValueError(f"the network has no {next(iter(found))}")
    return state


def _adamw(engine: Engine) -> torch.optim.Optimizer:
    optimizer = engine.optimizer
    return getattr(optimizer, "optimizer", optimizer)  # type: ignore[no-any-return]


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed's autotuner, which is not used, would import MLflow, and that takes seconds.
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
    finally:
        if hidden:
            del sys.modules["mlflow"]
    from deepspeed.ops import __compatible_ops__

    # Otherwise DeepSpeed compiles a shared-memory all-reduce for 28 s; gloo's is as good here.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.WARNING)
    deepspeed.init_distributed()
    return deepspeed
