"""The job as a user starts it: real video, Ray Data, Ray Train, DeepSpeed, MLflow, files."""

import json
import math
import os
import re
import shlex
import signal
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import torch
import yaml
from pyarrow import fs

from jobs.cli.config import read_yaml
from taehv.evaluation.artifact_verdict import judge_artifacts
from taehv.evaluation.verdict import Thresholds
from taehv.model import TAEHV
from taehv.run import checkpoint, journal
from tests.helpers.data_videos import moving_frames, write_video
from tests.helpers.jobs_run import REPOSITORY, TINY, assert_quiet, finish, start, wait_for
from tests.helpers.s3_server import s3_server
from tests.helpers.small_run import latest

# Jobs through Ray: minutes where the machine has other things to do.
pytestmark = pytest.mark.timeout(900)

METRICS = {
    "train/loss",
    "train/reconstruction_loss",
    "train/encoder_loss",
    "train/seraena_loss",
    "train/discriminator_loss",
    "train/learning_rate",
    "train/gradient_norm",
    "train/gpu_memory_gb",
    "train/clips_per_second",
    "train/data_wait_fraction",
}
SOME_BAD = "--data.max-bad-fraction 0.3"
SCORES = (
    *("mse", "psnr", "psnr_mean", "ssim", "detail", "flat_clips", "temporal", "sharpness"),
    *("encode_seconds", "decode_seconds"),
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniDataset of six videos, one of them missing and one no video."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(6):
        write_video(folder / f"{number}.mp4", moving_frames(40, seed=number))
    names = [f"{number}.mp4" for number in range(6)] + ["missing.mp4", "broken.mp4"]
    (folder / "broken.mp4").write_bytes(b"not a video")
    entries = [{"path": name} for name in names]
    (folder / "annotations.json").write_text(json.dumps({"total": len(names), "list": entries}))
    return folder / "annotations.json"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_two_workers_from_video_to_weights(videos: Path, tmp_path: Path, home: Path) -> None:
    from mlflow.tracking import MlflowClient

    run_dir = tmp_path / "runs" / "a"
    line = f"{SOME_BAD} --data.annotations {videos} --train.run-dir {run_dir}".split()
    line += ["--train.max-steps", "6"]
    stages = tmp_path / "stages.yaml"
    stages.write_text("train: {stages: [{share: 2}, {height: 48, width: 64, num_frames: 13}]}")
    more = ["--cluster.workers", "2", "--train.validation-clips", "4", "--config", str(stages)]
    code, output = finish(start(home, *TINY, *line, *more))
    assert code == 0, output
    assert_quiet(output)

    rows = journal.read(run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["train/stage"] for row in rows[1:]] == [1, 1, 1, 1, 2, 2]
    assert "stage 2 of 2, to step 6: height 48, width 64, num_frames 13" in output
    for row in rows[1:]:
        assert row.keys() >= METRICS
        assert all(math.isfinite(value) for value in row.values())
    for row in (rows[0], rows[-1]):
        kinds = ("val", "val_ema", "val_shrunk")
        assert {f"{kind}/{score}" for kind in kinds for score in SCORES} <= row.keys()
        assert {"artifacts/flat_grey", "artifacts/flat_colour"} <= row.keys()
    figures = {k.partition("/")[2]: v for k, v in rows[-1].items() if k.startswith("artifacts/")}
    for finding in judge_artifacts(figures, Thresholds()):
        assert (f"{finding.name} {finding.figure:.2g}, " in output) == (finding.level != "pass")

    client = MlflowClient(f"sqlite:///{run_dir.parent}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("taehv").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.max_steps"] == "6"
    assert run.data.params["cluster.workers"] == "2"
    assert "'num_frames': 13" in run.data.params["train.stages"]
    for name in rows[-1].keys() - {"step"}:
        recorded = {row["step"]: row[name] for row in rows if name in row}
        tracked = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
        assert tracked == pytest.approx(recorded)
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"samples", "config.yaml"}
    samples = {Path(a.path).name for a in client.list_artifacts(run.info.run_id, "samples")}
    assert {"step_00000006.png", "step_00000006.mp4"} <= samples

    quarantine = [json.loads(s) for s in (run_dir / "quarantine.jsonl").read_text().splitlines()]
    assert {entry["video"] for entry in quarantine} <= {"missing.mp4", "broken.mp4"}
    assert len(quarantine) == len({entry["video"] for entry in quarantine}) > 0
    assert "is skipped" in output

    config = read_yaml(run_dir / "config.yaml")
    weights = torch.load(run_dir / "final_model.pth", weights_only=True)
    TAEHV(config.model).load_state_dict(weights, strict=True)
    assert latest(run_dir) == checkpoint.step_folder(run_dir, 6)
    for told in (
        "8x down and up",
        "linear, ",
        "scaled down",
        "overall:",
        str(run_dir.name),
        "mlflow ui",
    ):
        assert told in output

    code, output = finish(start(home, *TINY, *line))
    assert code == 1
    assert "holds a run already" in output


@pytest.mark.slow
def test_too_many_bad_videos_stop_the_run(videos: Path, tmp_path: Path, home: Path) -> None:
    """Two of eight; the run ends at the next row, with a checkpoint and the list."""
    run_dir = tmp_path / "runs" / "bad"
    line = f"--data.annotations {videos} --train.run-dir {run_dir} --train.max-steps 9999"
    code, output = finish(start(home, *TINY, *line.split()))
    assert code == 1, output
    assert "more than data.max_bad_fraction (0.05) of the 8 videos" in output
    listed = (run_dir / "quarantine.jsonl").read_text()
    assert "missing.mp4" in listed or "broken.mp4" in listed
    assert latest(run_dir) is not None


def test_ctrl_c_saves_and_the_run_goes_on(videos: Path, tmp_path: Path, home: Path) -> None:
    from mlflow.tracking import MlflowClient

    run_dir = tmp_path / "runs" / "b"
    rows_file = run_dir / "metrics.jsonl"
    line = f"{SOME_BAD} --data.annotations {videos} --train.run-dir {run_dir}".split()
    job = start(home, *TINY, *line, "--train.max-steps", "100000")
    wait_for(lambda: len(journal.read(rows_file)) > 3, "the third step", job)
    assert _listening_beyond_loopback(job.pid) == []
    job.send_signal(signal.SIGINT)
    code, output = finish(job)
    assert code == 130, output
    (printed,) = re.findall(r"^stopped at step \d+; go on with: (.*)$", output, re.M)
    newest = latest(run_dir)
    assert newest is not None
    stopped_at = checkpoint.step_of(newest)
    assert journal.read(rows_file)[-1]["step"] == stopped_at

    # As printed, without the options of before; not even the videos were the default's.
    begun = yaml.safe_load((run_dir / "config.yaml").read_text())
    last = str(stopped_at + 3)
    code, output = finish(start(home, *shlex.split(printed), "--train.max-steps", last))
    assert code == 0, output
    changes = [text for text in output.splitlines() if "->" in text]
    assert [text.split(" (")[0] for text in changes] == [f"train.max_steps: 100000 -> {last}"]
    resumed = yaml.safe_load((run_dir / "config.yaml").read_text())
    trained = yaml.safe_load(
        (checkpoint.step_folder(run_dir, int(last)) / "config.yaml").read_text()
    )
    for section in ("data", "model", "loss", "seraena", "optim"):
        assert resumed[section] == trained[section] == begun[section]
    assert begun["data"]["annotations"] == str(videos)
    assert f"step {stopped_at}" in output
    assert [row["step"] for row in journal.read(rows_file)] == list(range(stopped_at + 4))
    client = MlflowClient(f"sqlite:///{run_dir.parent}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("taehv").experiment_id])
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_goes_back_and_another_way_from_there(
    videos: Path, tmp_path: Path, home: Path
) -> None:
    from mlflow.tracking import MlflowClient

    run_dir = tmp_path / "runs" / "back"
    line = f"{SOME_BAD} --data.annotations {videos} --train.run-dir {run_dir}".split()
    code, output = finish(
        start(home, *TINY, *line, *["--train.max-steps", "4", "--train.checkpoint-every", "2"])
    )
    assert code == 0, output
    older = checkpoint.step_folder(run_dir, 2)
    back = ["--train.run-dir", str(run_dir), "--train.resume", str(older)]
    code, output = finish(start(home, *back, "--train.max-steps", "3"))
    assert code == 0, output
    assert f"going back to {older}" in output
    assert [row["step"] for row in journal.read(run_dir / "metrics.jsonl")] == list(range(4))
    (aside,) = (run_dir / "set_aside").iterdir()
    assert (aside / "step_00000004" / checkpoint.MANIFEST).is_file()
    client = MlflowClient(f"sqlite:///{run_dir.parent}/mlflow.db")
    assert len(client.search_runs([client.get_experiment_by_name("taehv").experiment_id])) == 2


def test_no_credential_is_left_anywhere(videos: Path, tmp_path: Path) -> None:
    """Of the store's address, the tracking server's, or the environment: neither in the run's
    folder, nor in what was printed, at home, or in what Ray wrote for itself."""
    secrets = ("SECRETSTORE", "SECRETSERVER", "SECRETTOKEN")
    with (
        s3_server() as server,
        socket.socket() as closed,
        TemporaryDirectory(prefix="ray_", dir="/tmp") as ray_folder,
    ):
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        place = f"127.0.0.1:{closed.getsockname()[1]}"
        server.put("secrets/.keep", b"")
        run_dir = f"s3://KEYID:SECRETSTORE@secrets/run{server.options}"
        line = f"{SOME_BAD} --data.annotations {videos} --train.max-steps 2"
        line += f" --tracking.uri http://user:SECRETSERVER@{place}"
        more = {
            "MLFLOW_TRACKING_TOKEN": "SECRETTOKEN",
            "AWS_SESSION_TOKEN": "SECRETTOKEN",
            "RAY_TMPDIR": ray_folder,
        }
        job = start(tmp_path / "home", *TINY, *line.split(), "--train.run-dir", run_dir, **more)
        code, output = finish(job)
        assert code == 0, output
        assert "MLflow failed" in output
        assert place in output
        assert f"run folder: s3://secrets/run{server.options}" in output

        store = fs.S3FileSystem(endpoint_override=server.address, scheme="http", region="us-east-1")
        left = {"output": output.encode()}
        for info in store.get_file_info(fs.FileSelector("secrets", recursive=True)):
            if info.is_file:
                left[info.path] = store.open_input_stream(info.path).read()
        assert {"secrets/run/config.yaml", "secrets/run/metrics.jsonl"} <= left.keys()
        assert any(name.endswith("config.yaml") and "checkpoints" in name for name in left)
        for folder in (tmp_path, Path(ray_folder)):
            for path in folder.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    left[str(path)] = path.read_bytes()
        assert any("session_" in name for name in left)
    leaks = {(n, s) for n, content in left.items() for s in secrets if s.encode() in content}
    assert leaks == set()
    config = yaml.safe_load(left["secrets/run/config.yaml"])
    assert config["tracking"]["uri"] == f"http://{place}"
    assert config["train"]["run_dir"] == f"s3://secrets/run{server.options}"


def _listening_beyond_loopback(pid: int) -> list[str]:
    """Open TCP doors of the job and all that it started."""
    job = psutil.Process(pid)
    family = {p.pid for p in [job, *job.children(recursive=True)]}
    doors = [
        tuple(connection.laddr)
        for connection in psutil.net_connections("tcp")
        if connection.pid in family and connection.status == psutil.CONN_LISTEN
    ]
    assert doors, "Ray listens somewhere"
    loopback = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    return [f"{address}:{port}" for address, port in doors if address not in loopback]


@pytest.mark.slow
def test_no_usable_video_stops_the_run(tmp_path: Path, home: Path) -> None:
    from mlflow.tracking import MlflowClient

    write_video(tmp_path / "short.mp4", moving_frames(12))
    entries = [{"path": "short.mp4"}, {"path": "missing.mp4"}, {"path": "none.mp4"}]
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps({"total": 3, "list": entries}))
    run_dir = tmp_path / "runs" / "c"
    line = f"--data.annotations {annotations} --train.run-dir {run_dir} --data.num-frames 33"
    code, output = finish(start(home, *TINY, *line.split()))
    assert code == 1, output
    (message,) = [text for text in output.splitlines() if text.startswith("error: ")]
    assert "no clip can be made" in message
    assert "33" in output
    client = MlflowClient(f"sqlite:///{run_dir.parent}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("taehv").experiment_id])
    assert run.info.status == "FAILED"


BAD_INPUT = {
    "no annotations": ("--data.annotations {tmp}/none.json", 1, "does not exist"),
    "not JSON": ("--data.annotations {tmp}/text.json", 1, "text.json"),
    "another form": ("--data.annotations {tmp}/form.json", 1, "form.json"),
    "no folder for the run": ("--train.run-dir {tmp}/text.json/run", 1, "text.json/run"),
    "unknown option": ("--train.max-stepz 3", 2, "--train.max-steps"),
    "negative weight": ("--loss.seraena -1", 2, "loss.seraena is -1"),
    "size": ("--data.height 60", 2, "data.height is 60"),
    "variant": ("--model.pretrained {tmp}/w.pth --model.variant taew2_2", 1, "w.pth"),
    "teacher": ("--teacher.path {tmp}", 1, "vae"),
    "workers": ("--cluster.workers 9", 2, "9 workers cannot share"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_has_one_clear_message(
    case: str,
    videos: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from jobs.train import main

    options, expected, message = BAD_INPUT[case]
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "form.json").write_text('{"videos": []}')
    torch.save(
        TAEHV(read_yaml(REPOSITORY / "configs/small.yaml").model).state_dict(), tmp_path / "w.pth"
    )
    line = f"--data.annotations {videos} --train.run-dir {tmp_path}/run {options}"
    try:
        code = main(line.format(tmp=tmp_path).split())
    except SystemExit as ended:
        code = int(str(ended.code))
    printed = " ".join(capfd.readouterr().err.split())
    assert code == expected, printed
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_make_train_reaches_its_figures(tmp_path: Path, home: Path) -> None:
    """What `make train` runs, whole: minutes on two cores."""
    run_dir = tmp_path / "runs" / "small"
    line = f"--config configs/small.yaml --train.run-dir {run_dir}"
    code, output = finish(start(home, *line.split()), 900)
    assert code == 0, output
    scores = [row for row in journal.read(run_dir / "metrics.jsonl") if "val/psnr" in row]
    first, last = scores[0]["val/psnr"], scores[-1]["val_ema/psnr"]
    table = {
        s.rsplit(maxsplit=6)[0]: float(s.split()[-6])
        for s in output.splitlines()
        if "bicubic" in s or "mean colour of" in s
    }
    trivial = table["8x down and up, bicubic"]
    assert trivial > table["mean colour of each frame"]
    # A codec from the start, and better by training.
    assert first >= trivial + 2.5
    assert last >= first + 1
    assert last >= trivial + 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_driving_video_is_learned(tmp_path: Path, home: Path) -> None:
    """From a start that shows nothing yet: a solved one would have little to learn in 60 steps."""
    folder = Path(os.environ.get("DRIVING_DATA", "")).absolute()
    if not (folder / "annotations.json").is_file():
        pytest.skip(f"no annotations.json in {folder} (set DRIVING_DATA)")
    run_dir = tmp_path / "runs" / "real"
    line = (
        f"--config configs/small.yaml --data.annotations {folder}/annotations.json"
        f" --data.root {folder}/data --train.run-dir {run_dir} --train.max-steps 60"
        " --train.start near_identity --optim.optimizer adamw --optim.learning-rate 1e-3"
        " --optim.warmup-steps 30"
    )
    code, output = finish(start(home, *line.split()), 600)
    assert code == 0, output
    assert "only one video" in output
    losses = [
        row["train/reconstruction_loss"]
        for row in journal.read(run_dir / "metrics.jsonl")
        if "train/reconstruction_loss" in row
    ]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["train"]["max_steps"] == 60
