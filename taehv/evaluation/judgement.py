"""The verdict on an evaluation: that on the run's figures, and on speed and the teacher."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taehv.evaluation.scores import METRICS
from taehv.evaluation.verdict import (
    Finding,
    Level,
    Thresholds,
    judge_scores,
    judge_training,
    level_of,
)

MOST_NAMED = 3
"""Clips that a finding names; all are in metrics.json."""

SPEED_CLIP = (12, 128, 128)
"""T, H, W of the clip whose seconds the limits are for."""


@dataclass(frozen=True)
class Speed:
    """Seconds per clip of `SPEED_CLIP` on a device."""

    encode: float
    decode: float
    on_gpu: bool


@dataclass(frozen=True)
class BrokenClip:
    """A clip with scores that should be numbers and are not."""

    video: str
    first_frame: int
    scores: list[str]
    """By their names in `taehv.evaluation.scores.METRICS`."""


@dataclass(frozen=True)
class AgainstTeacher:
    """PSNR and seconds (encode and decode) on the same clips."""

    psnr: float
    teacher_psnr: float
    seconds: float
    teacher_seconds: float


def judge_evaluation(
    scores: Mapping[str, float],
    baselines: Mapping[str, float],
    rows: Sequence[Mapping[str, float]],
    speed: Speed,
    against_teacher: AgainstTeacher | None,
    limits: Thresholds,
) -> list[Finding]:
    """All findings.

    scores: of the network. baselines: PSNR of `mean_colour` and `down_and_up`, and of `linear`
    where there is a linear limit.
    rows: the run's training rows; without any, its training is not judged.
    Speed is judged on a GPU alone, since the limits are for one.
    """
    findings = judge_scores(scores, baselines, limits)
    if rows:
        findings += judge_training(rows, limits)
    if speed.on_gpu:
        findings += [
            _judge_seconds("encode, s per clip", speed.encode, limits.encode_seconds, limits),
            _judge_seconds("decode, s per clip", speed.decode, limits.decode_seconds, limits),
        ]
    if against_teacher is not None:
        findings += _judge_against_teacher(against_teacher, limits)
    return findings


def judge_broken(label: str, clips: Sequence[BrokenClip], level: Level) -> list[Finding]:
    """A finding that lists the first `MOST_NAMED` broken clips of the method `label`, if any."""
    if not clips:
        return []
    listed = "; ".join(map(_format_clip, clips[:MOST_NAMED]))
    if len(clips) > MOST_NAMED:
        listed += f"; and {len(clips) - MOST_NAMED} more"
    return [Finding(f"clips not a number, {label}", len(clips), f"none; they are {listed}", level)]


def _format_clip(clip: BrokenClip) -> str:
    """Where it is and which scores are broken, unless the frames are, and with them every score."""
    labels = ", ".join(METRICS[name].label for name in clip.scores)
    scores = "" if "mse" in clip.scores else f" ({labels})"
    return f"{clip.video} from frame {clip.first_frame}{scores}"


def _judge_seconds(name: str, seconds: float, success: float, limits: Thresholds) -> Finding:
    return Finding(
        name,
        seconds,
        f"below {success:g} on a GPU; failure above {limits.seconds_failure:g}",
        level_of(seconds, seconds < success, seconds > limits.seconds_failure),
    )


def _judge_against_teacher(found: AgainstTeacher, limits: Thresholds) -> list[Finding]:
    """The gap is relative PSNR; a gain of 200 % is three times as fast."""
    gap = (found.teacher_psnr - found.psnr) / found.teacher_psnr
    gain = found.teacher_seconds / found.seconds - 1 if found.seconds > 0 else math.nan
    return [
        Finding(
            "PSNR's gap to the teacher, %",
            100 * gap,
            f"within {limits.teacher_gap:.0%}",
            level_of(gap, gap <= limits.teacher_gap, failed=False),
        ),
        Finding(
            "speed gain over the teacher, %",
            100 * gain,
            f"above {limits.teacher_speed_gain:.0%}",
            level_of(gain, gain > limits.teacher_speed_gain, failed=False),
        ),
    ]
