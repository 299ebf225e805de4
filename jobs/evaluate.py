"""Judge an autoencoder on held-out videos: `python jobs/evaluate.py --help` lists every option."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

# Run as a script, Python looks for imports in jobs/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from data_pipeline.clips import Rejection, open_sources
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.held_out import HeldOutVideo, choose_videos
from jobs.cli.console import BAD_CONFIG, DONE, FAILED, VERDICT_IS_FAILURE, log_plainly, refuse
from jobs.cli.errors import ConfigError
from jobs.cli.weights import find_weights, run_config
from jobs.cluster.fan_out import FanOut, fan_out
from jobs.evaluation.config import EvaluateConfig, parse, read_thresholds
from jobs.evaluation.contestants import Contestants, load
from jobs.evaluation.cost import Costs
from jobs.evaluation.exhibits import worst_clips, write_samples
from jobs.evaluation.measure import Sampling
from jobs.evaluation.output import check_output, staged
from jobs.evaluation.page import write_report
from jobs.evaluation.publish import publish
from jobs.evaluation.reading import VideoReader
from jobs.evaluation.results import assemble, write_json
from jobs.evaluation.scoring import CostWorker, Scored, ScoringTask, ScoringWorker
from jobs.evaluation.table import closing_table, sample_line
from taehv import distributed
from taehv.errors import TrainingError

log = logging.getLogger("jobs.evaluate")


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit code is that of the project's contract (0, 1, 2, 3, 130)."""
    log_plainly()
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments, __doc__ or "")
        return run(config)
    except ConfigError as error:
        return refuse(error, BAD_CONFIG)
    except (TrainingError, DataError, OSError) as error:
        return refuse(error, FAILED)
    except KeyboardInterrupt:
        print("stopped before the report was written", file=sys.stderr)
        return 130


def run(config: EvaluateConfig) -> int:
    """Check, score, judge, show, and say what came of it."""
    begun = time.perf_counter()
    weights = find_weights(config.checkpoint)
    limits = read_thresholds(config.thresholds)
    training = run_config(weights)
    if training is not None:
        limits = limits.with_gradient_scale(training.loss.gradient_scale)
    output = Path(config.output_dir or weights.parent / "evaluation").absolute()
    # With Ray the networks go from here to the workers' devices.
    device = torch.device("cpu") if config.ray.wanted else distributed.device()
    contestants = load(config, device)
    sampling = Sampling(
        _fitting(config, contestants.multiple),
        config.clips_per_video,
        config.whole_frames,
        contestants.multiple,
    )
    videos, refused = _videos(config)
    check_output(output, config.overwrite)

    with fan_out(config.ray) as workers:
        scored, skipped = _score_all(videos, refused, sampling, contestants, workers, config)
        cost = _measure_cost(contestants, workers)
    found = [(entry.video, entry.result) for entry in scored if entry.result is not None]
    results = assemble(
        config,
        contestants,
        sampling,
        [result for _, result in found],
        [{"video": entry.video, "reason": entry.reason} for entry in skipped],
        cost,
        limits,
    )
    results["seconds"] = time.perf_counter() - begun
    with staged(output) as folder:
        # What took hours is safe before pictures and report, which may fail.
        write_json(results, folder / "metrics.json")
    with (
        _log_scores_on_failure(output / "metrics.json"),
        closing(VideoReader(config.data.decode_seconds)) as read,
        staged(output) as folder,
    ):
        write_samples(found[: config.num_videos], sampling, contestants, read, folder)
        worst = worst_clips(
            found, sampling, contestants, read, folder / "worst_clips", config.worst_clips
        )
        results["seconds"] = time.perf_counter() - begun
        write_json(results, folder / "metrics.json")
        write_report(folder, results, worst)
    print()
    print(closing_table(results))
    hint = publish(config, weights, output, results)
    print(f"\nresults   {output}\nreport    {output / 'summary_report.html'}")
    if hint:
        print(f"MLflow    {hint}")
    failed = results["verdict"]["overall"] == "failure"
    return VERDICT_IS_FAILURE if failed and config.fail_on_verdict else DONE


@contextmanager
def _log_scores_on_failure(file: Path) -> Iterator[None]:
    """Where all scores are, if what comes after them fails."""
    written = False
    try:
        yield
        written = True
    finally:
        if not written:
            log.warning("all scores and the verdict are in %s; the report is not written", file)


def _videos(config: EvaluateConfig) -> tuple[list[HeldOutVideo], list[Rejection]]:
    """The held-out videos: those that the same seed and fraction keep out of training, or, of a
    list that is a test set of its own, all. Second those whose path leads out of the root."""
    if not config.data.annotations:
        raise ConfigError(
            "--data.annotations is missing: the videos to judge on, and no config.yaml of a run "
            "beside the checkpoint names any"
        )
    training, validation = open_sources(config.data, config.seed, batch=1)
    chosen, refused = choose_videos(validation.videos, config.seed, config.num_samples)
    own = run_config(find_weights(config.checkpoint))
    if config.split == "all" and own and own.data.annotations == config.data.annotations:
        log.warning(
            "--split all on the list that the run was trained on: the figures say how well it "
            "knows its own videos, not how well it does on others"
        )
    if config.split == "all" and training.videos.rows is not None:
        left = config.num_samples - len(chosen) - len(refused) if config.num_samples else 0
        if left or not config.num_samples:
            more, also = choose_videos(training.videos, config.seed, left)
            chosen, refused = chosen + more, refused + also
    return chosen, refused


def _score_all(
    videos: Sequence[HeldOutVideo],
    refused: Sequence[Rejection],
    sampling: Sampling,
    contestants: Contestants,
    workers: FanOut,
    config: EvaluateConfig,
) -> tuple[list[Scored], list[Rejection]]:
    """Every video, a line each, in their order; those that cannot be used are told and left out.

    Raises DataError where too many cannot be.
    """
    scored: list[Scored] = []
    skipped: list[Rejection] = []
    for rejection in refused:
        _skip(rejection, skipped)
    task = ScoringTask(contestants, sampling, config.data.decode_seconds)
    for entry in workers.each(ScoringWorker, task, list(enumerate(videos))):
        if entry.result is not None:
            scored.append(entry)
            line = sample_line(len(scored), len(videos), entry.result, entry.seconds)
            print(line, flush=True)
            continue
        _skip(Rejection(entry.video.name, entry.reason), skipped)
        unusable = len(skipped) - len(refused)
        if unusable > config.max_bad_fraction * len(videos):
            raise DataError(
                f"{unusable} of {len(videos)} held-out videos cannot be used, more than "
                f"max_bad_fraction ({config.max_bad_fraction:g}); the last of them is "
                f"{entry.video.name} ({entry.reason})"
            )
    if not scored:
        raise DataError(
            f"none of the {len(skipped)} held-out videos can be used; the last of them is "
            f"{skipped[-1].video} ({skipped[-1].reason})"
        )
    return sorted(scored, key=lambda entry: entry.index), skipped


def _skip(video: Rejection, skipped: list[Rejection]) -> None:
    log.warning("video %s is skipped: %s", video.video, video.reason)
    skipped.append(video)


def _measure_cost(contestants: Contestants, workers: FanOut) -> Costs:
    """When all is scored, so that nothing else is running."""
    place = workers if workers.has_gpus else FanOut()
    return next(place.each(CostWorker, contestants, [None]))


def _fitting(config: EvaluateConfig, multiple: int) -> DataConfig:
    """The clip's size, which all methods must be able to take."""
    for name in ("height", "width"):
        size = getattr(config.data, name)
        if size % multiple or size < 16:
            raise ConfigError(
                f"data.{name} is {size}: these networks need a multiple of {multiple}, at least 16"
            )
    return config.data


if __name__ == "__main__":
    sys.exit(main())
