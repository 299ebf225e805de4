"""Whether a cluster, a data set and a config will work, before they cost anything.

The config is that of jobs/train.py: `python jobs/doctor.py [--config FILE.yaml] [its options]`, and
besides

    --json                       one JSON object on standard output instead of lines
    --start-nodes                have the autoscaler bring nodes first, so that they are seen
    --gpu-clips-per-second X     assumed of one GPU, for clips of 9x128x128 (default 40)

The exit code is 0 where nothing is a FAILURE, 1 where something is, 2 for wrong options."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Run as a script, Python looks for imports in jobs/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli.config import Config, parse
from jobs.cli.console import BAD_CONFIG, DONE, FAILED, log_plainly, refuse
from jobs.cli.errors import ConfigError
from jobs.diagnosis.examination import Options, examine
from jobs.diagnosis.finding import Finding, Level, worst
from jobs.diagnosis.output import format_finding, format_verdict, to_json, wants_colors

INTERRUPTED = 130

log = logging.getLogger("jobs.doctor")


def main(arguments: list[str] | None = None) -> int:
    """Examine, report, and say by the exit code whether something is a FAILURE."""
    log_plainly()
    try:
        options, as_json, rest = _take_own_options(sys.argv[1:] if arguments is None else arguments)
        try:
            config = parse(rest, __doc__ or "")
        except OSError as error:
            # The store with the run's folder refuses: the checks find out why.
            log.warning("the run's own config.yaml is left out: %s", error)
            config = parse(rest, __doc__ or "", ask_run=False)
    except ConfigError as error:
        return refuse(error, BAD_CONFIG)
    try:
        findings = _report(config, options, as_json)
    except KeyboardInterrupt:
        print("stopped; nothing was left behind", file=sys.stderr)
        return INTERRUPTED
    return FAILED if worst(findings) == Level.FAILURE else DONE


def _report(config: Config, options: Options, as_json: bool) -> list[Finding]:
    findings = []
    colors = wants_colors(sys.stdout)
    for finding in examine(config, options):
        findings.append(finding)
        if not as_json:
            print(format_finding(finding, colors), flush=True)
    if as_json:
        print(to_json(findings, os.environ.get("RAY_ADDRESS", "")))
    else:
        print(format_verdict(findings))
    return findings


def _take_own_options(arguments: Sequence[str]) -> tuple[Options, bool, list[str]]:
    """The doctor's own options, whether JSON is wanted, and what is the run's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--start-nodes", action="store_true")
    parser.add_argument("--gpu-clips-per-second", type=float, default=Options.gpu_clips_per_second)
    try:
        own, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    if own.gpu_clips_per_second <= 0:
        raise ConfigError("--gpu-clips-per-second: a number above 0 is needed")
    return Options(own.start_nodes, own.gpu_clips_per_second), own.json, rest


if __name__ == "__main__":
    sys.exit(main())
