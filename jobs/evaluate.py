"""Judge an autoencoder on held-out videos: `python jobs/evaluate.py --help` lists every option."""

from __future__ import annotations

import sys
import time
from pathlib import Path

# Run as a script, Python looks for imports in jobs/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline.errors import DataError
from jobs.cli.console import BAD_CONFIG, DONE, FAILED, VERDICT_IS_FAILURE, log_plainly, refuse
from jobs.cli.errors import ConfigError
from jobs.cluster.fan_out import fan_out
from jobs.evaluation.config import EvaluateConfig, parse, read_limits
from jobs.evaluation.measure import Sampling
from jobs.evaluation.methods import load_methods
from jobs.evaluation.output import prepare_output, write_results
from jobs.evaluation.publish import publish
from jobs.evaluation.reading import videos_to_score
from jobs.evaluation.results import assemble
from jobs.evaluation.scoring import measure_costs, probe, score_videos
from jobs.evaluation.table import closing_table
from taehv.errors import TrainingError


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
    began = time.perf_counter()
    limits = read_limits(config)
    methods = load_methods(config)
    sampling = Sampling.of(config, methods.multiple)
    videos, refused = videos_to_score(config)
    output = prepare_output(config, methods)
    kind = "held-out videos" if config.split == "validation" else "videos of the whole list"
    print(f"scoring {len(videos)} {kind}: {sampling.describe()}", flush=True)
    if methods.limit_note:
        print(methods.limit_note, flush=True)

    with fan_out(config.ray) as workers:
        scored, skipped = score_videos(videos, refused, sampling, methods, workers, config)
        probes = probe(scored, sampling, methods, workers, config)
        costs = measure_costs(methods, workers)

    results = assemble(config, methods, sampling, scored, skipped, costs, probes, limits)
    write_results(output, results, began, scored, sampling, methods, config)
    print(f"\n{closing_table(results)}")
    hint = publish(config, methods.weights, output, results)
    print(f"\nresults   {output}\nreport    {output / 'summary_report.html'}")
    print(f"artifacts {output / 'artifacts.html'}")
    if hint:
        print(f"MLflow    {hint}")
    failed = results["verdict"]["overall"] == "failure"
    return VERDICT_IS_FAILURE if failed and config.fail_on_verdict else DONE


if __name__ == "__main__":
    sys.exit(main())
