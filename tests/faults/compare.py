"""Whether two runs came to the same end."""

import json
import re
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from taehv.run import checkpoint, journal
from taehv.run.run_folder import RunFolder
from taehv.training.step import LOSSES

TIMING = ("_memory_gb", "_seconds", "clips_per_second", "data_wait_fraction")
"""Ends of the names of metrics that depend on the machine and the moment."""


def last_checkpoint(folder: Path) -> Path:
    name = checkpoint.latest_valid(RunFolder(str(folder)))
    assert name is not None, f"{folder} has no whole checkpoint"
    return folder / name


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by file and name."""
    return {
        f"{path.name}: {key}": value
        for path in sorted(folder.glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint but the random states, whole, whichever worker wrote what."""
    whole: dict[str, Tensor] = {}
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for key, value in tensors(folder).items():
        file, name = key.split(": ")
        kind = re.sub(r"_\d{5}\.safetensors$", "", file)
        name, _, start = name.partition("@")
        if start:
            pieces.setdefault(f"{kind}: {name}", []).append((int(start), value))
        elif "random." not in name:
            whole[f"{kind}: {name}"] = value
    for key, parts in pieces.items():
        whole[key] = torch.cat([part for _, part in sorted(parts, key=lambda part: part[0])])
    return whole


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys() != set()
    different = [
        key
        for key, value in left.items()
        if value.dtype != right[key].dtype or not torch.equal(value, right[key])
    ]
    assert not different, f"{len(different)} of {len(left)} tensors differ: {different[:5]}"


def assert_same_end(run: Path, reference: Path, besides: tuple[str, ...] = ()) -> None:
    """The last checkpoint, the weights for others, and the metrics are those of the reference.

    Args:
        besides: metrics, by the ends of their names, that may differ as timings may.
    """
    ours, theirs = last_checkpoint(run), last_checkpoint(reference)
    assert ours.name == theirs.name
    assert_equal(tensors(ours), tensors(theirs))
    assert checkpoint.read_info(ours) == checkpoint.read_info(theirs)
    final = "final_model.safetensors"
    assert_equal(load_file(run / final), load_file(reference / final))
    ends = TIMING + besides
    assert rows(run, ends) == rows(reference, ends) != []


def rows(run: Path, left_out: tuple[str, ...]) -> list[dict[str, float]]:
    """metrics.jsonl without the metrics whose names end so."""
    return [
        {name: value for name, value in row.items() if not name.endswith(left_out)}
        for row in journal.read(run / journal.NAME)
    ]


def assert_losses_agree(run: Path, reference: Path, steps: range, tolerance: float) -> None:
    """The losses of these steps, each to a relative and absolute tolerance."""
    ours, theirs = (
        {row["step"]: row for row in journal.read(folder / journal.NAME)}
        for folder in (run, reference)
    )
    for step in steps:
        for name in LOSSES:
            expected = pytest.approx(theirs[step][name], rel=tolerance, abs=tolerance)
            assert ours[step][name] == expected, (step, name)


def surviving_samples(notes: Path) -> list[int]:
    """All workers' samples, in order, of the steps that no later life went back behind."""
    survived: list[tuple[int, list[int]]] = []
    for line in (notes / "samples.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "from" in entry:
            survived = [kept for kept in survived if kept[0] <= entry["from"]]
        else:
            survived.append((entry["step"], entry["samples"]))
    return sorted(chain.from_iterable(samples for _, samples in survived))
