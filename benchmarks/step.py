"""How fast a training step is, against the same step written the plain way.

    python benchmarks/step.py --config configs/small.yaml
    python benchmarks/step.py --train.global-batch-size 2 --data.height 128 --data.width 128

The options behind these are those of jobs/train.py. Clips lie in memory, both steps train the same
weights' copies in one process, in turns. "of the limit" is as in codec.py.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.bare import as_tensors, bare_step, make_batches
from benchmarks.counts import count, layer_table, least_seconds
from benchmarks.machine import CLOCK_HELP, CLOCKS, machine_name, measure_machine, medians
from benchmarks.plain import PlainStep
from jobs.cli.config import Config, parse
from taehv import distributed
from taehv.training.state import TrainState
from taehv.training.step import train_step

LIMITS = {"cpu": 1.3, "cuda": 2.0}
"""A step: at least so many times as fast as the plain one; on a GPU in bf16, which is what its
matrix units are for."""
TOLERANCE = 0.02
"""Most that the two first reconstruction losses may differ, relatively (bf16 differs most)."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"]
    )
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help=CLOCK_HELP)
    parser.add_argument("--layers", action="store_true", help="the operations that cost most")
    options, rest = parser.parse_known_args()
    distributed.initialise()
    device = distributed.device()
    if device.type != torch.device(options.device).type:
        print(f"--device {options.device}, but this process computes on {device.type}")
        return 2
    config = parse(rest, "A training step")
    data = config.data
    if options.clock == "cpu":
        torch.set_num_threads(1)
    print(machine_name(device))
    print(
        f"{config.train.global_batch_size} x {data.num_frames} x {data.height} x {data.width}, "
        f"Seraena {'on' if config.loss.seraena else 'off'}; medians of {options.repeats}\n"
    )
    passed = [_compare(config, precision, options, device) for precision in options.precisions]
    return 0 if all(passed) else 1


def _compare(
    config: Config, precision: str, options: argparse.Namespace, device: torch.device
) -> bool:
    train = dataclasses.replace(config.train, precision=precision)
    config = dataclasses.replace(config, train=train)
    batches = make_batches(config)
    first = TrainState(config, 1)
    model = copy.deepcopy(first.generator)
    loss = float(train_step(first, batches[0], None).losses[:, 1].mean())
    del first
    _, ours = bare_step(config)
    plain = PlainStep(
        model, config.seraena.widths, config.seraena.frames_per_group, precision == "bf16"
    )
    clips = cycle(as_tensors(batches))
    error = abs(plain(next(clips)) / loss - 1)
    works = {"plain": lambda: plain(next(clips)), "ours": ours}
    taken = medians(works, device, options.repeats, options.clock)
    machine = measure_machine(
        device, torch.bfloat16 if precision == "bf16" else torch.float32, options.clock
    )
    print(
        f"{precision}: products {machine.flops / 1e9:.0f} GFLOP/s, "
        f"copies {machine.bytes_per_second / 1e9:.1f} GB/s"
    )
    print(f"{'':<8}{'ms':>9}{'ratio':>8}{'TFLOP':>9}{'GB':>8}{'of the limit':>14}")
    for name, work in works.items():
        operations = count(work)
        print(
            f"{name:<8}{1e3 * taken[name]:>9.0f}{taken['plain'] / taken[name]:>8.2f}"
            f"{sum(o.flops for o in operations) / 1e12:>9.3f}"
            f"{sum(o.bytes for o in operations) / 1e9:>8.1f}"
            f"{least_seconds(operations, machine) / taken[name]:>14.2f}"
        )
    if options.layers:
        print(layer_table(count(ours), machine))
    ratio = taken["plain"] / taken["ours"]
    limit = LIMITS[device.type]
    judged = device.type == "cpu" or precision == "bf16"
    good = error <= TOLERANCE and (not judged or ratio >= limit)
    print(
        f"ratio {ratio:.2f}{f', limit {limit}' if judged else ''}; the first losses differ by "
        f"{error:.1e}, limit {TOLERANCE}: {'pass' if good else 'FAIL'}\n"
    )
    return good


if __name__ == "__main__":
    sys.exit(main())
