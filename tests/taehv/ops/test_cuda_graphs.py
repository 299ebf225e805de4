"""CUDA graphs, captured by a stand-in for them: the same numbers, and lines in the log."""

import logging
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from taehv.model.streaming import StreamingDecoder, StreamingEncoder
from taehv.ops import cuda_graphs
from taehv.ops.cuda_graphs import GraphedCallable
from taehv.run import journal
from tests.helpers.small_run import run, small_config
from tests.helpers.taped import stand_in
from tests.taehv.model.test_time import SMALL, random_model

OF_THE_MACHINE = re.compile("second|wait|memory|time")


def numbers(run_dir: Path) -> list[dict[str, float]]:
    """All that a run measured, but for what it took."""
    rows = journal.read(run_dir / "metrics.jsonl")
    return [{k: value for k, value in row.items() if not OF_THE_MACHINE.search(k)} for row in rows]


@pytest.mark.parametrize(
    "settings",
    [{"max_clips_per_pass": 2}, {"gradient_checkpointing": True}],
    ids=["four passes", "gradient checkpointing"],
)
def test_a_captured_run_gives_the_same_numbers(
    settings: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(small_config(cuda_graphs=False, **settings), tmp_path / "plain")
    lengths = stand_in(monkeypatch)
    run(small_config(**settings), tmp_path / "captured")
    assert "CUDA graph" not in caplog.text
    # The correction; generator and discriminator, forward and back.
    assert len(lengths) == 5
    assert min(lengths) > 20
    plain, captured = numbers(tmp_path / "plain"), numbers(tmp_path / "captured")
    assert len(plain) == 7
    for row, other in zip(plain, captured, strict=True):
        assert other == pytest.approx(row, rel=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_a_captured_stream_gives_the_numbers_of_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(SMALL[name]).double()
    side = model.space_downscale
    frames = torch.rand(2, 4 * model.time_downscale + 1, 3, side, 2 * side).double()
    with torch.no_grad():
        latents = model.encode_video(frames)
        decoded = model.decode_video(latents)
    lengths = stand_in(monkeypatch)
    encoder = StreamingEncoder(model, graphs=True)
    live = [encoder.encode(frame) for frame in frames.unbind(1)] + [encoder.flush()]
    found = torch.stack([latent for latent in live if latent is not None], 1)
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-12)
    assert len(lengths) == model.time_downscale
    decoder = StreamingDecoder(model, num_latents=latents.shape[1], graphs=True)
    again = [frame for latent in latents.unbind(1) for frame in decoder.decode(latent)]
    torch.testing.assert_close(torch.stack(again, 1), decoded, rtol=0, atol=1e-12)
    assert len(lengths) == model.time_downscale + 1


def test_gradients_of_several_calls_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    network = nn.Linear(3, 2)
    call = GraphedCallable(network.forward, "network", list(network.parameters()))
    inputs = torch.rand(5, 4, 3).unbind(0)
    for x in inputs:
        call(x).square().sum().backward()
    found = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    network(torch.cat(inputs)).square().sum().backward()
    for gradient, parameter in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_other_shapes_and_other_precisions_run_eagerly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = stand_in(monkeypatch)
    seen = []

    def doubled(x: Tensor, y: Tensor | None) -> Tensor:
        seen.append(len(x))
        return x * 2 if y is None else x * 2 + y

    call = GraphedCallable(doubled, "doubling")
    for rows in (3, 3, 4, 3, 4, 3):
        x = torch.rand(rows, 2)
        assert torch.equal(call(x, None), x * 2)
    assert torch.equal(call(x, x), x * 3)
    # The first, the capture, those of 4, and the one with a second input.
    assert seen == [3, 3, 4, 4, 3]
    assert len(lengths) == 1


def test_what_cannot_be_captured_runs_eagerly_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(monkeypatch)

    def refuse(work: object, pool: object = None) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(cuda_graphs, "capture", refuse)
    call = GraphedCallable(torch.neg, "negation")
    x = torch.rand(3)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert torch.equal(call(x), -x)
    (entry,) = (entry for entry in caplog.records if entry.name == "taehv.ops.cuda_graphs")
    assert entry.message == (
        "the negation runs without a CUDA graph: operation not permitted when stream is capturing"
    )


def test_where_memory_is_short_nothing_is_captured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lengths = stand_in(monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(cuda_graphs, "can_capture", lambda inputs: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * 2**30, 16 * 2**30))
    call = GraphedCallable(torch.neg, "negation")
    x = torch.rand(3)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(call(x), -x)
    assert "the negation runs without a CUDA graph: 5.0 GiB are free, and 6.0" in caplog.text
    assert not lengths
