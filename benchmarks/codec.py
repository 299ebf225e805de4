"""How fast the network encodes and decodes, against the same network written the plain way.

    python benchmarks/codec.py
    python benchmarks/codec.py --device cuda --frames 81 --height 480 --width 832 \
        --public PATH/taehv.py

Everything is timed in turns in one process. "of the limit" is the time that the operations would
take at the rates of this machine's own matrix product and copy, over the time they took.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.counts import count, layer_table, least_seconds
from benchmarks.machine import CLOCK_HELP, CLOCKS, machine_name, measure_machine, medians
from benchmarks.plain import PlainTaehv, public_codec
from taehv.evaluation.timing import measure
from taehv.model import TAEHV, ModelConfig, build_model
from taehv.model.streaming import StreamingDecoder, StreamingEncoder
from taehv.ops.compiling import Compiled

Work = Callable[[], Tensor]
LIMITS = {"cpu": 1.5, "cuda": 2.0}
"""Encoding and decoding: at least so many times as fast as the baseline; on a GPU in bf16, which is
what its matrix units are for. The baseline is the public file where it is given, else the plain
way."""
ERROR = 1e-2
"""Most that the outputs may differ, relatively."""
PEAK = 0.5
"""On a GPU: most memory that the chunked mode may need, of the baseline's."""

Way = tuple[Callable[[], Any], Callable[[], Any]]
"""Encodes, and decodes, the frames and the latents at hand."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=2, help="latents at once in the chunked mode")
    parser.add_argument("--variant", default="taecvx")
    parser.add_argument("--compile", action="store_true", help="one more way: torch.compile")
    parser.add_argument("--public", default="", help="the public taehv.py, as one more baseline")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help=CLOCK_HELP)
    parser.add_argument("--layers", action="store_true", help="the operations that cost most")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.clock == "cpu":
        torch.set_num_threads(1)
    print(machine_name(device))
    o = options
    print(f"{o.clips} x {o.frames} x {o.height} x {o.width}, {o.variant}; medians of {o.repeats}")
    model = build_model(ModelConfig(variant=options.variant)).eval().to(device)
    passed = [_compare(options, model, dtype) for dtype in (torch.float32, torch.bfloat16)]
    return 0 if all(passed) else 1


@torch.no_grad()
def _compare(options: argparse.Namespace, model: TAEHV, dtype: torch.dtype) -> bool:
    device = next(model.parameters()).device
    frames = torch.rand(options.clips, options.frames, 3, options.height, options.width)
    frames = frames.to(device)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, dtype == torch.bfloat16)

    def timed(work: Callable[[], Any]) -> Callable[[], Any]:
        def inside() -> Any:
            with torch.no_grad(), autocast():
                return work()

        return inside

    plain = PlainTaehv(model)
    with autocast():
        latents = model.encode_video(frames)
    chunk = options.chunk
    ways: dict[str, Way] = {
        "plain": (lambda: plain.encode(frames), lambda: plain.decode(latents).clamp(0, 1)),
        "parallel": (lambda: model.encode_video(frames), lambda: model.decode_video(latents)),
        f"in chunks of {chunk}": (
            lambda: model.encode_video(frames, chunk=chunk),
            lambda: model.decode_video(latents, chunk=chunk),
        ),
        "sequential": (
            lambda: model.encode_video(frames, parallel=False),
            lambda: model.decode_video(latents, parallel=False),
        ),
        "streaming": _streams(model, frames, latents, graphs=False),
    }
    if device.type == "cuda":
        ways["streaming, graphs"] = _streams(model, frames, latents, graphs=True)
    if options.compile:
        fast_in, fast_out = (
            Compiled(function, "network") for function in (model.encode_video, model.decode_video)
        )
        ways["compiled"] = (lambda: fast_in(frames), lambda: fast_out(latents))
    if options.public:
        encode, decode = public_codec(options.public, model.state_dict(), dtype)
        given = frames.to(dtype), latents.to(dtype)
        ways["public taehv.py"] = (lambda: encode(given[0]), lambda: decode(given[1]))
    works = {
        (name, part): timed(work) for name, pair in ways.items() for part, work in enumerate(pair)
    }
    taken = medians({str(k): w for k, w in works.items()}, device, options.repeats, options.clock)
    machine = measure_machine(device, dtype, options.clock)
    baseline = "public taehv.py" if options.public else "plain"
    error = max(_error(works["parallel", k](), works[baseline, k]()) for k in (0, 1))
    print(
        f"\n{str(dtype).removeprefix('torch.')}: products {machine.flops / 1e9:.0f} GFLOP/s, "
        f"copies {machine.bytes_per_second / 1e9:.1f} GB/s"
    )
    print(
        f"{'':<18}{'encode ms':>10}{'decode ms':>10}{'both':>8}{'ratio':>7}{'of the limit':>13}"
        + (f"{'peak MB':>9}" if device.type == "cuda" else "")
    )
    both = {name: sum(taken[str((name, part))] for part in (0, 1)) for name in ways}
    peaks: dict[str, int] = {}
    for name in ways:
        parts = [taken[str((name, part))] for part in (0, 1)]
        operations = [o for part in (0, 1) for o in count(works[name, part])]
        share = least_seconds(operations, machine) / both[name]
        if device.type == "cuda":
            # A CPU's allocator keeps what earlier ways have freed, so that a peak there says
            # nothing.
            peaks[name] = max(measure(works[name, part], device).peak_bytes or 0 for part in (0, 1))
        print(
            f"{name:<18}{1e3 * parts[0]:>10.1f}{1e3 * parts[1]:>10.1f}{1e3 * both[name]:>8.1f}"
            f"{both[baseline] / both[name]:>7.2f}{share:>13.2f}"
            + (f"{peaks[name] / 1e6:>9.0f}" if name in peaks else "")
        )
    limit = LIMITS[device.type]
    judged = device.type == "cpu" or dtype == torch.bfloat16
    ratio = both[baseline] / both["parallel"]
    good = error <= ERROR and (not judged or ratio >= limit)
    verdict = f"{baseline} / parallel {ratio:.2f}" + (f", limit {limit}" if judged else "")
    verdict += f"; relative error {error:.1e}, limit {ERROR:g}"
    if peaks:
        share = peaks[f"in chunks of {chunk}"] / peaks[baseline]
        good = good and share <= PEAK
        verdict += f"; peak in chunks {share:.2f} of it, limit {PEAK}"
    print(f"{verdict}: {'pass' if good else 'FAIL'}")
    if options.layers:
        operations = count(works["parallel", 0]) + count(works["parallel", 1])
        print(layer_table(operations, machine))
    return good


def _streams(model: TAEHV, frames: Tensor, latents: Tensor, graphs: bool) -> Way:
    """Streams that have begun long ago, and go on from one repeat to the next."""
    encoder = StreamingEncoder(model, graphs)
    decoder = StreamingDecoder(model, frames_to_trim=0, graphs=graphs)
    return partial(_feed, encoder.encode, frames), partial(_feed, decoder.decode, latents)


def _feed(stream: Callable[[Tensor], Any], steps: Tensor) -> None:
    for step in steps.unbind(1):
        stream(step)


def _error(found: Tensor, expected: Tensor) -> float:
    # The public file trims the first frames of an even number of latents too.
    found, expected = found[:, -expected.shape[1] :].double(), expected.double()
    return float((found - expected).norm() / expected.norm())


if __name__ == "__main__":
    sys.exit(main())
