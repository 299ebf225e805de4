"""torch.compile of the generator, and what happens where it cannot be had."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taehv.ops.compiling import Compiled
from taehv.run import journal
from tests.helpers.small_run import run, small_config, with_train
from tests.taehv.model.test_time import SMALL, random_model


def squares(x: Tensor) -> Tensor:
    return (x * x + 1).sum(1)


def test_without_a_compiler_it_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    compiled = Compiled(squares, "network")
    x = torch.rand(3, 5)
    lacking = torch._inductor.config.patch({"cpp.cxx": ("/absent/compiler",)})
    with lacking, caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(compiled(x), squares(x))
    (record,) = (entry for entry in caplog.records if entry.name == "taehv.ops.compiling")
    assert "the network runs without torch.compile, which failed: " in record.message
    assert "InvalidCxxCompiler" in record.message


def test_its_own_errors_are_raised() -> None:
    """What is wrong with the inputs is no reason to go on without."""
    compiled = Compiled(lambda a, b: a + b, "network")
    with pytest.raises(RuntimeError, match="size of tensor a"):
        compiled(torch.rand(2), torch.rand(3))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++")
def test_compiled_training_is_the_same_but_for_rounding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(max_steps=4)
    rows = {}
    for name, compiles in (("plain", False), ("compiled", True)):
        run(with_train(config, compile=compiles), tmp_path / name)
        read = journal.read(tmp_path / name / "metrics.jsonl")
        rows[name] = [row["train/reconstruction_loss"] for row in read if "train/loss" in row]
    assert len(rows["plain"]) == 4
    assert rows["compiled"] == pytest.approx(rows["plain"], rel=1e-4)
    assert "without torch.compile" not in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++")
def test_gradients_are_those_of_the_network_in_float64() -> None:
    model = random_model(SMALL["taehv"]).double().train()
    frames = torch.rand(1, 5, 3, 8, 16, dtype=torch.float64)
    found = {}
    for name, call in (("plain", model), ("compiled", Compiled(model.forward, "network"))):
        model.zero_grad()
        encoded, decoded = call(frames)
        torch.autograd.backward(encoded.square().mean() + decoded.square().mean())
        found[name] = {
            key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None
        }
    assert found["plain"].keys() == dict(model.named_parameters()).keys()
    for key, gradient in found["compiled"].items():
        torch.testing.assert_close(gradient, found["plain"][key], rtol=1e-9, atol=1e-12, msg=key)
