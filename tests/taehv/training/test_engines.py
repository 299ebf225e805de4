"""The optimizer's state in pieces: what a checkpoint holds of it, and how it is put together."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from taehv import distributed
from taehv.slots import SlotLayout
from taehv.training.engines import (
    MOMENTS,
    Engine,
    build_engine,
    clip_or_skip_update,
    gradient_norm_before_step,
    load_optimizer_pieces,
    optimizer_pieces,
)
from taehv.training.optimizer import OptimConfig
from tests.helpers.workers import run_workers

STEPS = 3


def small_network() -> nn.Module:
    """Of odd sizes, so that workers' shares end within parameters."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 3))


def engine_for(
    network: nn.Module,
    stage: Literal[0, 1, 2],
    centralizes: bool = False,
    optimizer: Literal["adamw", "soap"] = "adamw",
) -> Engine:
    optim = OptimConfig(
        optimizer=optimizer,
        learning_rate=0.1,
        betas=(0.9, 0.95),
        weight_decay=0.01,
        gradient_clipping=0.0,
        zero_stage=stage,
    )
    workers = distributed.world_size()
    layout = SlotLayout(global_batch_size=4 * workers, slots_per_group=4, workers=workers)
    return build_engine(network, "network", optim, layout, dtype=None, centralizes=centralizes)


def take_steps(engine: Engine, steps: int = STEPS) -> None:
    for step in range(steps):
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(step))
        engine.backward(engine(x).square().mean())
        engine.step()


def write_state(folder: Path, stage: Literal[0, 1, 2]) -> None:
    """This worker's pieces, and, by the main worker, the whole as DeepSpeed gives it."""
    distributed.initialise()
    network = small_network()
    engine = engine_for(network, stage)
    take_steps(engine)
    pieces = {key: value.clone() for key, value in optimizer_pieces(engine, network).items()}
    save_file(pieces, folder / f"pieces_{distributed.rank()}.safetensors")
    whole = {
        f"{name}.{moment}": _whole(engine, parameter, moment)
        for name, parameter in network.named_parameters()
        for moment in MOMENTS
    }
    if distributed.is_main():
        save_file(whole, folder / "whole.safetensors")


def _whole(engine: Engine, parameter: nn.Parameter, moment: str) -> Tensor:
    if engine.zero_optimization_stage() == 0:
        return engine.optimizer.state[parameter][moment].clone()  # type: ignore[no-any-return]
    from deepspeed.utils import safe_get_full_optimizer_state

    return safe_get_full_optimizer_state(parameter, moment).clone()  # type: ignore[no-any-return]


def read_pieces(folder: Path) -> list[dict[str, Tensor]]:
    return [load_file(file) for file in sorted(folder.glob("pieces_*.safetensors"))]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_pieces_of_two_workers_are_deepspeeds_whole(tmp_path: Path, stage: int) -> None:
    run_workers(2, write_state, tmp_path, stage)
    parts = read_pieces(tmp_path)
    if stage > 0:
        assert all(len(part) > 1 for part in parts)
        assert any(not key.endswith("@0") for key in parts[1] if key != "step")
    distributed.initialise()
    network = small_network()
    engine = engine_for(network, 1)
    load_optimizer_pieces(engine, network, parts)
    ours = optimizer_pieces(engine, network)
    assert float(ours.pop("step")) == STEPS
    theirs = load_file(tmp_path / "whole.safetensors")
    assert {key.removesuffix("@0") for key in ours} == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[f"{key}@0"], value.flatten()), key
        assert value.any()


def test_pieces_that_are_no_whole_are_refused(tmp_path: Path) -> None:
    run_workers(2, write_state, tmp_path, 1)
    distributed.initialise()
    network = small_network()
    engine = engine_for(network, 1)
    first, second = read_pieces(tmp_path)
    with pytest.raises(ValueError, match=r"is there to element \d+ of \d+"):
        load_optimizer_pieces(engine, network, [first])
    with pytest.raises(ValueError, match=r"the network has no x\.exp_avg"):
        load_optimizer_pieces(engine, network, [first, second, {"x.exp_avg@0": torch.zeros(1)}])


@pytest.mark.parametrize("most", [0.0, 0.05, 1e6], ids=["no limit", "clipped", "not reached"])
def test_a_guarded_update_is_that_of_clipped_gradients(most: float) -> None:
    distributed.initialise()
    network, plain = small_network(), small_network()
    engine = engine_for(network, 0)
    adamw = torch.optim.AdamW(plain.parameters(), 0.1, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(STEPS):
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(step))
        engine.backward(engine(x).square().mean())
        norm = gradient_norm_before_step(engine, network)
        assert norm is not None
        clip_or_skip_update(engine, torch.tensor(0.0), norm, most)
        engine.step()
        adamw.zero_grad()
        torch.autograd.backward(plain(x).square().mean())
        expected = nn.utils.clip_grad_norm_(plain.parameters(), most or torch.inf)
        adamw.step()
        torch.testing.assert_close(norm, expected)
    for own, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_centralized_gradients_have_no_mean_over_the_inputs(stage: Literal[0, 1, 2]) -> None:
    """Against AdamW on gradients whose mean is taken away by hand; a bias keeps its own."""
    distributed.initialise()
    network, plain = small_network(), small_network()
    engine = engine_for(network, stage, centralizes=True)
    adamw = torch.optim.AdamW(plain.parameters(), 0.1, betas=(0.9, 0.95), weight_decay=0.01)
    take_steps(engine)
    for step in range(STEPS):
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(step))
        adamw.zero_grad()
        torch.autograd.backward(plain(x).square().mean())
        for parameter in plain.parameters():
            assert parameter.grad is not None
            if parameter.ndim > 1:
                inputs = parameter.grad.flatten(1)
                parameter.grad.copy_((inputs - inputs.mean(1, keepdim=True)).view_as(parameter))
        adamw.step()
    for own, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("optimizer", ["adamw", "soap"])
@pytest.mark.parametrize("steps", [0, STEPS])
def test_a_refused_update_moves_nothing(optimizer: Literal["adamw", "soap"], steps: int) -> None:
    distributed.initialise()
    network = small_network()
    engine = engine_for(network, 0, optimizer=optimizer)
    take_steps(engine, steps)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    state = {key: value.clone() for key, value in optimizer_pieces(engine, network).items()}
    engine.backward(engine(torch.full((4, 7), torch.nan)).square().mean())
    norm = gradient_norm_before_step(engine, network)
    assert norm is not None
    assert norm.isnan()
    clip_or_skip_update(engine, torch.tensor(1.0), norm, 1.0)
    engine.step()
    for own, other in zip(network.parameters(), before, strict=True):
        assert torch.equal(own, other)
    if not steps:
        assert float(optimizer_pieces(engine, network)["step"]) == 0
        return
    for key, value in optimizer_pieces(engine, network).items():
        assert torch.equal(value, state[key])


def test_soap_goes_on_from_its_pieces_bit_for_bit() -> None:
    """Its bases are renewed at steps 4 and 7."""
    distributed.initialise()
    whole, resumed = small_network(), small_network()
    engine = engine_for(whole, 0, optimizer="soap")
    take_steps(engine, 3)
    pieces = {key: value.clone() for key, value in optimizer_pieces(engine, whole).items()}
    resumed.load_state_dict(whole.state_dict())
    other = engine_for(resumed, 0, optimizer="soap")
    load_optimizer_pieces(other, resumed, [pieces])
    for going_on in (engine, other):
        take_steps(going_on, 5)
    for own, same in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(own, same)
    renewed = optimizer_pieces(other, resumed)
    for key, value in optimizer_pieces(engine, whole).items():
        assert torch.equal(value, renewed[key]), key
        assert "basis" not in key or not torch.equal(value, pieces[key])


def test_pieces_of_another_optimizer_are_refused() -> None:
    distributed.initialise()
    network = small_network()
    engine = engine_for(network, 0)
    take_steps(engine)
    pieces = optimizer_pieces(engine, network)
    soap = engine_for(network, 0, optimizer="soap")
    with pytest.raises(ValueError, match=r"0.weight.covariance_0 is there to element 0 of 169"):
        load_optimizer_pieces(soap, network, [pieces])
    take_steps(soap)
    with pytest.raises(ValueError, match=r"the network has no 0.weight.covariance_0"):
        load_optimizer_pieces(engine_for(network, 0), network, [optimizer_pieces(soap, network)])
