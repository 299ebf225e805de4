"""The benchmark of recipes, on small videos and for a moment."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from benchmarks import quality
from benchmarks.decoding_ahead import decode_ahead
from benchmarks.held_out import HeldOut, ScoredClips
from benchmarks.quality_recipes import RECIPES, REPOSITORY
from benchmarks.quality_report import paired_difference, seconds_to_pass, summarise
from benchmarks.timed_training import LADDER, train_by_time
from data_pipeline.batches import iter_batches
from data_pipeline.clips import open_sources
from data_pipeline.config import DataConfig
from jobs.cli.config import Config, read_yaml
from taehv.evaluation.lpips import Lpips
from taehv.losses.reconstruction import LossConfig
from taehv.model import ModelConfig, build_model
from taehv.model.weights import load_weights
from taehv.training.config import TrainConfig
from tests.helpers.data_videos import write_dataset
from tests.helpers.moving_data import MovingData
from tests.helpers.small_run import SMALL_MODEL
from tests.taehv.evaluation.test_frames import lpips_state

BASE = """\
model: {encoder_width: 8, decoder_widths: [16, 8, 8, 8]}
loss: {seraena: 0}
data: {height: 16, width: 16, num_frames: 5}
train: {global_batch_size: 2}
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("videos"), count=3)


def _command(videos: Path, out: Path, *options: str) -> list[str]:
    base = out.parent / "base.yaml"
    base.write_text(BASE)
    fixed = ["--base", str(base), "--out", str(out), "--seconds", "0.1", "--decoders", "1"]
    clips = ["--clips", "2", "--clip-size", "32", "--clip-frames", "5"]
    return ["--videos", str(videos), *fixed, *clips, *options]


def test_what_was_interrupted_goes_on_and_ends_in_tables_and_a_plot(
    videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = _command(videos, tmp_path / "out", "--recipes", "before", "default")
    command += ["--held-out", "video_0"]
    began = []

    def interrupted(*arguments: object) -> object:
        began.append(arguments)
        if len(began) == 2:
            raise KeyboardInterrupt
        return train_by_time(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(quality, "train_by_time", interrupted)
    assert quality.main(command) == 130
    finished = tmp_path / "out" / "runs" / "before.video_0.0.json"
    assert [*finished.parent.glob("*.json")] == [finished]
    written = finished.stat().st_mtime_ns

    assert quality.main(command) == 0
    assert len(began) == 2 + 1
    assert finished.stat().st_mtime_ns == written
    out = capsys.readouterr().out
    assert "[1/1] default, video_0 held out, seed 0: " in out

    summary = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert [*summary["baselines"]] == ["mean colour", "8x down and up", "linear, 16 coefficients"]
    assert [*summary["recipes"]] == ["before", "default"]
    before, default = (
        json.loads((finished.parent / f"{recipe}.video_0.0.json").read_text())
        for recipe in ("before", "default")
    )
    assert summary["recipes"]["default"]["rungs"][-1]["scores"] == default["rungs"][-1]["scores"]
    last = [run["rungs"][-1]["scores"]["psnr"] for run in (before, default)]
    difference = summary["recipes"]["default"]["difference"]["psnr"]
    assert difference["mean"] == pytest.approx(last[1] - last[0])
    steps = [rung["steps"] for rung in default["rungs"]]
    assert steps == sorted(steps)
    assert len(set(steps)) == len(LADDER)
    assert "<svg" in (tmp_path / "out" / "quality.svg").read_text()

    # Another recipe under the same name is not taken for what is there.
    assert quality.main([*command, "--seconds", "0.2"]) == 2
    assert "another seconds (0.1, not 0.2)" in capsys.readouterr().out


def test_lpips_is_a_column_where_its_weights_are_given(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(lpips_state(), tmp_path / "lpips.pth")
    command = _command(videos, tmp_path / "out", "--recipes", "default", "--held-out", "video_0")
    assert quality.main([*command, "--lpips", str(tmp_path / "lpips.pth")]) == 0
    printed = capsys.readouterr().out
    assert "LPIPS" in printed
    (finished,) = (tmp_path / "out" / "runs").glob("*.json")
    last = json.loads(finished.read_text())["rungs"][-1]["scores"]
    model = build_model(ModelConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8)))
    load_weights(model, finished.with_suffix(".safetensors"))
    rows = HeldOut(
        str(videos.parent.resolve() / "video_0.mp4"),
        [str(videos.parent.resolve() / "video_1.mp4")],
        ScoredClips(2, 32, 5),
        tmp_path,
        1,
    )
    lpips = Lpips(lpips_state())
    distances = []
    for passed in rows.validation.native:
        frames = torch.from_numpy(passed[1][: len(passed[0])]).float() / 255
        with torch.no_grad():
            decoded = model.decode_video(model.encode_video(frames))
        original, reconstructed = model.alignment.pair(frames, decoded)
        pairs = zip(original.flatten(0, 1), reconstructed.flatten(0, 1), strict=True)
        distances += [float(lpips(a[None], b[None])) for a, b in pairs]
    assert last["lpips"] == pytest.approx(np.mean(distances), rel=1e-4)

    # Without them, what was scored with them is another table.
    assert quality.main(command) == 2
    assert "lpips" in capsys.readouterr().out


def test_a_recipe_is_laid_over_the_base_and_is_a_config_by_itself() -> None:
    base = REPOSITORY / "configs" / "small.yaml"
    small = read_yaml(base)
    crops = {}
    for file in RECIPES.glob("*.yaml"):
        laid = read_yaml(base, file)
        crops[file.stem] = laid.data.crops
        assert laid.model == small.model
        assert read_yaml(file).data.crops == laid.data.crops
    assert crops == {
        "default": DataConfig().crops,
        "adamw": DataConfig().crops,
        "before": DataConfig().crops,
        "ancestor": "0.8-1.0",
        "public": "uniform",
        "public_quick": "uniform",
        "uniform": "uniform",
        "native_only": "native",
    }


def test_clips_that_are_decoded_ahead_are_those_of_one_process(videos: Path) -> None:
    config = DataConfig(annotations=str(videos), height=16, width=16, num_frames=5)
    source, _ = open_sources(config, seed=3, batch=2)

    def schedule() -> list[np.ndarray]:
        return [np.array([2 * step, 2 * step + 1]) for step in range(30)]

    plain = iter_batches(source, iter(schedule()))
    for ours, theirs in zip(decode_ahead(source, iter(schedule()), 2), plain, strict=True):
        assert ours["sample"].tolist() == theirs["sample"].tolist()
        assert ours["video"] == theirs["video"]
        np.testing.assert_array_equal(ours["frames"], theirs["frames"])


def test_training_in_rungs_counts_the_start_and_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each look at the clock takes a second, so that a step takes one, and all else is free.
    ticks = iter(range(10**6))
    monkeypatch.setattr("benchmarks.timed_training.CLOCKS", {"steps": lambda: float(next(ticks))})
    config = Config(
        model=SMALL_MODEL, loss=LossConfig(seraena=0), train=TrainConfig(global_batch_size=2)
    )
    rungs = []
    weights = []
    for rung in train_by_time(config, MovingData(size=16), 32, "steps", tmp_path):
        rungs.append(rung)
        weights.append(rung.weights.read_bytes())
    assert [rung.seconds for rung in rungs] == [part * 32 for part in LADDER]
    # The first second is that of the start.
    assert [rung.steps for rung in rungs] == [part * 32 - 1 for part in LADDER]
    # A twentieth more than there is time for, estimated anew at each rung.
    assert {rung.max_steps for rung in rungs} == {32, 33}
    assert len(set(weights)) == len(LADDER)


def _run(recipe: str, held_out: str, seed: int, psnr: float, diverged: str = "") -> dict[str, Any]:
    scores = {"psnr": psnr, "psnr_mean": psnr, "ssim": 0.5, "detail": 0.1, "flat_clips": 0.0}
    rungs = [{"seconds": 10.0, "steps": 7, "scores": scores}]
    run = {"recipe": recipe, "held_out": held_out, "seed": seed, "waited": 0.0}
    return {**run, "rungs": [] if diverged else rungs, "diverged": diverged}


def test_figures_are_means_over_whole_runs_and_pairs_of_one_video_and_seed() -> None:
    runs = [
        *(_run("old", video, seed, 20 + seed) for video in "ab" for seed in (0, 1)),
        *(_run("new", video, seed, 23 + seed + (video == "a")) for video in "ab" for seed in (0,)),
        _run("new", "a", 1, 27.0),
        _run("new", "b", 1, 0.0, diverged="the loss is not finite"),
    ]
    rows = {"mean colour": {"psnr": 15.0}}
    summary = summarise(["old", "new"], runs, {"a": rows, "b": rows})
    assert summary["recipes"]["old"]["rungs"][0]["scores"]["psnr"] == 20.5
    new = summary["recipes"]["new"]
    assert new["rungs"][0]["scores"]["psnr"] == pytest.approx((24 + 23 + 27) / 3)
    assert (new["runs"], new["diverged"]) == (3, 1)
    assert new["difference"]["psnr"]["pairs"] == 3
    assert new["difference"]["psnr"]["mean"] == pytest.approx((4 + 3 + 6) / 3)


def test_times_of_passing_and_differences() -> None:
    curve = [(10.0, 20.0), (100.0, 22.0)]
    assert seconds_to_pass(curve, 21.0) == pytest.approx(math.sqrt(10.0 * 100.0))
    assert seconds_to_pass(curve, 19.0) == 10.0
    assert seconds_to_pass(curve, 22.5) is None
    ours, theirs = [1.0, 2.5, 3.0, 5.0], [0.5, 1.0, 3.5, 3.0]
    found = paired_difference(np.subtract(ours, theirs).tolist())
    interval = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert paired_difference([1.0, 2.0])["low"] is None
