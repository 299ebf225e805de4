"""DeepSpeed: the only file that names it.

Each of the two networks (generator, discriminator) has an engine of its own. Weights stay float32
in the networks and bf16, where wanted, is autocast inside the forward pass: at 11 M parameters the
activations are what costs memory, and the averaged and exported weights stay exact.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from taehv import distributed
from taehv.ops.compiling import Compiled
from taehv.ops.cuda_graphs import GraphedCallable
from taehv.precision import autocast
from taehv.slots import SlotLayout
from taehv.training.optimizer import OptimConfig, build_optimizer
from taehv.training.soap import Soap

# Adam's moments, by which a parameter's optimizer state is saved; `step` is common to all.
MOMENTS = ("exp_avg", "exp_avg_sq")
# Between a moment's name and the offset of a piece of it.
_AT = "@"


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
        parameters = trainable(network)
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
    """A DeepSpeed engine with an optimizer around `network`, which must hold its weights already.

    A step is `layout.passes` rounds of forward and `backward`, each followed by `step`; the last
    one updates the weights. Gradients are averaged over passes and workers. `dtype` is autocast's,
    and the log uses `name`. With `centralizes` gradients of convolutions lose their mean over the
    inputs (`OptimConfig.gradient_centralization`). With `compiles` the forward pass goes through
    torch.compile, with `graphs` both passes become CUDA graphs on a GPU; the network must then have
    no side effects.
    """
    deepspeed = _import_deepspeed()
    if centralizes:
        for parameter in trainable(network):
            if parameter.ndim > 1:
                parameter.register_post_accumulate_grad_hook(_centralize)  # type: ignore[no-untyped-call]
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
        optimizer=build_optimizer(trainable(network), optim),
        config=config,
        dist_init_required=False,
    )
    return engine  # type: ignore[no-any-return]


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


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

    Soap and fused AdamW do both on the device, so that the CPU need not wait for the two scalars; a
    `max_norm` of 0 clips nothing. The engine must be at ZeRO stage 0.
    """
    # Fused AdamW takes both in float32, whatever the weights are.
    optimizer, dtype = _optimizer(engine), torch.float32
    optimizer.found_inf = skip_update.to(dtype)  # type: ignore[attr-defined]
    scale = (norm / max_norm).clamp(min=1).to(dtype) if max_norm > 0 else None
    optimizer.grad_scale = scale  # type: ignore[attr-defined]


def optimizer_pieces(engine: Engine, network: nn.Module) -> dict[str, Tensor]:
    """This worker's share of the optimizer's state, by parameter, part and offset. A collective.

    A piece is named `decoder.3.weight.exp_avg@512`: the elements of that moment, flat, from 512 on.
    The pieces of all workers make up the whole. Without ZeRO they are the main worker's alone, and
    the optimizer's own tensors.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    state = _optimizer(engine).state
    steps = [own["step"] for own in state.values() if "step" in own]
    pieces = {"step": torch.as_tensor(steps[0] if steps else 0.0).detach()}
    # DeepSpeed cannot be asked for moments that no step has made yet.
    if not steps:
        return pieces
    for name, parameter in _named_trainable(network):
        if engine.zero_optimization_stage() == 0:
            if distributed.is_main():
                own = {part: whole for part, whole in state[parameter].items() if part != "step"}
                pieces |= {
                    f"{name}.{part}{_AT}0": whole.detach().view(-1) for part, whole in own.items()
                }
            continue
        share = -(-parameter.numel() // distributed.world_size())
        start = distributed.rank() * share
        for moment in MOMENTS:
            # All workers get the whole, and each keeps an equal share of it.
            whole = safe_get_full_optimizer_state(parameter, moment)
            piece = whole.flatten()[start : start + share].clone()
            if len(piece):
                pieces[f"{name}.{moment}{_AT}{start}"] = piece
    return pieces


def load_optimizer_pieces(
    engine: Engine, network: nn.Module, pieces: Iterable[Mapping[str, Tensor]]
) -> None:
    """Load what `optimizer_pieces` gave on all workers, at this or another number of them, into an
    engine that has made no step. What they have of parameters that are frozen now is left.

    Raises ValueError where the pieces do not make up the state of `network`.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    optimizer = _optimizer(engine)
    sizes = {
        f"{name}.{part}": whole.numel()
        for name, parameter in _named_trainable(network)
        for part, whole in _empty_state(optimizer, parameter).items()
        if part != "step"
    }
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    state = _merge_pieces(sizes, pieces, frozen)
    if not float(state["step"]):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = _empty_state(optimizer, parameter)
            optimizer.state[parameter]["step"].copy_(state["step"])
    if engine.zero_optimization_stage() > 0:
        # ZeRO ties its partitions to the parameters at the first step. They are needed before, and
        # no public call of DeepSpeed 0.19.8 does it: `safe_set_full_optimizer_state` then fails.
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in _named_trainable(network):
        if engine.zero_optimization_stage() > 0:
            for moment in MOMENTS:
                whole = state[f"{name}.{moment}"].view_as(parameter)
                safe_set_full_optimizer_state(parameter, whole, moment)
            continue
        for part, own in optimizer.state[parameter].items():
            if part != "step":
                own.copy_(state[f"{name}.{part}"].view_as(own))


def _empty_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer keeps of a parameter, or of ZeRO's share of parameters, before a step."""
    if isinstance(optimizer, Soap):
        return optimizer.empty_state(parameter)
    return {
        # Fused AdamW counts in float32, whatever the weights are.
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
    }


def _named_trainable(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [
        (name, parameter)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    ]


def _merge_pieces(
    sizes: Mapping[str, int], pieces: Iterable[Mapping[str, Tensor]], left: Collection[str]
) -> dict[str, Tensor]:
    """The whole optimizer state, each part of it flat and of the elements in `sizes`, without that
    of the parameters in `left`."""
    state: dict[str, Tensor] = {"step": torch.zeros(())}
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for part in pieces:
        for key, values in part.items():
            name, _, start = key.partition(_AT)
            if name == "step":
                state["step"] = values
            elif name.rpartition(".")[0] not in left:
                found.setdefault(name, []).append((int(start), values))
    if not float(state["step"]):
        return state
    for key, size in sizes.items():
        in_order = sorted(found.pop(key, []), key=lambda piece: piece[0])
        end = 0
        for offset, values in in_order:
            if offset != end:
                break
            end += values.numel()
        if end != size:
            raise ValueError(f"{key} is there to element {end} of {size}")
        state[key] = torch.cat([values for _, values in in_order])
    if found:
        raise ValueError(f"the network has no {next(iter(found))}")
    return state


def _optimizer(engine: Engine) -> torch.optim.Optimizer:
    """The one that DeepSpeed may have wrapped."""
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
