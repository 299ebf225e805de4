"""`jobs/encode.py`: videos to latents and back, what is broken, what is killed, what is refused."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data_pipeline.config import DataConfig
from data_pipeline.decoding.sandbox import WindowReader
from data_pipeline.decoding.whole_video import WholeRequest, plan_whole, whole_frames
from jobs import encode, evaluate
from jobs.cli.config import Config
from jobs.latents import encoding, shards
from jobs.latents.config import EncodeConfig
from jobs.latents.shards import DTYPES, open_shard, read_latents
from taehv.model import TAEHV, ModelConfig, build_model
from taehv.run.run_folder import RunFolder
from taehv.training.state import to_yaml
from tests.helpers.data_videos import (
    moving_frames,
    sequential_frames,
    write_annotations,
    write_video,
)
from tests.helpers.evaluate_run import SMALL, export_pytorch_start, export_small
from tests.helpers.hold import READS, Hold
from tests.helpers.jobs_run import REPOSITORY, assert_quiet, environment, finish, wait_for
from tests.helpers.s3_server import s3_server
from tests.helpers.video_kinds import remux, spoil_headers, write_two_streams

LENGTHS = (1, 13, 14, 21, 40)
"""Frames of the videos: an odd and an even number of latents, whole and begun."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_pytorch_start(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound videos of 50x68 pixels, which is no multiple of 8."""
    folder = tmp_path_factory.mktemp("videos")
    names = [f"video_{frames}.mp4" for frames in LENGTHS]
    for seed, (name, frames) in enumerate(zip(names, LENGTHS, strict=True)):
        write_video(folder / name, moving_frames(frames, 50, 68, seed))
    return write_annotations(folder, names)


def options(weights: Path, annotations: Path | str, output: Path | str) -> list[str]:
    return [
        *("--checkpoint", str(weights), "--data.annotations", str(annotations)),
        *("--output-dir", str(output), "--videos-per-shard", "2", "--ray.use", "no"),
    ]


def run(weights: Path, annotations: Path | str, output: Path | str, *more: str) -> int:
    return encode.main([*options(weights, annotations, output), *more])


def decode(weights: Path, latents: Path | str, output: Path | str, *more: str) -> int:
    words = ["--checkpoint", str(weights), "--decode", str(latents), "--output-dir", str(output)]
    return encode.main([*words, "--ray.use", "no", *more])


@pytest.fixture(scope="module")
def encoded(weights: Path, annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("latents")
    assert run(weights, annotations, output, "--dtype", "float32") == 0
    return output


def index_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "index.parquet").to_pylist()
    return rows


def latents_of(folder: Path) -> dict[str, torch.Tensor]:
    """[t, C, h, w] of every video."""
    found = {}
    for name in sorted({row["shard"] for row in index_of(folder)}):
        with open_shard(RunFolder(str(folder)), name) as (file, summary):
            for video in summary.videos:
                found[video.video] = torch.stack([*read_latents(file, video)])
    return found


def frames_of(video: Path) -> torch.Tensor:
    """[1, T, 3, 48, 64] in [0, 1]: as the job reads them, seen through no process of its own."""
    request = WholeRequest(str(video), 8)
    pieces = np.concatenate([*whole_frames(request, plan_whole(request))])
    return torch.from_numpy(pieces)[None].float() / 255


def network(weights: Path) -> TAEHV:
    return build_model(replace(SMALL, pretrained=str(weights))).eval()


def test_the_stream_that_was_trained_on_is_encoded(weights: Path, tmp_path: Path) -> None:
    """The run's own, unless another one is asked for, which makes other latents."""
    write_two_streams(tmp_path / "a.mp4")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    shutil.copy(weights, run_dir / "final_model.pth")
    data = DataConfig(annotations=str(tmp_path / "a.txt"), stream=0)
    (tmp_path / "a.txt").write_text("a.mp4")
    (run_dir / "config.yaml").write_text(to_yaml(Config(model=SMALL, data=data)))

    def encoded_width(output: str, *more: str) -> int:
        words = ["--checkpoint", str(run_dir), "--output-dir", str(tmp_path / output)]
        assert encode.main([*words, "--ray.use", "no", *more]) == 0
        return int(index_of(tmp_path / output)[0]["width"])

    assert encoded_width("own") == 160
    assert encoded_width("best", "--data.stream", "-1") == 640
    words = ["--checkpoint", str(run_dir), "--output-dir", str(tmp_path / "best")]
    assert encode.main([*words, "--ray.use", "no"]) == 1


def test_frames_are_cut_about_the_middle(annotations: Path) -> None:
    """To an even pixel, since chroma has half the resolution; nothing is scaled."""
    video = annotations.parent / "video_14.mp4"
    shown, found = np.stack(sequential_frames(video)).astype(float), frames_of(video)[0] * 255
    errors = {
        (y, x): np.abs(shown[:, y : y + 48, x : x + 64] - found.permute(0, 2, 3, 1).numpy()).mean()
        for y in range(3)
        for x in range(5)
    }
    # Another converter's pixels: near, and not the same.
    assert min(errors, key=lambda offset: errors[offset]) == (0, 2)
    assert errors[0, 2] < 3


def test_latents_are_the_networks(encoded: Path, weights: Path, annotations: Path) -> None:
    """Bit for bit those of a run frame by frame; those of a run at once to rounding."""
    model, found = network(weights), latents_of(encoded)
    assert len(found) == len(LENGTHS)
    for row, frames in zip(index_of(encoded), LENGTHS, strict=True):
        assert (row["frames"], row["height"], row["width"], row["fps"]) == (frames, 48, 64, 24.0)
        video = frames_of(annotations.parent / row["video"])
        assert video.shape[1] == frames
        missing = model.alignment.padded_length(frames) - frames
        whole = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        with torch.no_grad():
            stepwise = model.encode_video(whole, parallel=False)[0]
            at_once = model.encode_video(whole)[0]
        assert row["latents"] == len(stepwise)
        assert torch.equal(found[row["video"]], stepwise)
        torch.testing.assert_close(found[row["video"]], at_once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["taecvx", "taehv"])
def test_what_comes_back_is_the_reconstruction_frame_by_frame(
    variant: str, weights: Path, annotations: Path, tmp_path: Path
) -> None:
    """Frame k of the result is frame k of the video reconstructed, and no neighbour of it."""
    more = ["--model.variant", variant]
    assert run(weights, annotations, tmp_path / "l", "--dtype", "float32", *more) == 0
    assert decode(weights, tmp_path / "l", tmp_path / "v", "--decode-to", "png", *more) == 0
    model = build_model(replace(SMALL, variant=variant, pretrained=str(weights)))
    for frames in LENGTHS:
        video = frames_of(annotations.parent / f"video_{frames}.mp4")
        with torch.no_grad():
            expected = (model.reconstruct_video(video)[0] * 255).permute(0, 2, 3, 1).numpy()
        folder = tmp_path / "v" / f"video_{frames}.mp4.frames"
        shown = np.stack([np.array(Image.open(p), float) for p in sorted(folder.iterdir())])
        assert shown.shape == expected.shape
        assert np.abs(shown - expected).max() < 0.51
        if frames > 1:
            beside = np.abs(shown[1:] - expected[:-1]).mean(axis=(1, 2, 3))
            assert (beside > 2 * np.abs(shown - expected).mean(axis=(1, 2, 3))[1:]).all()


def test_videos_come_back_as_videos(
    encoded: Path, weights: Path, annotations: Path, tmp_path: Path
) -> None:
    assert decode(weights, encoded, tmp_path) == 0
    for frames in LENGTHS:
        with av.open(str(tmp_path / f"video_{frames}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.height, stream.codec_context.width) == (48, 64)
            assert stream.average_rate == 24
            shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(shown) == frames
        with torch.no_grad():
            video = frames_of(annotations.parent / f"video_{frames}.mp4")
            expected = network(weights).reconstruct_video(video)[0].permute(0, 2, 3, 1).numpy()
        assert np.abs(np.stack(shown) - expected * 255).mean() < 6
    # What is there is left: a job that was stopped goes on.
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "video_13.mp4").unlink()
    assert decode(weights, encoded, tmp_path) == 0
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == ["video_13.mp4"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_latents_are_kept_in_what_was_asked_for(
    dtype: str, encoded: Path, weights: Path, annotations: Path, tmp_path: Path
) -> None:
    assert run(weights, annotations, tmp_path, "--dtype", dtype) == 0
    exact = latents_of(encoded)
    for video, latents in latents_of(tmp_path).items():
        assert latents.dtype == DTYPES[dtype]
        assert torch.equal(latents, exact[video].to(DTYPES[dtype]))


def test_a_shard_is_a_64th_of_the_list() -> None:
    sizes = [EncodeConfig().shard_size(videos) for videos in (1, 24, 500, 8_000_000)]
    assert sizes == [1, 1, 7, 64]
    assert EncodeConfig(videos_per_shard=5).shard_size(1000) == 5


def test_frames_can_be_scaled(weights: Path, annotations: Path, tmp_path: Path) -> None:
    more = ["--data.height", "16", "--data.width", "24"]
    assert run(weights, annotations, tmp_path, *more) == 0
    assert {tuple(v.shape[1:]) for v in latents_of(tmp_path).values()} == {(16, 2, 3)}


def test_a_long_video_is_kept_in_stretches(
    encoded: Path,
    weights: Path,
    annotations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of three latents here; each row tells which frames it is of."""
    monkeypatch.setattr(encoding, "ROW_BYTES", 3 * 16 * 6 * 8 * 4)
    assert run(weights, annotations, tmp_path, "--dtype", "float32") == 0
    rows = pq.read_table(tmp_path / "shards" / "latents-00000002.parquet").to_pylist()
    assert [row["shape"] for row in rows] == [[3, 16, 6, 8]] * 3 + [[2, 16, 6, 8]]
    told = [(row["first_latent"], row["first_frame"], row["frames"]) for row in rows]
    assert told == [(0, 0, 12), (3, 12, 12), (6, 24, 12), (9, 36, 4)]
    for video, latents in latents_of(tmp_path).items():
        assert torch.equal(latents, latents_of(encoded)[video])


BREAKS_HALF_WAY = f"""
from data_pipeline.decoding import sandbox_process, whole_video
from data_pipeline.errors import UnusableVideoError
whole_video.PIECE_BYTES = {7 * 3 * 48 * 64}

def break_down(request, video):
    for number, item in enumerate(kept_frames(request, video)):
        if number == 4 and request.location.endswith("half.mp4"):
            raise UnusableVideoError("changes its frame size")
        yield item

kept_frames, sandbox_process.kept_frames = sandbox_process.kept_frames, break_down
sandbox_process.main()
"""


@pytest.fixture
def damaged(annotations: Path, tmp_path: Path) -> Path:
    """Among sound videos one that is none, one that breaks its reader half-way (see
    `BREAKS_HALF_WAY`), and one out of bounds."""
    folder = tmp_path / "damaged"
    shutil.copytree(annotations.parent, folder)
    (folder / "none.mp4").write_bytes(b"no video")
    whole = write_video(tmp_path / "whole.mp4", moving_frames(60, 50, 68), gop=6, b_frames=0)
    shutil.copy(whole, folder / "half.mp4")
    names = ["none.mp4", "half.mp4", "video_13.mp4", "../whole.mp4", "absent.mp4", "video_40.mp4"]
    return write_annotations(folder, names)


def test_broken_videos_are_listed(
    damaged: Path,
    encoded: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is left of one that turned out to be broken when half of it had been written."""
    monkeypatch.setattr(encoding, "ROW_BYTES", 1)
    child = (sys.executable, "-c", BREAKS_HALF_WAY)
    monkeypatch.setattr(encoding, "WindowReader", lambda: WindowReader(child))
    kept: list[int] = []
    give_up = shards.ShardWriter.give_up

    def watched(writer: shards.ShardWriter, rows: int) -> None:
        kept.append(rows)
        give_up(writer, rows)

    monkeypatch.setattr(shards.ShardWriter, "give_up", watched)
    output = tmp_path / "l"
    more = ["--data.max-bad-fraction", "0.7", "--dtype", "float32", "--videos-per-shard", "4"]
    assert run(weights, damaged, output, *more) == 0
    assert max(kept) > 1
    listed = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    reasons = {entry["video"]: entry["reason"] for entry in listed}
    assert [*reasons] == ["none.mp4", "half.mp4", "../whole.mp4", "absent.mp4"]
    assert "cannot be opened" in reasons["none.mp4"]
    assert "leaves the data root" in reasons["../whole.mp4"]
    assert reasons["absent.mp4"] == "missing"
    found, exact = latents_of(output), latents_of(encoded)
    assert [*found] == ["video_13.mp4", "video_40.mp4"]
    assert all(torch.equal(found[video], exact[video]) for video in found)
    table = pq.read_table(output / "shards")
    assert set(table["video"].to_pylist()) == set(found)
    assert "4 videos skipped" in capsys.readouterr().out
    # Mended, they are taken in.
    shutil.copy(damaged.parent / "video_1.mp4", damaged.parent / "none.mp4")
    assert run(weights, damaged, output, *more, "--retry-unusable") == 0
    assert {*latents_of(output)} == {"none.mp4", *found}


def test_of_a_damaged_video_the_stretches_that_decode_are_kept(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is encoded, and comes back, as a video of these frames alone would."""
    sound = write_video(tmp_path / "sound.mp4", moving_frames(48, 48, 64), b_frames=0)
    damaged = remux(sound, tmp_path / "damaged.mp4", change=spoil_headers(17, 36))
    listed = write_annotations(tmp_path, ["sound.mp4", "damaged.mp4", "sound.mp4"])
    output, more = tmp_path / "l", ["--dtype", "float32"]
    assert run(weights, listed, output, *more) == 0
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "video damaged.mp4: frames 17 to 23 are lost (damaged" in text
        assert "video damaged.mp4: frames 36 to 47 are lost (damaged" in text
    assert f"3 videos, {48 + 17 + 12 + 48} frames in 2 shards; " in captured.out
    listed_lost = [json.loads(line) for line in (output / "lost.jsonl").read_text().splitlines()]
    assert [(one["video"], one["first_frame"], one["end_frame"]) for one in listed_lost] == [
        ("damaged.mp4", 17, 24),
        ("damaged.mp4", 36, 48),
    ]
    assert not (output / "quarantine.jsonl").read_text()
    rows = [row for row in index_of(output) if row["video"] == damaged.name]
    assert [row["frames"] for row in rows] == [17, 12]

    model, whole = network(weights), frames_of(sound)
    with open_shard(RunFolder(str(output)), shards.shard_name(0)) as (file, summary):
        kept = [video for video in summary.videos if video.video == damaged.name]
        for video, (first, end) in zip(kept, [(0, 17), (24, 36)], strict=True):
            assert video.first_frame == first
            missing = model.alignment.padded_length(end - first) - (end - first)
            frames = torch.cat([whole[:, first:end], *[whole[:, end - 1 : end]] * missing], dim=1)
            with torch.no_grad():
                expected = model.encode_video(frames, parallel=False)[0]
            assert torch.equal(torch.stack([*read_latents(file, video)]), expected)
    shown = pq.read_table(output / "shards").to_pylist()
    places = [(row["first_frame"], row["frames"]) for row in shown if row["video"] == damaged.name]
    assert places == [(0, 17), (24, 12)]

    assert decode(weights, output, tmp_path / "v", "--decode-to", "png") == 0
    assert f"3 videos, {48 + 17 + 12 + 48} frames; " in capsys.readouterr().out
    for name, first, end in (("damaged.mp4", 0, 17), ("damaged.mp4#24", 24, 36)):
        folder = tmp_path / "v" / f"{name}.frames"
        assert sorted(p.name for p in folder.iterdir()) == [
            f"{number:06d}.png" for number in range(first, end)
        ]
        with torch.no_grad():
            expected = model.reconstruct_video(whole[:, first:end])[0].permute(0, 2, 3, 1) * 255
        pictures = np.stack([np.array(Image.open(p), float) for p in sorted(folder.iterdir())])
        assert np.abs(pictures - expected.numpy()).max() < 0.51
    # Mended, it is taken in whole.
    shutil.copy(sound, damaged)
    assert run(weights, listed, output, *more, "--retry-unusable") == 0
    assert not (output / "lost.jsonl").exists()
    assert [row["frames"] for row in index_of(output)] == [48] * 3


def test_too_many_broken_videos_stop_the_job(
    damaged: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    child = (sys.executable, "-c", BREAKS_HALF_WAY)
    monkeypatch.setattr(encoding, "WindowReader", lambda: WindowReader(child))
    line = refused(capsys, run(weights, damaged, tmp_path / "l"))
    assert "2 of 6 videos cannot be used, more than data.max_bad_fraction (0.05)" in line
    # What was finished stays, and counts.
    assert "of 3 shards" not in line
    assert run(weights, damaged, tmp_path / "l", "--data.max-bad-fraction", "0.7") == 0


def start(home: Path, *arguments: str, hold: Hold | None = None) -> "subprocess.Popen[str]":
    variables = hold.variables if hold else {}
    return subprocess.Popen(
        [sys.executable, "jobs/encode.py", *arguments],
        cwd=REPOSITORY,
        env=environment(home, OMP_NUM_THREADS="1", **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    found = (folder / "shards").glob("*.parquet")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def contents(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_job_that_was_ended_goes_on(
    number: signal.Signals, code: int, weights: Path, annotations: Path, tmp_path: Path
) -> None:
    """Finished shards are left as they are, and all comes out as if nothing had happened."""
    names = ["video_40.mp4"] * 28
    listed = write_annotations(tmp_path, names)
    for name in {*names}:
        shutil.copy(annotations.parent / name, tmp_path)
    ended, whole = tmp_path / "ended", tmp_path / "whole"
    # Of two videos a shard; the third begins with the fifth.
    hold = Hold(tmp_path / "hold", **{READS: 4})
    process = start(tmp_path / "home", *options(weights, listed, ended), hold=hold)
    wait_for(lambda: hold.waits(READS), "the third shard", process)
    process.send_signal(number)
    found, output = finish(process)
    assert found == code, output
    before = stamps(ended)
    assert len(before) == 2
    assert not (ended / "index.parquet").exists()
    if code > 0:
        assert "the same command goes on" in output
        assert not [*(ended / "shards").glob(".*")]
    assert run(weights, listed, ended) == 0
    after = stamps(ended)
    assert {name: after[name] for name in before} == before
    assert len(after) == 14
    assert run(weights, listed, whole) == 0
    assert contents(ended) == contents(whole)


def test_through_ray_the_shards_are_the_same(
    weights: Path, annotations: Path, tmp_path: Path
) -> None:
    """Two workers of a Ray of this machine, which are stopped on the way, and go on."""
    shutil.copy(annotations.parent / "video_40.mp4", tmp_path)
    listed = write_annotations(tmp_path, ["video_40.mp4"] * 28)
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    assert run(weights, listed, alone) == 0
    words = [*options(weights, listed, spread), "--ray.use", "yes", "--ray.workers", "2"]
    hold = Hold(tmp_path / "hold", **{READS: 5})
    process = start(tmp_path / "home", *words, hold=hold)
    wait_for(lambda: len(stamps(spread)) >= 1 if spread.exists() else False, "a shard", process)
    process.terminate()
    code, output = finish(process)
    assert code == 143, output
    assert "the same command goes on" in output
    before = stamps(spread)
    assert len(before) < 14
    code, output = finish(start(tmp_path / "home", *words))
    assert code == 0, output
    assert_quiet(output)
    after = stamps(spread)
    assert {name: after[name] for name in before} == before
    assert contents(spread) == contents(alone)


def test_data_and_latents_on_s3(
    encoded: Path,
    weights: Path,
    annotations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with s3_server() as server:
        for path in annotations.parent.iterdir():
            if path.suffix in (".mp4", ".json"):
                server.put(f"bucket/data/{path.name}", path.read_bytes())
        at = f"s3://bucket/{{}}{server.options}"
        listed, output = at.format("data/annotations.json"), at.format("latents")
        home = ["--data.root", at.format("data"), "--dtype", "float32"]
        assert run(weights, listed, output, *home) == 0
        assert decode(weights, output, tmp_path / "v") == 0
        folder = RunFolder(output)
        for number in range(3):
            name = shards.shard_name(number)
            ours, theirs = pq.read_table(encoded / name), pq.read_table(folder.retrieve(name))
            assert ours.equals(theirs)
        assert run(weights, listed, output, *home) == 0
    assert len([*(tmp_path / "v").glob("*.mp4")]) == len(LENGTHS)


def refused(capsys: pytest.CaptureFixture[str], code: int, expected_code: int = 1) -> str:
    """The one line that was said."""
    assert code == expected_code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    return error[0]


def other_dtype(encoded: Path, tmp_path: Path) -> list[str]:
    shutil.copytree(encoded, tmp_path / "out")
    return []


def other_content(encoded: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    return []


def a_file(encoded: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "out").write_text("")
    return []


def a_damaged_shard(encoded: Path, tmp_path: Path) -> list[str]:
    shutil.copytree(encoded, tmp_path / "out")
    shard = tmp_path / "out" / "shards" / "latents-00000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    return ["--dtype", "float32"]


def just(*words: str) -> Callable[[Path, Path], list[str]]:
    return lambda encoded, tmp_path: [*words]


@pytest.mark.parametrize(
    ("prepare", "message", "code"),
    [
        (other_dtype, "made otherwise (dtype differ", 1),
        (other_content, "holds something else already (thesis.txt)", 1),
        (a_file, "cannot be written", 1),
        (a_damaged_shard, "latents-00000001.parquet cannot be read", 1),
        (just("--data.root", "/nowhere"), "the data folder /nowhere does not exist", 1),
        (just("--data.annotations", "/nowhere.json"), "/nowhere.json does not exist", 1),
        (just("--decode", "/nowhere"), "it holds no latents", 1),
        (
            lambda encoded, tmp_path: ["--decode", str(encoded), "--model.variant", "taehv"],
            "trims_even is False (--model.variant taecvx), and True with taehv",
            1,
        ),
        (just("--model.variant", "taew2_2"), "the weights do not fit the model", 1),
        (just("--data.height", "20", "--data.width", "16"), "data.height is 20", 2),
        (just("--output-dir", ""), "--output-dir is missing", 2),
        (just("--data.annotations", ""), "--data.annotations is missing", 2),
    ],
)
def test_bad_input_is_one_line(
    prepare: Callable[[Path, Path], list[str]],
    message: str,
    code: int,
    encoded: Path,
    weights: Path,
    annotations: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = prepare(encoded, tmp_path)
    assert message in refused(capsys, run(weights, annotations, tmp_path / "out", *more), code)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.height", "16"], "give both, or neither"),
        (["--videos-per-shard", "-1"], "it cannot be negative"),
        (["--data.hight", "16"], "--data.height"),
    ],
)
def test_a_bad_option_is_told(
    more: list[str],
    message: str,
    weights: Path,
    annotations: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(weights, annotations, tmp_path / "out", *more)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_checkpoint(
    annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, run(tmp_path / "no.pth", annotations, tmp_path / "out"))
    assert "no.pth: there is no such weights file" in line
    assert not (tmp_path / "out").exists()
    assert "--checkpoint is missing" in refused(capsys, encode.main([]), 2)


def test_a_submitted_job_writes_to_a_place_that_lasts(
    weights: Path,
    annotations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its working directory is Ray's, which is told by its name."""
    copy = tmp_path / "runtime_resources" / "working_dir_files"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert "give an absolute path" in refused(capsys, run(weights, annotations, "latents"), 2)
    command = ["--checkpoint", str(weights), "--output-dir", "out"]
    assert "give an absolute path" in refused(capsys, evaluate.main(command), 2)


def test_latents_that_their_type_cannot_hold(
    weights: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(weights, weights_only=True)
    state["encoder.17.weight"] *= 1e9
    torch.save(state, tmp_path / "w.pth")
    line = refused(capsys, run(tmp_path / "w.pth", annotations, tmp_path / "out"))
    assert "too large for torch.float16; use --dtype bfloat16 or float32" in line
    assert not [*(tmp_path / "out" / "shards").iterdir()]
    more = ["--dtype", "bfloat16"]
    assert run(tmp_path / "w.pth", annotations, tmp_path / "other", *more) == 0


def test_the_network_is_told_from_the_file(annotations: Path, tmp_path: Path) -> None:
    config = ModelConfig(variant="taehv1_5", encoder_width=8, decoder_widths=(16, 8, 8, 8))
    other = export_small(tmp_path / "w", config=config)
    assert run(other, annotations, tmp_path / "out") == 0
    settings = json.loads((tmp_path / "out" / "latents.json").read_text())
    assert (settings["model"]["variant"], settings["model"]["encoder_width"]) == ("taehv1_5", 8)
    # Of 50x68 pixels its patches leave 48x64.
    assert {tuple(v.shape[1:]) for v in latents_of(tmp_path / "out").values()} == {(32, 3, 4)}
