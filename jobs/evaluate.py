"""Judge an autoencoder on held-out videos: `python jobs/evaluate.py --help` lists every option."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Run as a script, Python looks for imports in jobs/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline.clips import Reader, open_sources
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError, UnusableVideoError
from data_pipeline.guard import WindowReader
from data_pipeline.held_out import HeldOutVideo, choose_videos
from data_pipeline.storage import OutsideRootError
from data_pipeline.window import WindowClips, WindowRequest
from jobs.config import ConfigError
from jobs.console import BAD_CONFIG, DONE, FAILED, VERDICT_IS_FAILURE, log_plainly
from jobs.evaluation.config import EvaluateConfig, find_weights, parse, read_thresholds, run_config
from jobs.evaluation.contestants import Contestants, load
from jobs.evaluation.exhibits import worst_clips, write_samples
from jobs.evaluation.measure import Sampling, VideoResult, score_video
from jobs.evaluation.output import check_output, staged
from jobs.evaluation.publish import publish
from jobs.evaluation.results import assemble, write_json
from jobs.evaluation.table import closing_table, sample_line
from jobs.report.page import write_report
from taehv.errors import TrainingError

log = logging.getLogger("jobs.evaluate")


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit code is that of the project's contract (0, 1, 2, 3, 130)."""
    log_plainly()
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments, __doc__ or "")
        return run(config)
    except ConfigError as error:
        return _refuse(error, BAD_CONFIG)
    except (TrainingError, DataError, OutsideRootError) as error:
        return _refuse(error, FAILED)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130


def run(config: EvaluateConfig) -> int:
    """Check, score, judge, show, and say what came of it."""
    begun = time.perf_counter()
    limits = read_thresholds(config.thresholds)
    weights = find_weights(config.checkpoint)
    output = Path(config.output_dir or weights.parent / "evaluation").absolute()
    contestants = load(config)
    sampling = Sampling(
        _fitting(config, contestants.multiple),
        config.clips_per_video,
        config.whole_frames,
        contestants.multiple,
    )
    videos = _videos(config)
    check_output(output, config.overwrite)

    with WindowReader() as reader, staged(output) as folder:

        def read(request: WindowRequest) -> WindowClips:
            return reader.read(request, config.data.decode_seconds)

        scored, skipped = _score_all(videos, sampling, contestants, read, config)
        results = assemble(
            config, contestants, sampling, [result for _, result in scored], skipped, limits
        )
        write_samples(scored[: config.num_videos], sampling, contestants, read, folder)
        worst = worst_clips(
            scored, sampling, contestants, read, folder / "worst_clips", config.worst_clips
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


def _videos(config: EvaluateConfig) -> list[HeldOutVideo]:
    """The held-out videos: those that the same seed and fraction keep out of training, or, of a
    list that is a test set of its own, all."""
    if not config.data.annotations:
        raise ConfigError(
            "--data.annotations is missing: the videos to judge on, and no config.yaml of a run "
            "beside the checkpoint names any"
        )
    training, validation = open_sources(config.data, config.seed, batch=1)
    chosen = choose_videos(validation.videos, config.seed, config.num_samples)
    own = run_config(find_weights(config.checkpoint))
    if config.split == "all" and own and own.data.annotations == config.data.annotations:
        log.warning(
            "--split all on the list that the run was trained on: the figures say how well it "
            "knows its own videos, not how well it does on others"
        )
    if config.split == "all" and training.videos.rows is not None:
        left = config.num_samples - len(chosen) if config.num_samples else 0
        if left or not config.num_samples:
            chosen += choose_videos(training.videos, config.seed, left)
    return chosen


def _score_all(
    videos: Sequence[HeldOutVideo],
    sampling: Sampling,
    contestants: Contestants,
    read: Reader,
    config: EvaluateConfig,
) -> tuple[list[tuple[HeldOutVideo, VideoResult]], list[dict[str, str]]]:
    """Every video, a line each; those that cannot be used are told and left out.

    Raises DataError where too many cannot be.
    """
    scored: list[tuple[HeldOutVideo, VideoResult]] = []
    skipped: list[dict[str, str]] = []
    for number, video in enumerate(videos, start=1):
        start = time.perf_counter()
        try:
            result = score_video(
                video,
                sampling,
                contestants.methods,
                read,
                contestants.device,
                contestants.perceptual,
            )
        except UnusableVideoError as error:
            log.warning("video %s is skipped: %s", video.name, error)
            skipped.append({"video": video.name, "reason": str(error)})
            if len(skipped) > config.max_bad_fraction * len(videos):
                raise DataError(
                    f"{len(skipped)} of {len(videos)} held-out videos cannot be used, more than "
                    f"max_bad_fraction ({config.max_bad_fraction:g}); the last of them is "
                    f"{video.name} ({error})"
                ) from error
            continue
        scored.append((video, result))
        print(sample_line(number, len(videos), result, time.perf_counter() - start), flush=True)
    return scored, skipped


def _fitting(config: EvaluateConfig, multiple: int) -> DataConfig:
    """The clip's size, which all methods must be able to take."""
    for name in ("height", "width"):
        size = getattr(config.data, name)
        if size % multiple or size < 16:
            raise ConfigError(
                f"data.{name} is {size}: these networks need a multiple of {multiple}, at least 16"
            )
    return config.data


def _refuse(error: Exception, code: int) -> int:
    """One clear line."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
