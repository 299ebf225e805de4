"""How long a step waits for a checkpoint, against how long it takes to be written.

    python benchmarks/saving.py

The public network at full width with its adversary, both optimizers, the averaged weights and a
replay buffer of `--replay-gigabytes`, in one process on this machine's disk.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from taehv import distributed
from taehv.run.run_folder import RunFolder
from taehv.run.saving import Saver
from taehv.training.config import TrainConfig, TrainingConfig
from taehv.training.state import TrainState
from taehv.training.step import train_step
from tests.helpers.moving_data import MovingData

BATCH = 2
LIMIT = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replay-gigabytes", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=5, help="medians are taken over so many")
    options = parser.parse_args()
    distributed.initialise()
    config = TrainingConfig(train=TrainConfig(global_batch_size=BATCH))
    state = TrainState(config, 1)
    samples = iter([config.train.layout(1).samples(0, 0)])
    (batch,) = MovingData(size=64).training(samples, [])
    train_step(state, batch, None)
    assert state.adversary is not None
    remembered = int(options.replay_gigabytes * 1e9 / BATCH / 2)
    for slot, memory in state.adversary.replay.memory.items():
        images, context = memory[0]
        filler = torch.zeros(remembered // (2 * images[0].numel()), *images.shape[1:]).half()
        state.adversary.replay.memory[slot] = [(filler, context)]

    stalls, writes = [], []
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(RunFolder(folder), keep=1, max_failures=0)
        for step in range(options.repeats):
            state.step = step
            start = time.perf_counter()
            saver.begin(state.snapshot())
            stalls.append(time.perf_counter() - start)
            saver.finish()
            writes.append(time.perf_counter() - start)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    ratio = statistics.median(s / w for s, w in zip(stalls, writes, strict=True))
    print(f"checkpoint of {size / 1e6:.0f} MB, median of {options.repeats}")
    print(f"until training goes on   {1e3 * statistics.median(stalls):8.0f} ms")
    print(f"until it is whole        {1e3 * statistics.median(writes):8.0f} ms")
    verdict = "pass" if ratio < LIMIT else "FAIL"
    print(f"ratio                    {ratio:8.3f}      limit {LIMIT}   {verdict}")
    return 0 if ratio < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
