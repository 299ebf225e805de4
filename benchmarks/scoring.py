"""What scoring a whole frame costs, beside encoding and decoding it by the public network.

    python benchmarks/scoring.py

The scores are those of `jobs/evaluate.py --whole-frames` by its five methods without a teacher. The
frames and the reconstructions are drawn at random, which costs the same as real ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.machine import CLOCK_HELP, CLOCKS, machine_name, medians
from taehv import distributed
from taehv.evaluation.frames import FrameScorer
from taehv.evaluation.methods import NetworkMethod
from taehv.model import ModelConfig, build_model

METHODS = ("network", "network, latents in int8", "linear", "8x down and up", "mean colour")
LIMIT = 1.0
"""Of the network's time."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=848)
    parser.add_argument("--repeats", type=int, default=3, help="medians are taken over so many")
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help=CLOCK_HELP)
    options = parser.parse_args()
    distributed.initialise()
    device = distributed.device()
    if options.clock == "cpu":
        torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shape = (options.frames, 3, options.height, options.width)
    frames = torch.rand(shape, generator=generator).to(device)
    made = {
        name: (frames + 0.1 * torch.rand(shape, generator=generator).to(device)).clamp(0, 1)
        for name in METHODS
    }
    network = NetworkMethod(build_model(ModelConfig()).to(device), "network", "network")

    def score() -> None:
        # Frame by frame, as a video is scored.
        scorer = FrameScorer()
        for t in range(options.frames):
            scorer.add(frames[t : t + 1], {name: y[t : t + 1] for name, y in made.items()})

    works = {"encode and decode": lambda: network.clip(frames[None]), "scores": score}
    taken = medians(works, device, options.repeats, options.clock)
    print(machine_name(device))
    print(f"{options.frames} frames of {options.width} x {options.height}, {len(METHODS)} methods")
    for name, seconds in taken.items():
        print(f"{name:20s} {1e3 * seconds / options.frames:8.1f} ms a frame")
    share = taken["scores"] / taken["encode and decode"]
    verdict = "pass" if share <= LIMIT else "FAIL"
    print(f"{'share of the scores':20s} {share:8.2f}  limit {LIMIT:.2f}  {verdict}")
    return 0 if share <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
