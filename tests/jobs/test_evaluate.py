"""`jobs/evaluate.py` from end to end on an untrained network, and what it refuses."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from jobs import evaluate
from jobs.evaluation.output import staged
from taehv.evaluation import metrics
from taehv.evaluation.artifact_verdict import ARTIFACTS
from taehv.evaluation.linear import BlockShape, LinearLimit
from taehv.model import build_model
from taehv.model.variants import ModelConfig
from tests.helpers.data_videos import sequential_frames, write_annotations
from tests.helpers.evaluate_run import (
    SMALL,
    export_breaking,
    export_small,
    make_black,
    make_videos,
    read_metrics,
    run,
    words,
)
from tests.helpers.jobs_run import REPOSITORY, assert_quiet, environment
from tests.helpers.s3_server import s3_server
from tests.helpers.video_kinds import Kind, make, remux, spoil


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def evaluated(
    weights: Path, annotations: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Results beside another network, and the weights of that one."""
    output = tmp_path_factory.mktemp("results")
    other = export_small(tmp_path_factory.mktemp("other"), seed=1)
    code = run(weights, annotations, output, "--compare", str(other), "--baseline", str(weights))
    assert code == 0
    return output, other


def test_all_files_are_there(evaluated: tuple[Path, Path]) -> None:
    output, _ = evaluated
    assert sorted(p.name for p in output.iterdir()) == [
        "artifacts",
        "artifacts.html",
        "comparison_videos",
        "latent_visualizations",
        "metrics.json",
        "summary_report.html",
        "worst_clips",
    ]
    for kind in ("original", "reconstructed", "comparison"):
        video = output / "comparison_videos" / f"test_0_{kind}.mp4"
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert stream.frames == 5
        data = video.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")
    with Image.open(output / "latent_visualizations" / "test_0_latents.png") as picture:
        assert picture.width > 16 * 50


def test_the_scores_are_those_of_the_reconstruction(
    evaluated: tuple[Path, Path], weights: Path, annotations: Path
) -> None:
    """Of one clip of known frames, decoded, scaled and reconstructed without the evaluation."""
    from data_pipeline.decoding.augment import ClipMaker
    from data_pipeline.plan import CENTRE

    video = read_metrics(evaluated[0])["videos"][0]
    clip = video["clips"][1]
    with av.open(str(annotations.parent / video["video"])) as container:
        frames = list(container.decode(video=0))
    assert video["frames"] == len(frames) == 14
    made = np.empty((5, 3, 32, 48), np.uint8)
    maker = ClipMaker(CENTRE, made)
    for place in range(5):
        maker.put(place, frames[clip["first_frame"] + place])
    model = build_model(replace(SMALL, pretrained=str(weights)))
    original = torch.from_numpy(made)[None].float() / 255
    with torch.no_grad():
        expected = metrics.score_clips(original, model.reconstruct_video(original))
    for name, value in expected.items():
        found = {**clip["original"], **clip["scores"]["network"]}
        assert found[name] == pytest.approx(value.item(), rel=1e-4), name


def test_the_document_holds_together(evaluated: tuple[Path, Path], weights: Path) -> None:
    results = read_metrics(evaluated[0])
    assert (results["schema"], results["version"]) == ("taehv-evaluation", 2)
    assert results["data"]["mode"] == "shrunk clips"
    assert results["data"]["videos"] == 12
    assert results["data"]["clips"] == 24
    keys = ["network", "int8", "baseline", "compare_0", "down_and_up", "mean_colour"]
    assert [*results["methods"]] == keys
    psnr = [c["scores"]["network"]["psnr"] for v in results["videos"] for c in v["clips"]]
    found = results["methods"]["network"]["scores"]["psnr"]
    mse = [c["scores"]["network"]["mse"] for v in results["videos"] for c in v["clips"]]
    assert found["mean"] == pytest.approx(-10 * np.log10(np.mean(mse)))
    assert found["low"] < found["mean"] < found["high"]
    mean = results["methods"]["network"]["scores"]["psnr_mean"]
    assert mean["mean"] == pytest.approx(np.mean(psnr))
    # Five frames are extended to nine: three latents of 16 channels in 16 bits.
    assert results["rate"]["raw_over_half"] == pytest.approx(24 / (3 * 16 * 16 / (5 * 64)))
    assert results["rate"]["int8_psnr_cost"]["mean"] == pytest.approx(0, abs=0.05)
    # The baseline is the network itself: nothing can be shown.
    differences = {d["metric"]: d for d in results["differences"]["baseline"]}
    # Frames of 32x48 are too small for it.
    assert differences.pop("ms_ssim")["outcome"] == "not compared"
    assert {d["outcome"] for d in differences.values()} == {"no difference shown"}
    assert all(d["mean"] == 0 for d in differences.values())
    below = {d["metric"]: d["outcome"] for d in results["differences"]["down_and_up"]}
    assert below["psnr"] == "worse"
    levels = {f["name"]: f["level"] for f in results["verdict"]["findings"]}
    assert levels["PSNR against no network, dB"] in ("warning", "failure")


def test_artifacts_are_measured_judged_and_shown(evaluated: tuple[Path, Path]) -> None:
    results = read_metrics(evaluated[0])
    found = results["artifacts"]
    # Neither the network's int8 latents nor what has no pixels is told of.
    assert [*found["figures"]] == ["network", "baseline", "compare_0"]
    network = found["figures"]["network"]
    # Frames of 32x48 are smaller than a segment, and all border.
    assert {"phase", "flat_grey", "flat_colour", "shimmer"} <= network.keys()
    assert not {"border", "grid_8", "size"} & network.keys()
    assert found["figures"]["baseline"]["phase"] == network["phase"]
    findings = {f["name"]: f for f in results["verdict"]["findings"]}
    page = (evaluated[0] / "artifacts.html").read_text()
    for name, figure in network.items():
        finding = findings[ARTIFACTS[name].label]
        assert finding["figure"] == figure
        assert finding["level"] in ("pass", "warning")
        assert ARTIFACTS[name].label in page
    # By hand: the worst of the two clips of twelve videos.
    gains = [
        (phase_gain(clip["artifacts"]), v, c)
        for v, video in enumerate(results["videos"])
        for c, clip in enumerate(video["clips"])
    ]
    _, v, c = max(gains)
    assert found["worst"]["phase"] == {"video": v, "clip": c}
    assert (evaluated[0] / "artifacts" / "phase_0.png").is_file()


def phase_gain(parts: dict[str, dict[str, float]]) -> float:
    """Of frames 1 to 4 of a clip of five: the best minus the worst, dB over 8x down and up."""
    rounding = 1 / 12 / 255**2
    gains = []
    for phase in range(4):
        ours, theirs = (
            parts[method][f"phase_{phase}_error"] + rounding
            for method in ("network", "down_and_up")
        )
        gains.append(10 * np.log10(theirs / ours))
    return float(max(gains) - min(gains))


def test_the_table_ends_with_the_verdict(
    weights: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = tmp_path / "limits.yaml"
    limits.write_text("psnr_failure: 99\npsnr_success: 100\n")
    more = ["--num-samples", "2", "--fail-on-verdict", "--thresholds", str(limits)]
    assert run(weights, annotations, tmp_path / "out", *more) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "scoring 2 videos of the whole list: 2 clips of 5 frames of each, the whole picture scaled "
        "down to 32x48"
    )
    assert lines[1].startswith("no row of the linear limit: there is no linear_limit.safetensors")
    assert [line[:5] for line in lines[2:4]] == ["[1/2]", "[2/2]"]
    assert "overall: FAILURE" in lines
    assert read_metrics(tmp_path / "out")["verdict"]["thresholds"]["psnr_failure"] == 99


@pytest.mark.parametrize("black", [0, 1])
def test_clips_that_are_not_numbers_fail_and_are_named(
    black: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every second video comes back as it was, and the others as NaN, the first or not."""
    weights = export_breaking(tmp_path / "w")
    listed = make_videos(tmp_path / "videos")
    names = [f"video_{k}.mp4" for k in range(12)]
    make_black([listed.parent / name for name in names[black::2]])
    more = ["--fail-on-verdict", "--baseline", str(export_small(tmp_path / "other"))]
    assert run(weights, listed, tmp_path / "out", *more) == 3

    results = read_metrics(tmp_path / "out")
    broken = [
        (video["video"], clip["first_frame"])
        for video in results["videos"]
        for clip in video["clips"]
        if video["video"] in names[1 - black :: 2]
    ]
    sound = [v for v in results["videos"] if v["video"] in names[black::2]]
    assert {c["scores"]["network"]["psnr"] for v in sound for c in v["clips"]} == {100.0}
    found = {f["name"]: f for f in results["verdict"]["findings"]}
    for name in ("MSE", "PSNR, dB", "SSIM", "PSNR against no network, dB"):
        assert (found[name]["figure"], found[name]["level"]) == (None, "failure")
    finding = found["clips not a number, network"]
    assert (finding["figure"], finding["level"]) == (12, "failure")
    for video, frame in broken[:3]:
        assert f"{video} from frame {frame};" in finding["threshold"]
    assert finding["threshold"].endswith("; and 9 more")
    psnr = results["methods"]["network"]["scores"]["psnr"]
    assert (psnr["mean"], psnr["low"], psnr["clips"]) == (None, None, 24)
    differences = {d["metric"]: d for d in results["differences"]["down_and_up"]}
    assert differences["psnr"]["outcome"] == "not compared"
    assert differences["psnr"]["note"] == "not a number in 12 of 24 clips"
    assert differences["ms_ssim"]["note"].startswith("no clip has it")

    printed = capsys.readouterr().out
    assert "overall: FAILURE" in printed
    table = [line for line in printed.splitlines() if line.startswith("network ")]
    assert "none" in table[0]
    page = (tmp_path / "out" / "summary_report.html").read_text()
    for told in (
        "clips not a number, network",
        "not compared: not a number in 12 of 24 clips",
        "not compared: no clip has it",
        f"{broken[0][0]} from frame",
    ):
        assert told in page
    shown = [line.split("</h3>")[0] for line in page.split('<section class="clip"')[1:]]
    assert all(any(video in head for video, _ in broken) for head in shown)


def test_a_report_that_fails_leaves_the_scores(
    weights: Path,
    annotations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The disk fills up while the report is written, over older results."""
    (tmp_path / "metrics.json").write_text("old")
    (tmp_path / "summary_report.html").write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.evaluation.output.write_report", full)
    code = run(weights, annotations, tmp_path, "--num-samples", "2", "--overwrite")
    assert code == 1
    told = capsys.readouterr().err
    assert f"all scores and the verdict are in {tmp_path / 'metrics.json'}" in told
    assert "No space left" in told
    assert read_metrics(tmp_path)["data"]["videos"] == 2
    # An older report would be taken for that of these scores.
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_one_clip_of_one_frame(weights: Path, annotations: Path, tmp_path: Path) -> None:
    more = ["--num-samples", "1", "--clips-per-video", "1", "--data.num-frames", "1"]
    assert run(weights, annotations, tmp_path, *more) == 0
    found = {d["metric"]: d for d in read_metrics(tmp_path)["differences"]["down_and_up"]}
    assert found["psnr"]["pairs"] == 1
    for name in ("temporal", "flicker", "ms_ssim"):
        assert (found[name]["mean"], found[name]["outcome"]) == (None, "not compared")
    page = (tmp_path / "summary_report.html").read_text()
    assert "not compared: no clip has it: clips of one frame have none" in page


def test_whole_frames_score_every_frame(weights: Path, annotations: Path, tmp_path: Path) -> None:
    assert run(weights, annotations, tmp_path, "--whole-frames", "--num-samples", "2") == 0
    results = read_metrics(tmp_path)
    video = results["videos"][0]
    (clip,) = video["clips"]
    assert (clip["frames"], clip["height"], clip["width"]) == (14, 48, 64)
    assert len(clip["per_frame"]["network"]["psnr"]) == 14
    model = build_model(replace(SMALL, pretrained=str(weights)))
    # Another converter than the pipeline's: a rounding apart.
    frames = np.stack(sequential_frames(annotations.parent / video["video"]))
    original = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        expected = metrics.psnr(original, model.reconstruct_video(original)).item()
    assert clip["scores"]["network"]["psnr"] == pytest.approx(expected, abs=0.1)


def test_of_a_damaged_video_the_stretches_that_decode_are_scored(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As what they are: the same stretches of the sound video, each by itself."""
    sound = make(Kind("sound.mp4", "mpeg4", size=(96, 128)), tmp_path)
    remux(sound, tmp_path / "damaged.mp4", change=spoil(20))
    listed = write_annotations(tmp_path, ["damaged.mp4", "sound.mp4"])
    assert run(weights, listed, tmp_path / "out", "--whole-frames", "--split", "all") == 0
    videos = {video["video"]: video for video in read_metrics(tmp_path / "out")["videos"]}
    assert videos["sound.mp4"]["lost"] == []
    video = videos["damaged.mp4"]
    (lost,) = video["lost"]
    first = int(lost.split()[1])
    assert lost.startswith(f"frames {first} to 23 are lost (damaged")
    told = f"video damaged.mp4: {lost}; what decodes is scored, in 2 stretches"
    assert told in capsys.readouterr().err

    begun, ended = video["clips"]
    assert (begun["first_frame"] + begun["frames"], ended["first_frame"]) == (first, 24)
    frames = np.stack(sequential_frames(sound))
    model = build_model(replace(SMALL, pretrained=str(weights)))
    for clip in (begun, ended):
        part = frames[clip["first_frame"] : clip["first_frame"] + clip["frames"]]
        original = torch.from_numpy(part).permute(0, 3, 1, 2)[None].float() / 255
        with torch.no_grad():
            expected = metrics.psnr(original, model.reconstruct_video(original)).item()
        assert clip["scores"]["network"]["psnr"] == pytest.approx(expected, abs=0.1)
        assert len(clip["per_frame"]["network"]["psnr"]) == clip["frames"]
    assert (tmp_path / "out" / "summary_report.html").is_file()


def test_whole_frames_can_be_bounded(weights: Path, annotations: Path, tmp_path: Path) -> None:
    more = ["--whole-frames", "--frames", "6", "--num-samples", "1"]
    assert run(weights, annotations, tmp_path, *more) == 0
    results = read_metrics(tmp_path)
    assert (results["data"]["mode"], results["data"]["frame_limit"]) == ("whole frames", 6)
    assert results["videos"][0]["clips"][0]["frames"] == 6


def test_native_windows_are_the_frames_own_pixels(
    weights: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default; scored as the same pixels cut from whole frames without the evaluation."""
    from data_pipeline.decoding.augment import ClipMaker
    from data_pipeline.plan import CENTRE

    size = ["--window-height", "24", "--window-width", "32", "--window-frames", "7"]

    more = ["--clips", "native", *size]
    assert run(weights, annotations, tmp_path, *more, "--num-samples", "4") == 0
    told = capsys.readouterr().out.splitlines()[0]
    assert told == (
        "scoring 4 videos of the whole list: 2 windows of 7 frames of 24x32 of each, in the "
        "videos' own pixels"
    )
    results = read_metrics(tmp_path)
    model = build_model(replace(SMALL, pretrained=str(weights)))
    places = set()
    for video in results["videos"]:
        with av.open(str(annotations.parent / video["video"])) as container:
            decoded = list(container.decode(video=0))
        frames = np.empty((len(decoded), 3, 48, 64), np.uint8)
        maker = ClipMaker(CENTRE, frames)
        for number, frame in enumerate(decoded):
            maker.put(number, frame)
        for clip in video["clips"]:
            assert (clip["frames"], clip["height"], clip["width"]) == (7, 24, 32)
            (left, top), first = clip["place"], clip["first_frame"]
            places.add((left, top))
            cut = frames[first : first + 7, :, top : top + 24, left : left + 32]
            original = torch.from_numpy(cut)[None].float() / 255
            with torch.no_grad():
                expected = metrics.psnr(original, model.reconstruct_video(original)).item()
            assert clip["scores"]["network"]["psnr"] == pytest.approx(expected, abs=1e-3)
    assert len(places) == 8
    assert results["methods"]["network"]["scores"]["psnr"]["clips"] == 8
    assert results["trained_on"] is None


def test_windows_are_cut_down_to_what_a_video_has(
    weights: Path, annotations: Path, tmp_path: Path
) -> None:
    more = ["--clips", "native", "--num-samples", "1", "--window-frames", "40"]
    assert run(weights, annotations, tmp_path, *more) == 0
    # Twice the same window is one.
    (clip,) = read_metrics(tmp_path)["videos"][0]["clips"]
    assert (clip["frames"], clip["height"], clip["width"]) == (14, 48, 64)


def test_a_run_has_its_linear_limit_and_its_scale(
    annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's folder by hand: its configuration, its limit and its weights."""
    weights = export_small(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(
        "data: {crops: 0.5-0.5, height: 16, width: 16, num_frames: 5}\n"
        "model: {encoder_width: 8, decoder_widths: [16, 8, 8, 8]}\n"
    )
    block = BlockShape(4, 8)
    basis = torch.linalg.qr(torch.randn(block.values, 16, generator=torch.Generator()))[0].T
    limit = LinearLimit(block, torch.full((block.values,), 0.5), basis.contiguous())
    limit.save(tmp_path / "run" / "linear_limit.safetensors")
    more = ["--clips", "native", "--num-samples", "3"]
    for kind in (more, [*more, "--whole-frames"]):
        out = tmp_path / f"out{len(kind)}"
        assert run(weights, annotations, out, *kind) == 0
        results = read_metrics(out)
        assert results["methods"]["linear"]["label"] == "linear, 16 coefficients"
        linear = results["methods"]["linear"]["scores"]["psnr"]["mean"]
        found = {f["name"]: f for f in results["verdict"]["findings"]}
        wanted = found["PSNR against no network, dB"]["threshold"]
        assert wanted.startswith(f"linear limit {linear:.1f}; failure below 8x down and up")
        # Half of the largest square crop, of 48 pixels, is shown in 16.
        trained = results["trained_on"]
        assert trained["scale"] == pytest.approx(16 / 24)
        psnr = results["methods"]["network"]["scores"]["psnr"]["mean"]
        assert trained["difference"] == pytest.approx(psnr - trained["psnr"])
        printed = capsys.readouterr().out
        assert "linear, 16 coefficients" in printed
        assert "trained on clips at 1/1.5 of the scale" in printed


def test_whole_frames_are_scored_of_videos_too_short_to_train_on(
    annotations: Path, tmp_path: Path
) -> None:
    weights = export_small(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(
        "data: {crops: 0.5-0.5, height: 16, width: 16, num_frames: 65}\n"
        "model: {encoder_width: 8, decoder_widths: [16, 8, 8, 8]}\n"
    )
    whole = ["--whole-frames", "--num-samples", "1"]
    assert run(weights, annotations, tmp_path / "out", *whole) == 0
    results = read_metrics(tmp_path / "out")
    assert len(results["videos"]) == 1
    assert results["trained_on"] is None


def refused(capsys: pytest.CaptureFixture[str], code: int, expected_code: int = 1) -> str:
    """The one line that was said."""
    assert code == expected_code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    return error[0]


def test_results_are_kept_unless_asked(
    weights: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text("precious")
    (tmp_path / "notes.txt").write_text("mine")
    line = refused(capsys, run(weights, annotations, tmp_path, "--num-samples", "1"))
    assert "holds results already (metrics.json)" in line
    assert (tmp_path / "metrics.json").read_text() == "precious"
    assert run(weights, annotations, tmp_path, "--num-samples", "1", "--overwrite") == 0
    assert read_metrics(tmp_path)["data"]["videos"] == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_older_results_outlive_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("precious")

    def fail() -> None:
        with staged(tmp_path) as folder:
            (folder / "metrics.json").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("metrics.json", "precious")]


def test_a_folder_that_cannot_be_written(
    weights: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    line = refused(capsys, run(weights, annotations, tmp_path / "file" / "out"))
    assert "cannot be written" in line


@pytest.mark.parametrize("content", [b"nonsense", None])
def test_a_checkpoint_that_is_none(
    content: bytes | None, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "w.pth"
    if content is not None:
        file.write_bytes(content)
    line = refused(capsys, run(file, annotations, tmp_path / "out"))
    assert str(file) in line
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_variant(
    weights: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(weights, annotations, tmp_path / "out", "--model.variant", "taew2_2")
    assert "the weights do not fit the model" in refused(capsys, code)
    other = export_small(tmp_path / "ltx", config=ModelConfig(variant="taehv1_5", encoder_width=8))
    assert run(other, annotations, tmp_path / "b", "--num-samples", "1") == 0


def test_a_missing_teacher(
    weights: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(weights, annotations, tmp_path / "out", "--teacher.path", str(tmp_path / "none"))
    assert "no such folder" in refused(capsys, code)


def test_videos_without_enough_frames_are_told(
    weights: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"video_{k}.mp4" for k in range(11)]
    for name in names:
        shutil.copy(annotations.parent / name, tmp_path)
    make_videos(tmp_path / "short", 1, frames=3)
    (tmp_path / "short" / "video_0.mp4").rename(tmp_path / "short.mp4")
    listed = write_annotations(tmp_path, [*names, "short.mp4"])
    assert run(weights, listed, tmp_path / "out") == 0
    (skipped,) = read_metrics(tmp_path / "out")["data"]["skipped"]
    assert skipped["video"] == "short.mp4"
    assert "too short: has 3 frames" in skipped["reason"]
    capsys.readouterr()
    code = run(weights, listed, tmp_path / "none", "--data.num-frames", "17")
    assert "too short" in refused(capsys, code)
    assert not list((tmp_path / "none").iterdir())


def test_a_video_outside_of_the_root_is_skipped_and_told(
    weights: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even one of two, since it says nothing of the state of the others; not all of them."""
    shutil.copy(annotations.parent / "video_0.mp4", tmp_path)
    listed = write_annotations(tmp_path, ["video_0.mp4", "../elsewhere.mp4"])
    assert run(weights, listed, tmp_path / "out") == 0
    assert "1 videos of the whole list, 2 clips, 1 skipped" in capsys.readouterr().out
    (skipped,) = read_metrics(tmp_path / "out")["data"]["skipped"]
    assert skipped["video"] == "../elsewhere.mp4"
    assert "leaves the data root" in skipped["reason"]
    none = write_annotations(tmp_path, ["../a.mp4", "/b.mp4"])
    line = refused(capsys, run(weights, none, tmp_path / "none"))
    assert "none of the 2 held-out videos can be used" in line


def test_weights_on_s3_are_judged_as_here(
    weights: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so are those that they are compared with."""
    more = ["--num-samples", "2"]
    assert run(weights, annotations, tmp_path / "a", *more, "--compare", str(weights)) == 0
    with s3_server() as server:
        server.put("bucket/run/final_model.pth", weights.read_bytes())
        folder = f"s3://KEYID:SECRET@bucket/run{server.options}"
        file = f"s3://KEYID:SECRET@bucket/run/final_model.pth{server.options}"
        assert (
            evaluate.main(words(folder, annotations, tmp_path / "b", *more, "--compare", file)) == 0
        )
        capsys.readouterr()
        missing = f"s3://KEYID:SECRET@bucket/none{server.options}"
        line = refused(capsys, evaluate.main(words(missing, annotations, tmp_path / "c")))
        assert line.startswith(f"error: s3://bucket/none{server.options}")
        assert "there is no final_model.safetensors or final_model.pth" in line
        line = refused(capsys, evaluate.main(["--checkpoint", file]), 2)
        assert "--output-dir is missing" in line
    here, there = read_metrics(tmp_path / "a"), read_metrics(tmp_path / "b")
    assert there["videos"] == here["videos"]
    assert there["checkpoint"]["sha256"] == here["checkpoint"]["sha256"]
    # What is written down is where they are, without the credentials.
    assert there["checkpoint"]["path"] == folder.replace("KEYID:SECRET@", "")
    assert there["methods"]["compare_0"]["file"] == file.replace("KEYID:SECRET@", "")
    for path in (tmp_path / "b").rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes(), path


def test_over_ray_the_figures_are_the_same(
    weights: Path, annotations: Path, tmp_path: Path
) -> None:
    """Two workers of a Ray of this machine, in processes of their own; only times differ."""
    bad = tmp_path / "videos"
    shutil.copytree(annotations.parent, bad)
    (bad / "video_3.mp4").write_bytes(b"no video")
    more = ["--compare", str(weights), "--max-bad-fraction", "0.5"]
    assert run(weights, bad / annotations.name, tmp_path / "alone", *more) == 0
    command = words(str(weights), bad / annotations.name, tmp_path / "spread", *more)
    process = subprocess.run(
        [sys.executable, "jobs/evaluate.py", *command, "--ray.use", "yes", "--ray.workers", "2"],
        cwd=REPOSITORY,
        env=environment(tmp_path / "home", OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert_quiet(process.stdout + process.stderr)
    alone, spread = read_metrics(tmp_path / "alone"), read_metrics(tmp_path / "spread")
    for results in (alone, spread):
        for name in ("created", "seconds", "cost"):
            del results[name]
    assert len(alone["data"]["skipped"]) == 1
    assert spread == alone


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.height", "36"], "data.height is 36"),
        (["--clips", "native", "--window-height", "8"], "window_height is 8"),
        (["--frames", "3"], "frames is 3, which bounds a video of --whole-frames"),
        (["--thresholds", "nowhere.yaml"], "--thresholds nowhere.yaml cannot be read"),
        (["--data.annotations", ""], "--data.annotations is missing"),
    ],
)
def test_a_bad_option_exits_with_2(
    more: list[str],
    message: str,
    weights: Path,
    annotations: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refused(capsys, run(weights, annotations, tmp_path / "out", *more), 2)


def test_an_unknown_limit_names_the_nearest(
    weights: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.yaml").write_text("psnr_sucess: 3\n")
    code = run(weights, annotations, tmp_path / "out", "--thresholds", str(tmp_path / "t.yaml"))
    assert "did you mean psnr_success?" in refused(capsys, code, 2)


def test_without_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--checkpoint is missing" in refused(capsys, evaluate.main([]), 2)


def test_the_teacher_stands_beside_the_network(annotations: Path, tmp_path: Path) -> None:
    from tests.helpers.small_teacher import save_small_teacher

    teacher = save_small_teacher(tmp_path / "teacher")
    weights = export_small(tmp_path / "w")
    more = ["--teacher.path", str(teacher), "--num-samples", "2"]
    assert run(weights, annotations, tmp_path / "out", *more) == 0
    results = read_metrics(tmp_path / "out")
    assert "teacher" in results["differences"]
    names = [f["name"] for f in results["verdict"]["findings"]]
    assert "PSNR's gap to the teacher, %" in names
    assert json.dumps(results["cost"]["methods"]["teacher"]["encode_seconds"])
