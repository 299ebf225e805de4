"""How cost grows: measured on this machine, and modelled for more GPUs than it has.

    python benchmarks/scaling.py --plot docs/scaling.png

Measured: time per frame of encoding and decoding against frames, resolution and batch, and of the
training step against workers (processes of one thread, as many as there are cores). Modelled: the
clips per second of 1 to 128 GPUs, at a small and a large batch per GPU, and what they need of
decode cores, network and storage. The model's inputs are options; FLOPs and bytes are counted from
the step itself. What it says of the workers is held against what was measured of them.

    compute     clips per GPU x FLOPs per clip / (TFLOP/s x share of it)
    all-reduce  2 (n - 1) / n x bytes of gradients / bandwidth of the slowest link, not overlapped
    decoding    clips per second x CPU seconds per clip
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist

from benchmarks.bare import bare_step
from benchmarks.counts import count
from benchmarks.machine import machine_name, medians, seconds
from jobs.cli.config import Config, parse
from taehv import distributed
from taehv.model import TAEHV
from taehv.training.state import TrainState
from tests.helpers.workers import run_workers

GPUS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Needs:
    """What n GPUs do and need."""

    gpus: int
    compute: float
    """Seconds of a step."""
    all_reduce: float
    """Seconds of a step."""
    clips_per_second: float
    decode_cores: float
    network: float
    """Bytes per second of clips from decode nodes to all GPUs."""
    storage: float
    """Bytes per second of video read."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--plot", type=Path, default=None, help="a PNG to write")
    parser.add_argument("--repeats", type=int, default=3)
    model = parser.add_argument_group("the model's inputs")
    model.add_argument("--clips-per-gpu", type=int, nargs="+", default=[8, 64], metavar="CLIPS")
    model.add_argument("--tflops", type=float, default=990.0, help="of a GPU, bf16")
    model.add_argument("--share", type=float, default=0.25, help="of it that the step reaches")
    model.add_argument("--gpus-per-node", type=int, default=8)
    model.add_argument("--inside", type=float, default=300.0, help="GB/s between a node's GPUs")
    model.add_argument("--between", type=float, default=12.5, help="GB/s between nodes, per node")
    model.add_argument("--decode-ms", type=float, default=28.8, help="CPU ms per clip: data.py")
    model.add_argument("--video-mb", type=float, default=0.5, help="MB of video read per clip")
    options = parser.parse_args()
    print(machine_name(torch.device("cpu")))
    curves = {
        "frames": _curve("frames", (1, 5, 9, 17, 33), lambda t: (1, t, 128, 128), options.repeats),
        "pixels": _curve("side", (32, 64, 128, 256, 384), lambda s: (1, 9, s, s), options.repeats),
        "batch": _curve("clips", (1, 2, 4, 8), lambda n: (n, 9, 64, 64), options.repeats),
    }
    curves["workers"] = _workers(options.repeats)
    size = "--data.height 128 --data.width 128 --data.num-frames 9 --train.global-batch-size 2"
    config = parse(size.split(), "")
    flops, gradient_bytes = _count_step(config)
    print(f"\na clip of 9 x 128 x 128: {flops / 1e12:.2f} TFLOP a step with Seraena")
    print(f"gradients: {gradient_bytes / 1e6:.0f} MB a step")
    needs = {}
    for clips in options.clips_per_gpu:
        print(f"\nmodelled, not measured: {clips} clips per GPU")
        needs[clips] = [predict(n, clips, flops, gradient_bytes, config, options) for n in GPUS]
        print(_table(needs[clips]))
        by_gpus = {n.gpus: n.clips_per_second for n in needs[clips]}
        print(f"16 GPUs on two machines over 8 on one: {by_gpus[16] / by_gpus[8]:.2f}")
    if options.plot:
        _draw(curves, needs, options.plot)
    return 0


def predict(
    gpus: int,
    clips: int,
    flops: float,
    gradient_bytes: float,
    config: Config,
    options: argparse.Namespace,
) -> Needs:
    """The model of the module's docstring, for this many clips per GPU."""
    compute = clips * flops / (options.tflops * 1e12 * options.share)
    slowest = options.inside if gpus <= options.gpus_per_node else options.between
    all_reduce = 2 * (gpus - 1) / gpus * gradient_bytes / (slowest * 1e9)
    rate = gpus * clips / (compute + all_reduce)
    clip_bytes = config.data.num_frames * 3 * config.data.height * config.data.width
    return Needs(
        gpus,
        compute,
        all_reduce,
        rate,
        rate * options.decode_ms / 1e3,
        rate * clip_bytes,
        rate * options.video_mb * 1e6,
    )


@torch.no_grad()
def _curve(
    name: str,
    values: Sequence[int],
    shape: Callable[[int], tuple[int, int, int, int]],
    repeats: int,
) -> list[tuple[int, float]]:
    """Milliseconds of encoding and decoding per frame of 128 x 128 pixels."""
    network = TAEHV().eval()
    print(f"\n{name:>8}   ms per frame and 128 x 128 pixels")
    curve = []
    for value in values:
        n, t, height, width = shape(value)
        frames = torch.rand(n, t, 3, height, width)

        def work(frames: torch.Tensor = frames) -> torch.Tensor:
            return network.decode_video(network.encode_video(frames))

        taken = medians({"": work}, torch.device("cpu"), repeats)[""]
        curve.append((value, 1e3 * taken / (n * t) * 128**2 / (height * width)))
        print(f"{value:>8}{curve[-1][1]:>10.1f}")
    return curve


CLIPS_PER_WORKER = 2
WORKER_SIZE = "--data.height 64 --data.width 64 --data.num-frames 9"


def _workers(repeats: int) -> list[tuple[int, float]]:
    """Milliseconds of a training step per frame of 128 x 128 pixels, by number of workers, each
    with a thread and its clips; and what the model makes of it."""
    print(
        f"\n workers   ms per frame and 128 x 128 pixels, step of {CLIPS_PER_WORKER} clips of "
        "9 x 64 x 64 each; as modelled"
    )
    curve: list[tuple[int, float]] = []
    alone = 0.0
    for workers in (n for n in (1, 2, 4, 8) if n <= (os.cpu_count() or 1)):
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result"
            run_workers(workers, _time_worker, workers, repeats, str(result))
            step, all_reduce = json.loads(result.read_text())
        alone = alone or step
        frames = workers * CLIPS_PER_WORKER * 9 / 4
        curve.append((workers, 1e3 * step / frames))
        modelled = 1e3 * (alone + all_reduce) / frames
        print(f"{workers:>8}{curve[-1][1]:>10.1f}{modelled:>10.1f}")
    return curve


def _time_worker(workers: int, repeats: int, result: str) -> None:
    """Median seconds of a step, and of an all-reduce of its gradients."""
    batch = f"--train.global-batch-size {workers * CLIPS_PER_WORKER}"
    state, step = bare_step(parse(f"{WORKER_SIZE} {batch}".split(), ""))
    gradients = torch.zeros(int(_gradient_bytes(state)) // 4)
    taken: tuple[list[float], list[float]] = ([], [])
    step()
    for _ in range(repeats):
        for times, work in zip(taken, (step, lambda: dist.all_reduce(gradients)), strict=True):
            dist.barrier()
            times.append(seconds(work, torch.device("cpu")))
    if distributed.is_main():
        step_seconds, all_reduce = map(statistics.median, taken)
        Path(result).write_text(json.dumps([step_seconds, all_reduce if workers > 1 else 0.0]))


def _count_step(config: Config) -> tuple[float, float]:
    """FLOPs per clip of a step, and the bytes of both networks' gradients."""
    state, step = bare_step(config)
    step()
    flops = sum(o.flops for o in count(step)) / config.train.global_batch_size
    return flops, _gradient_bytes(state)


def _gradient_bytes(state: TrainState) -> float:
    """Of both networks, in float32."""
    assert state.adversary is not None
    parameters = [*state.generator.parameters(), *state.adversary.network.parameters()]
    return 4.0 * sum(p.numel() for p in parameters)


def _table(needs: Sequence[Needs]) -> str:
    lines = [
        f"{'GPUs':>5}{'compute ms':>12}{'all-reduce ms':>15}{'clips/s':>10}{'decode cores':>14}"
        f"{'network MB/s':>14}{'storage MB/s':>14}"
    ]
    for n in needs:
        lines.append(
            f"{n.gpus:>5}{1e3 * n.compute:>12.1f}{1e3 * n.all_reduce:>15.1f}"
            f"{n.clips_per_second:>10.0f}{n.decode_cores:>14.0f}{n.network / 1e6:>14.0f}"
            f"{n.storage / 1e6:>14.0f}"
        )
    return "\n".join(lines)


def _draw(
    curves: dict[str, list[tuple[int, float]]], needs: dict[int, list[Needs]], path: Path
) -> None:
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.4))
    titles = {
        "frames": "frames",
        "pixels": "side, pixels",
        "batch": "clips of 9 x 64 x 64",
        "workers": "workers (training step)",
    }
    for axis, (name, curve) in zip(axes, curves.items(), strict=False):
        places, taken = zip(*curve, strict=True)
        axis.plot(places, taken, "o-")
        axis.set(xlabel=titles[name], xscale="log", ylim=(0, 1.1 * max(taken)))
        axis.set_xticks(places, [str(place) for place in places])
        axis.minorticks_off()
    axes[0].set_ylabel("ms per frame of 128 x 128 (measured)")
    for clips, parts in needs.items():
        gpus, rates = [n.gpus for n in parts], [n.clips_per_second for n in parts]
        (line,) = axes[4].loglog(gpus, rates, "o-", label=f"clips/s, {clips} per GPU")
        axes[4].loglog(gpus, [n * rates[0] for n in gpus], ":", color=line.get_color())
    axes[4].loglog(gpus, [n.decode_cores for n in parts], "s-", color="gray", label="decode cores")
    axes[4].set(xlabel="GPUs (modelled; dotted: proportional)")
    axes[4].set_xticks(gpus, [str(n) for n in gpus])
    axes[4].minorticks_off()
    axes[4].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    sys.exit(main())
