"""metrics.json: everything that an evaluation found, in one documented object.

    schema, version      "taehv-evaluation", 2; a change that a reader would stumble over is a new
                         version: until 1, psnr was the mean over clips, which is psnr_mean now
    created, seconds     when, and how long it took
    checkpoint           path, sha256, variant, parameters; run_dir, run_id, step of the run
    data                 annotations, root, split, seed, mode ("windows" of the videos' own pixels,
                         "shrunk clips" or "whole frames"), num_frames, height, width of a clip,
                         where the video has as much; frame_limit of a whole video, 0 without one;
                         videos and clips that were scored; skipped: [{video, reason}]
    environment          python, torch, device, precision
    verdict              overall: pass | warning | failure; findings: [{name, figure, threshold,
                         level}]; thresholds: the limits
    methods              by key (network, int8, baseline, compare_0, teacher, linear where the run
                         has a linear limit, down_and_up, mean_colour): label, file, scores: {score:
                         {mean, low, high, clips}}; clips: how many have the score, numbers or not
    differences          by key: the network minus that method, [{metric, mean, low, high,
                         outcome, pairs, note}]; outcome is the network's: better | worse | no
                         difference shown | not compared; pairs: clips that have the score in both;
                         note: why it was not compared, or that some clips lack it
    flat                 clips: how many are flat (spread below the one given); psnr: by method,
                         pooled over these alone
    trained_on           null where it is not known, or the scale is the same; else crops,
                         num_frames, height, width, the mean scale of the clips that the network
                         was trained on, its pooled psnr on such clips of the same videos, and
                         difference: psnr at 1:1 minus that
    rate                 bits per pixel (half, int8, source, raw), ratios, int8_psnr_cost: {mean,
                         low, high, clips}
    latents              mean, std, channel_mean, channel_std, channel_min, channel_max
    artifacts            figures: by method and artifact (see `taehv.evaluation.artifact_verdict`),
                         of the network what the probes found, too; phases, kinds: the gains over 8x
                         down and up, dB, by method; flat, shimmer: root mean square, by colour and
                         by video; sizes: PSNR of the same pixels in frames of several sizes, by
                         video; worst: the clip with the worst figure, as places in `videos` and in
                         its clips
    cost                 speed_clip: [T, H, W]; by method encode_seconds, decode_seconds,
                         encode_peak_bytes, decode_peak_bytes, repeats
    videos               [{video, frames, height, width, fps, bytes, clips: [{first_frame, place,
                         frames, height, width, original, scores, per_frame,
                         artifacts}], lost}]; of a whole
                         video the clips are the stretches that decode, one unless it is damaged,
                         and lost says, in words, which frames are lost and why

Scores are those of `taehv.evaluation.scores.METRICS`. Over clips, psnr and detail are pooled: made
of the mean over all clips of the MSE, or of the Laplacian energies; psnr_mean, and all others, are
means over clips; each is called `mean`. A clip's own psnr is that of its MSE. low and high are a
95 % bootstrap interval over videos, in which pooled scores are pooled anew. A value that does not
exist, or is not a finite number, is null. A clip that lacks a score by the score's definition is
left out of its mean; a clip whose score is broken is not, so the mean is null, and a finding names
the clip.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import torch

from data_pipeline.clips import Rejection
from data_pipeline.crops import mean_scale
from data_pipeline.videos.storage import parent
from jobs.evaluation.artifacts import summarise_artifacts
from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.cost import Costs
from jobs.evaluation.measure import Sampling, VideoResult
from jobs.evaluation.methods import Methods
from jobs.evaluation.scoring import ScoredVideo
from taehv.credentials import hide_credentials, in_all_texts
from taehv.evaluation.artifact_verdict import judge_artifacts
from taehv.evaluation.compare import compare
from taehv.evaluation.intervals import Interval, bootstrap
from taehv.evaluation.judgement import (
    AgainstTeacher,
    BrokenClip,
    judge_broken,
    judge_evaluation,
)
from taehv.evaluation.metrics import FLAT_SPREAD, psnr_of
from taehv.evaluation.probes import Probes
from taehv.evaluation.rate import RAW_BITS, LatentStatistics, Rate
from taehv.evaluation.scores import (
    METRICS,
    Scores,
    broken_scores,
    is_measured,
    parts_of,
)
from taehv.evaluation.verdict import Finding, Level, Thresholds, overall
from taehv.interfaces import Row
from taehv.run import journal
from taehv.run.run_folder import RunFolder

SCHEMA, VERSION = "taehv-evaluation", 2

SAME_SCALE = 0.95
"""From here on, clips count as shown in the video's own pixels."""

NOT_COMPARED = ("network", "int8", "mean_colour")
OWN = ("network", "int8")
"""What is judged; the others stand beside it."""


def assemble(
    config: EvaluateConfig,
    methods: Methods,
    sampling: Sampling,
    scored: Sequence[ScoredVideo],
    skipped: Sequence[Rejection],
    cost: Costs,
    probes: Probes,
    limits: Thresholds,
) -> dict[str, Any]:
    """All but `seconds`."""
    seed, videos = config.seed, [result for _, result in scored]
    scores = {m.key: intervals(videos, m.key, seed) for m in methods.all}
    # The log of the run that made the weights, where it lies beside them.
    run = RunFolder(str(methods.weights.parent))
    rows = journal.read_run(run) if run.exists("metrics.jsonl") else []
    findings = _judge(scores, cost, rows, limits)
    for m in methods.all:
        # What the network is compared with may be broken without its fault.
        level: Level = "failure" if m.key in OWN else "warning"
        findings += judge_broken(m.label, broken_clips(videos, m.key), level)
    artifacts = summarise_artifacts(videos, [m.key for m in methods.all], probes)
    findings += judge_artifacts(artifacts["figures"]["network"], limits)
    latents = LatentStatistics()
    for video in videos:
        latents.merge(video.latents)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": _identity(methods, rows),
        "data": {
            "annotations": config.data.annotations,
            "root": config.data.root,
            "split": config.split,
            "seed": seed,
            "validation_fraction": config.data.validation_fraction,
            "mode": sampling.mode,
            "num_frames": sampling.size.frames,
            "height": sampling.size.height,
            "width": sampling.size.width,
            "frame_limit": sampling.limit,
            "videos": len(videos),
            "clips": sum(len(video.clips) for video in videos),
            "skipped": [asdict(rejection) for rejection in skipped],
        },
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": cost.device,
            "precision": cost.precision,
        },
        "verdict": {
            "overall": overall(findings),
            "findings": [asdict(finding) for finding in findings],
            "thresholds": asdict(limits),
        },
        "methods": {
            m.key: {
                "label": m.label,
                "file": methods.files.get(m.key, ""),
                "scores": {name: asdict(interval) for name, interval in scores[m.key].items()},
            }
            for m in methods.all
        },
        "differences": {
            m.key: [
                asdict(difference)
                for difference in compare(grouped(videos, "network"), grouped(videos, m.key), seed)
            ]
            for m in methods.all
            if m.key not in NOT_COMPARED
        },
        "flat": _flat(videos, methods),
        "trained_on": _trained_on(videos, sampling, scores["network"]["psnr"].mean),
        "rate": _rate(videos, methods, seed),
        "latents": latents.summary(),
        "artifacts": artifacts,
        "cost": {"speed_clip": list(cost.clip), "methods": cost.methods},
        "videos": [
            {
                "video": video.video,
                **asdict(video.facts),
                "clips": [asdict(clip) for clip in video.clips],
                "lost": video.lost,
            }
            for video in videos
        ],
    }
    strict: dict[str, Any] = _strict(in_all_texts(hide_credentials, found))
    return strict


def grouped(videos: Sequence[VideoResult], method: str) -> list[list[Scores]]:
    """Per video, the scores of its clips by a method."""
    return [[clip.scores[method] for clip in video.clips] for video in videos]


def intervals(videos: Sequence[VideoResult], method: str, seed: int) -> dict[str, Interval]:
    """Each score over all clips, with its interval over videos."""
    clips = grouped(videos, method)
    return {
        name: bootstrap(
            [[parts_of(clip, name) for clip in video] for video in clips], seed, metric.pooled
        )
        for name, metric in METRICS.items()
        if any(is_measured(clip, name) for video in clips for clip in video)
    }


def broken_clips(videos: Sequence[VideoResult], method: str) -> list[BrokenClip]:
    """The clips of which a method has scores that are not numbers, and should be."""
    return [
        BrokenClip(video.video, clip.first_frame, names)
        for video in videos
        for clip in video.clips
        if (names := broken_scores(clip.scores[method]))
    ]


def _judge(
    scores: dict[str, dict[str, Interval]], cost: Costs, rows: Sequence[Row], limits: Thresholds
) -> list[Finding]:
    means = {key: {n: i.mean for n, i in found.items()} for key, found in scores.items()}
    baselines = ("mean_colour", "down_and_up", "linear")
    floor = {key: means[key]["psnr"] for key in baselines if key in means}
    speed = cost.speed_of("network")
    against = None
    if "teacher" in means:
        theirs = cost.speed_of("teacher")
        against = AgainstTeacher(
            means["network"]["psnr"],
            means["teacher"]["psnr"],
            speed.encode + speed.decode,
            theirs.encode + theirs.decode,
        )
    return judge_evaluation(means["network"], floor, rows, speed, against, limits)


def _identity(methods: Methods, rows: Sequence[Row]) -> dict[str, Any]:
    weights, model = methods.weights, methods.network.model
    id_file = weights.parent / "mlflow.json"
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "path": methods.files["network"],
        "sha256": digest,
        "variant": model.config.variant,
        "parameters": sum(p.numel() for p in model.parameters()),
        "run_dir": parent(methods.files["network"]) if rows else None,
        "run_id": json.loads(id_file.read_text())["run_id"] if id_file.is_file() else None,
        "step": int(rows[-1]["step"]) if rows else None,
    }


def _rate(videos: Sequence[VideoResult], methods: Methods, seed: int) -> dict[str, Any]:
    """What the latents cost to keep; means over the clips."""
    sizes = [(clip.frames, clip.height, clip.width) for video in videos for clip in video.clips]
    rates = [Rate.of(methods.network.latent_shape(*size), math.prod(size)) for size in sizes]
    half, int8 = fmean(rate.half for rate in rates), fmean(rate.int8 for rate in rates)
    facts = [video.facts for video in videos]
    source = fmean(8 * f.bytes / (f.frames * f.height * f.width) for f in facts)
    against = compare(grouped(videos, "network"), grouped(videos, "int8"), seed)
    (cost,) = (found for found in against if found.metric == "psnr")
    return {
        "bits_per_pixel": {"half": half, "int8": int8, "source": source, "raw": RAW_BITS},
        "raw_over_half": RAW_BITS / half,
        "raw_over_int8": RAW_BITS / int8,
        "source_over_half": source / half,
        "source_over_int8": source / int8,
        "int8_psnr_cost": {
            "mean": cost.mean,
            "low": cost.low,
            "high": cost.high,
            "clips": cost.pairs,
        },
    }


def _flat(videos: Sequence[VideoResult], methods: Methods) -> dict[str, Any]:
    """The flat clips, and how each method does on these alone."""
    flat = [c for video in videos for c in video.clips if c.original["spread"] < FLAT_SPREAD]
    psnr = {
        m.key: float(psnr_of(fmean(clip.scores[m.key]["mse"] for clip in flat)))
        for m in methods.all
        if flat
    }
    return {"spread": FLAT_SPREAD, "clips": len(flat), "psnr": psnr}


def _trained_on(
    videos: Sequence[VideoResult], sampling: Sampling, native: float
) -> dict[str, Any] | None:
    """How the network does on clips as it was trained on; native: its PSNR at 1:1, dB."""
    data = sampling.trained
    if data is None:
        return None
    size = data.height, data.width
    facts = [video.facts for video in videos]
    scale = fmean(mean_scale(data.crops, size, (f.height, f.width)) for f in facts)
    # The videos are no larger than the clips.
    if scale > SAME_SCALE:
        return None
    errors = [mse for video in videos for mse in video.trained]
    if not errors:
        return None
    psnr = float(psnr_of(fmean(errors)))
    return {
        "crops": data.crops,
        "num_frames": data.num_frames,
        "height": data.height,
        "width": data.width,
        "scale": scale,
        "psnr": psnr,
        "difference": native - psnr,
    }


def _strict(value: Any) -> Any:
    """As JSON has it: what is no number is null."""
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
