"""What recipes make of the same seconds of training: scores on native clips of a held-out video.

    python benchmarks/quality.py --recipes before default --videos LIST_OR_FOLDER --out DIR
    python benchmarks/quality.py --recipes before default --videos LIST_OR_FOLDER --out DIR \\
        --seconds 450 --seeds 3

A recipe is a file of benchmarks/recipes/ or any YAML file, laid over `--base`. Each video of the
lists is held out in turn, and each recipe is trained on the others, by each seed, for so many
seconds of solving the start and of steps: validation, saving and waiting for clips do not count.
The averaged weights are scored on the same clips, in the video's own pixels, after an eighth, a
quarter and a half of the time and at its end; the learning rate falls over the whole time. The
linear limit is fitted to native clips of the training videos.

Each training is kept in DIR/runs when it ends: after an interruption the same command goes on with
what is missing. The last output is DIR/quality.json, quality.txt and quality.svg.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.held_out import HeldOut, ScoredClips, choose_held_out, find_videos
from benchmarks.machine import CLOCK_HELP, CLOCKS, machine_name
from benchmarks.quality_recipes import RECIPES, REPOSITORY, latents_of, read_recipe
from benchmarks.quality_report import format_summary, summarise, write_plot
from benchmarks.timed_training import train_by_time
from data_pipeline.errors import DataError
from jobs.cli.config import Config, flatten
from jobs.cli.errors import ConfigError
from taehv import distributed
from taehv.atomic import write_atomically
from taehv.errors import DivergedError, TrainingError
from taehv.evaluation.lpips import Lpips
from taehv.model import TAEHV, build_model

UNFINISHED = ".unfinished."
"""Folders of trainings under way; one that was killed leaves its own."""


@dataclass(frozen=True)
class Job:
    """A training."""

    recipe: str
    config: Config
    held_out: HeldOut
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe}.{self.held_out.name}.{self.seed}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    distributed.initialise()
    device = distributed.device()
    if device.type != torch.device(options.device).type:
        print(f"--device {options.device}, but this process computes on {device.type}")
        return 2
    if options.clock == "cpu":
        torch.set_num_threads(1)
    try:
        benchmark = Benchmark(options)
        complete = benchmark.run()
    except (ConfigError, DataError, TrainingError, ValueError) as error:
        print(error)
        return 2
    benchmark.report()
    return 0 if complete else 130


class Benchmark:
    """All trainings, and the folder in which their results are."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises ConfigError, DataError, ValueError for what cannot be run."""
        self.options = options
        self.out: Path = options.out
        for folder in ("runs", "baselines", "lists"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        for unfinished in self.out.glob(f"{UNFINISHED}*"):
            shutil.rmtree(unfinished)
        self.recipes = {
            Path(name).stem: read_recipe(name, options.base) for name in options.recipes
        }
        self.clips = ScoredClips(options.clips, options.clip_size, options.clip_frames)
        self.block, self.coefficients = latents_of(self.recipes)
        self.videos = find_videos(options.videos)
        lpips = Lpips.load(options.lpips, distributed.device()) if options.lpips else None
        self.held_out = [
            HeldOut(
                video,
                [other for other in self.videos if other != video],
                self.clips,
                self.out / "lists",
                options.decoders,
                lpips,
            )
            for video in choose_held_out(self.videos, options.held_out)
        ]
        # Recipes take turns, so that a busy hour of the machine hits all of them.
        self.jobs = [
            Job(recipe, config, held_out, seed)
            for seed, held_out, (recipe, config) in product(
                range(options.seeds), self.held_out, self.recipes.items()
            )
        ]

    def run(self) -> bool:
        """Do what is missing; whether nothing is any more. Raises ValueError where the folder holds
        results of other settings."""
        missing = [job for job in self.jobs if self._result(job) is None]
        print(
            f"{machine_name(distributed.device())}\n{len(self.videos)} videos, "
            f"{len(self.held_out)} of them held out in turn; {len(missing)} of {len(self.jobs)} "
            f"trainings of {self.options.seconds:g} s to do",
            flush=True,
        )
        started = time.monotonic()
        try:
            for held_out in self.held_out:
                self._score_baselines(held_out)
            for done, job in enumerate(missing):
                result = self._train(job)
                write_atomically(self._file(job), json.dumps(result, indent=1))
                left = (time.monotonic() - started) / (done + 1) * (len(missing) - done - 1)
                line = f"[{done + 1}/{len(missing)}] {_line(result)}; {_duration(left)} left"
                print(line, flush=True)
        except KeyboardInterrupt:
            print("interrupted: the same command goes on with what is missing")
            return False
        return True

    def report(self) -> None:
        """Print the tables of what is there, and write them with the plot."""
        runs = [run for job in self.jobs if (run := self._result(job)) is not None]
        baselines = {
            held_out.name: found["rows"]
            for held_out in self.held_out
            if (found := self._stored(*self._baselines_of(held_out))) is not None
        }
        summary = summarise([*self.recipes], runs, baselines)
        text = format_summary(summary)
        print(f"\n{text}")
        settings = {"machine": machine_name(distributed.device()), "seconds": self.options.seconds}
        write_atomically(self.out / "quality.json", json.dumps(settings | summary, indent=1))
        write_atomically(self.out / "quality.txt", text + "\n")
        write_plot(summary, self.out / "quality.svg")

    def _train(self, job: Job) -> dict[str, Any]:
        """Train and score. What a recipe that diverges reached before is told."""
        config = replace(job.config, train=replace(job.config.train, seed=job.seed))
        batch = config.train.global_batch_size
        data = job.held_out.training_data(config.data, job.seed, batch)
        rungs, diverged = [], ""
        with tempfile.TemporaryDirectory(dir=self.out, prefix=UNFINISHED) as name:
            seconds, clock = self.options.seconds, self.options.clock
            training = train_by_time(config, data, seconds, clock, Path(name))
            try:
                for rung in training:
                    scores = job.held_out.score(_load(config, rung.weights))
                    rungs.append(
                        {
                            "seconds": rung.seconds,
                            "steps": rung.steps,
                            "max_steps": rung.max_steps,
                            "scores": scores,
                        }
                    )
                    shutil.copy(rung.weights, self._file(job).with_suffix(".safetensors"))
            except DivergedError as error:
                diverged = str(error)
        return {
            "recipe": job.recipe,
            "held_out": job.held_out.name,
            "seed": job.seed,
            "rungs": rungs,
            "waited": data.waited,
            "diverged": diverged,
            "settings": self._settings(job),
        }

    def _score_baselines(self, held_out: HeldOut) -> None:
        file, settings = self._baselines_of(held_out)
        if self._stored(file, settings) is None:
            rows = held_out.score_baselines(self.block, self.coefficients)
            write_atomically(file, json.dumps({"rows": rows, "settings": settings}, indent=1))

    def _result(self, job: Job) -> dict[str, Any] | None:
        return self._stored(self._file(job), self._settings(job))

    def _file(self, job: Job) -> Path:
        return self.out / "runs" / f"{job.name}.json"

    def _baselines_of(self, held_out: HeldOut) -> tuple[Path, dict[str, Any]]:
        settings = self._shared_settings() | {
            "block": vars(self.block),
            "channels": self.coefficients,
        }
        return self.out / "baselines" / f"{held_out.name}.json", settings

    def _settings(self, job: Job) -> dict[str, Any]:
        """All that a result depends on, so that no table mixes what differs."""
        config = {k: v for k, v in flatten(job.config).items() if not k.startswith("cluster.")}
        return self._shared_settings() | {
            "seconds": self.options.seconds,
            "clock": self.options.clock,
            "machine": machine_name(distributed.device()),
            "config": config,
        }

    def _shared_settings(self) -> dict[str, Any]:
        scored_by_lpips = bool(self.options.lpips)
        return {"videos": self.videos, "clips": vars(self.clips), "lpips": scored_by_lpips}

    @staticmethod
    def _stored(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
        """A result, where it is there. Raises ValueError where it is one of other settings."""
        if not file.is_file():
            return None
        result: dict[str, Any] = json.loads(file.read_text())
        for name, wanted in json.loads(json.dumps(settings)).items():
            found = result["settings"].get(name)
            if found != wanted:
                raise ValueError(
                    f"{file} was made with another {name}{_difference(found, wanted)}: give "
                    "another --out, or remove the file"
                )
        return result


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    parser.add_argument("--recipes", nargs="+", required=True, help=f"{known}, or YAML files")
    parser.add_argument("--base", type=Path, default=REPOSITORY / "configs" / "small.yaml")
    parser.add_argument("--videos", nargs="+", required=True, help="lists or folders")
    parser.add_argument(
        "--held-out", nargs="+", default=["each"], help="each, or names of videos, without suffix"
    )
    parser.add_argument("--seconds", type=float, default=180.0, help="of training, a recipe")
    parser.add_argument("--seeds", type=int, default=1, help="from 0 on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one")
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help=CLOCK_HELP)
    parser.add_argument("--decoders", type=int, default=2, help="processes, at idle priority")
    parser.add_argument("--clips", type=int, default=48, help="of a held-out video, to be scored")
    parser.add_argument("--clip-size", type=int, default=96, help="their side, in pixels")
    parser.add_argument("--clip-frames", type=int, default=9)
    parser.add_argument("--lpips", default="", help="weights: see docs/evaluation.md")
    options = parser.parse_args(arguments)
    for name in ("seeds", "decoders", "clips", "clip_size", "clip_frames", "seconds"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    return options


def _load(config: Config, weights: Path) -> TAEHV:
    model = build_model(replace(config.model, pretrained=str(weights)))
    return model.to(distributed.device()).eval()


def _line(result: dict[str, Any]) -> str:
    place = f"{result['recipe']}, {result['held_out']} held out, seed {result['seed']}: "
    if result["diverged"]:
        return f"{place}diverged ({result['diverged']})"
    last = result["rungs"][-1]
    return (
        f"{place}{last['steps']} steps in {last['seconds']:.1f} s, {last['scores']['psnr']:.2f} dB"
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _difference(found: Any, wanted: Any) -> str:
    """Which key of two mappings differs, or the two values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in wanted if found.get(key) != wanted[key]]
        keys = keys or [key for key in found if key not in wanted]
        return "".join(f" {key} ({found.get(key)}, not {wanted.get(key)})" for key in keys[:1])
    return f" ({found}, not {wanted})"


if __name__ == "__main__":
    sys.exit(main())
