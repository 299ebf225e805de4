"""What a resume takes from the run that it goes on with, what it tells, and what it refuses."""

import json
import logging
import os
import shlex
from pathlib import Path

import pytest
import yaml

from jobs.cli.config import Config, parse, read_yaml
from jobs.cli.errors import ConfigError
from jobs.cli.places import with_places
from jobs.train import main
from jobs.training.resumed import judged_resume
from taehv.errors import TrainingError
from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder, resume_options
from taehv.training.state import to_yaml
from tests.helpers.s3_server import s3_server

GIVEN = "--data.height 64 --data.width 96 --loss.encoder 0.3 --train.global-batch-size 4"
"""What the runs below were begun with, besides their list of videos."""

SWITCH = "--train.resume-changed"


def listed(folder: Path, name: str = "a.json") -> Path:
    """An annotation file of two videos that nobody decodes here."""
    file = folder / name
    file.write_text(json.dumps({"total": 2, "list": [{"path": "0.mp4"}, {"path": "1.mp4"}]}))
    return file


def begun(run: RunFolder, options: str, whole: bool = True) -> Config:
    """Leave in a run's folder what its first life does: config.yaml, and, where `whole`, a
    checkpoint as far as its name goes."""
    config = with_places(parse([*options.split(), "--train.run-dir", run.address], ""))
    run.local.mkdir(parents=True, exist_ok=True)
    (run.local / "config.yaml").write_text(to_yaml(config))
    run.publish("config.yaml")
    if whole:
        file = f"{checkpoint.name_of(2)}/{checkpoint.MANIFEST}"
        (run.local / file).parent.mkdir(parents=True, exist_ok=True)
        (run.local / file).write_text("{}")
        run.publish(file)
    return config


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that was begun with GIVEN on a list of its own."""
    folder = RunFolder(str(tmp_path / "runs" / "a"))
    begun(folder, f"{GIVEN} --data.annotations {listed(tmp_path)}")
    return folder


def resumed(run: RunFolder, more: str = "") -> Config:
    """The configuration that the printed line, as it is typed, and `more` after it lead to."""
    line = shlex.split(f"{resume_options(run.address)} {more}")
    return judged_resume(run, with_places(parse(line, "")))


def test_the_printed_line_is_all_that_needs_typing(run: RunFolder) -> None:
    before = read_yaml(run.local / "config.yaml")
    after = resumed(run, "--train.max-steps 20000")
    assert (after.data, after.model, after.loss) == (before.data, before.model, before.loss)
    assert (after.data.height, after.data.width, after.loss.encoder) == (64, 96, 0.3)
    assert after.train.global_batch_size == 4
    assert (after.train.max_steps, after.train.resume) == (20000, "latest")


def test_a_file_and_the_command_line_go_before_the_runs_own(run: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: {height: 128, width: 128}\nloss: {reconstruction: 5}")
    after = resumed(run, f"--config {file} --data.width 160")
    assert (after.data.height, after.data.width) == (128, 160)
    assert (after.loss.reconstruction, after.loss.encoder) == (5, 0.3)


def test_where_it_runs_now_is_the_clusters_word(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its file says of the cluster and of where to decode goes before what the run had on
    another; what it leaves out, and all else, is the run's."""
    run.remove(checkpoint.FOLDER)
    more = "--cluster.workers 2 --cluster.max-failures 9 --data.decode-nodes role=old"
    begun(run, f"{GIVEN} {more} --data.annotations {tmp_path}/a.json")
    theirs = tmp_path / "cluster.yaml"
    theirs.write_text(
        "cluster: {workers: 1-4}\ndata: {decode_nodes: role=new, height: 32}\n"
        "train: {resume: latest, checkpoint_every: 7}"
    )
    monkeypatch.setenv("TAEHV_CONFIG", str(theirs))
    after = parse(["--train.run-dir", run.address], "")
    assert (after.cluster.workers, after.cluster.max_failures) == ("1-4", 9)
    assert (after.data.decode_nodes, after.data.height) == ("role=new", 64)
    assert after.train.checkpoint_every == Config().train.checkpoint_every
    assert resumed(run, "--cluster.workers 3").cluster.workers == "3"


def test_a_checkpoint_of_the_run_is_its_own_and_anothers_is_not(
    run: RunFolder, tmp_path: Path
) -> None:
    own = run.address_of(checkpoint.name_of(2))
    heights = {}
    for name, folder in {"own": run.address, "new": f"{tmp_path}/runs/new", "none": ""}.items():
        line = ["--train.resume", own, "--train.run-dir", folder]
        heights[name] = parse(line, "").data.height
    default = Config().data.height
    assert heights == {"own": 64, "new": default, "none": default}

    # The same command again, once the new run has checkpoints itself.
    begun(RunFolder(f"{tmp_path}/runs/new"), "--data.height 96 --data.annotations x.json")
    again = parse(["--train.resume", own, "--train.run-dir", f"{tmp_path}/runs/new"], "")
    assert again.data.height == 96


def test_a_run_that_saved_nothing_begins_from_where_it_was_to_begin(
    run: RunFolder, tmp_path: Path
) -> None:
    """Stopped before its first checkpoint, a run of another's weights is not begun from scratch."""
    other = f"{tmp_path}/other/checkpoints/step_00000007"
    run.remove(checkpoint.FOLDER)
    begun(run, f"--train.resume {other} --data.annotations {tmp_path}/a.json", whole=False)
    assert resumed(run).train.resume == other


def test_under_a_clusters_storage_and_on_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations = listed(tmp_path)
    with s3_server() as server:
        server.put("bucket/there", b"")
        monkeypatch.setenv("TAEHV_STORAGE", f"s3://bucket/taehv{server.options}")
        run = RunFolder(f"s3://bucket/taehv/runs/a{server.options}")
        begun(run, f"{GIVEN} --data.annotations {annotations}")
        for typed in (run.address, "runs/a"):
            line = shlex.split(resume_options(typed))
            config = judged_resume(run, with_places(parse(line, "")))
            assert (config.data.height, config.data.annotations) == (64, str(annotations))
            assert config.train.run_dir == run.address
        own = ["--train.resume", f"runs/a/{checkpoint.name_of(2)}", "--train.run-dir", "runs/a"]
        assert parse(own, "").data.height == 64


def test_a_run_of_before_keeps_what_it_had(run: RunFolder) -> None:
    """Its own file names every setting there was; what came later had one value then."""
    file = run.local / "config.yaml"
    content = yaml.safe_load(file.read_text())
    del content["train"]["start"], content["optim"]["gradient_centralization"]
    del content["optim"]["optimizer"]
    file.write_text(yaml.safe_dump(content))
    after = resumed(run)
    assert after.train.start == "near_identity"
    assert not after.optim.gradient_centralization
    assert after.optim.optimizer == "adamw"
    assert Config().optim.gradient_centralization
    assert Config().optim.optimizer == "soap"


def test_a_run_folder_that_was_moved_goes_on_where_it_is(run: RunFolder, tmp_path: Path) -> None:
    moved = RunFolder(str(tmp_path / "elsewhere"))
    run.local.rename(moved.local)
    after = resumed(moved)
    assert (after.train.run_dir, after.data.height) == (moved.address, 64)


def test_what_differs_is_told(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        resumed(run)
    assert "->" not in caplog.text
    more = "--data.height 128 --loss.encoder 0 --train.max-clips-per-pass 2 --cluster.workers 2"
    with caplog.at_level(logging.INFO):
        after = resumed(run, more)
    told = [line.split(" (")[0] for line in caplog.messages if "->" in line]
    assert sorted(told) == [
        "data.height: 64 -> 128",
        "loss.encoder: 0.3 -> 0.0",
        "train.max_clips_per_pass: 0 -> 2",
    ]
    assert after.data.height == 128


def test_the_same_list_by_another_path_is_no_change(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        for typed in ("a.json", "../" + tmp_path.name + "/a.json", f"{tmp_path}/link/a.json"):
            resumed(run, f"--data.annotations {typed}")
        # Relative paths start there anyway.
        resumed(run, "--data.root .")
        resumed(run, "--data.split-seed 0")
    refused = [line for line in caplog.messages if "data.annotations" in line or ".root" in line]
    assert refused == []


REFUSED = {
    "other videos": (
        "--data.annotations {tmp}/b.json",
        "data.annotations: {tmp}/a.json -> {tmp}/b",
    ),
    "other root": ("--data.root {tmp}/runs", "data.root: "),
    "fraction": ("--data.validation-fraction 0.2", "data.validation_fraction: 0.1 -> 0.2"),
    "drives": ("--data.split-by 1", "data.split_by: (empty) -> 1"),
    "held out": ("--data.validation-annotations {tmp}/b.json", "data.validation_annotations: "),
    "split": ("--data.split-seed 3", "data.split_seed: "),
    "seed": ("--train.seed 3", "train.seed: 0 -> 3"),
    "frame rule": ("--model.variant taehv", "model.variant: taecvx -> taehv"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused(
    case: str, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed(tmp_path, "b.json")
    typed, told = (text.format(tmp=tmp_path) for text in REFUSED[case])
    before = (run.local / "config.yaml").read_bytes()
    assert main(shlex.split(f"{resume_options(run.address)} {typed}")) == 2
    error = capsys.readouterr().err
    assert told in error
    assert SWITCH in error
    assert (run.local / "config.yaml").read_bytes() == before

    after = resumed(run, f"{typed} {SWITCH}")
    # It holds for this command alone.
    assert not after.train.resume_changed
    assert "resume_changed: false" in to_yaml(after)

    # Of a run without a checkpoint nothing was trained on anything.
    run.remove(checkpoint.FOLDER)
    resumed(run, typed)


NEVER = {
    "widths": ("", "--model.decoder-widths 16 8 8 8", "model.decoder_widths"),
    "variant": ("", "--model.variant taew2_2", "model.variant"),
    "optimizer": ("--optim.optimizer adamw", "--optim.optimizer soap", "adamw -> soap"),
    "adversary": ("--loss.seraena 0", "--loss.seraena 0.1", "loss.seraena: 0.0 -> 0.1"),
    "its widths": ("", "--seraena.widths 4 8 8 8 8 8", "seraena.widths"),
    "its groups": ("", "--seraena.frames-per-group 1", "seraena.frames_per_group"),
}


@pytest.mark.parametrize("case", NEVER)
@pytest.mark.parametrize("switch", ["", SWITCH])
def test_what_no_checkpoint_can_fit_is_refused_whatever_is_said(
    case: str, switch: str, run: RunFolder, tmp_path: Path
) -> None:
    first, typed, told = NEVER[case]
    begun(run, f"{GIVEN} {first} --data.annotations {tmp_path}/a.json")
    with pytest.raises(ConfigError) as caught:
        resumed(run, f"{typed} {switch}")
    assert told in str(caught.value)
    assert "--model.pretrained" in str(caught.value)


def test_a_list_that_is_gone_is_told(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "a.json").unlink()
    with pytest.raises(TrainingError) as caught:
        resumed(run)
    for part in (f"{tmp_path}/a.json", f"{run.address}/config.yaml", "--data.annotations", SWITCH):
        assert part in str(caught.value)


def test_synthetic_videos_that_are_gone_can_be_made_again(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first command named no videos; the second goes on with the same, wherever it runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    made = tmp_path / "first" / "taehv" / "synthetic_v2_24x64x192x320_seed0"
    made.mkdir(parents=True)
    file = listed(made, "annotations.json")
    begun(run, GIVEN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    assert resumed(run).data.annotations == str(file)
    file.unlink()
    with pytest.raises(TrainingError, match=f"python -m data_pipeline.synthetic --out {made}"):
        resumed(run)


BROKEN = {
    "data: {heigth: 64}": "there is no key data.heigth; did you mean data.height?",
    "data: {height: tall}": "data.height",
    "data: [": "is not YAML",
    "train: {max_steps: -1}": "train.max_steps is -1",
    "": "does not say data.annotations",
}


@pytest.mark.parametrize("content", BROKEN)
def test_a_config_that_cannot_be_used_is_named(content: str, run: RunFolder) -> None:
    (run.local / "config.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        resumed(run)
    message = str(caught.value)
    assert message.startswith(f"{run.address}/config.yaml")
    assert BROKEN[content] in message
    assert "move the file away" in message
    assert (run.local / "config.yaml").read_text() == content


def test_a_config_that_is_missing_is_a_warning(
    run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run.local / "config.yaml").unlink()
    typed = f"--data.annotations {tmp_path}/a.json"
    assert resumed(run, typed).data.height == Config().data.height
    assert f"{run.address}/config.yaml is not there" in caplog.text
    caplog.clear()
    # On a cluster, where `latest` is the default, a run is begun like this.
    resumed(RunFolder(str(tmp_path / "new")), typed)
    assert caplog.text == ""


@pytest.mark.parametrize("source", ["environment", "cluster"])
def test_an_address_with_its_password_goes_before_the_same_without(
    source: str, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = run.local / "config.yaml"
    content = yaml.safe_load(file.read_text())
    content["tracking"]["uri"] = "https://mlflow.lan/x"
    file.write_text(yaml.safe_dump(content))
    secret = "https://me:secret@mlflow.lan/x"
    if source == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
        # Empty: the environment counts.
        assert resumed(run).tracking.uri == ""
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@other.lan/x")
    else:
        theirs = tmp_path / "cluster.yaml"
        theirs.write_text(f"tracking: {{uri: '{secret}'}}")
        monkeypatch.setenv("TAEHV_CONFIG", str(theirs))
        assert resumed(run).tracking.uri == secret
        theirs.write_text("tracking: {uri: 'https://other.lan/x'}")
    assert resumed(run).tracking.uri == "https://mlflow.lan/x"


def test_an_address_is_printed_as_a_shell_reads_it() -> None:
    for address in ("/runs/a", "/my runs/a", "s3://bucket/a?endpoint_override=h:9000&scheme=http"):
        assert shlex.split(resume_options(address)) == [
            *("--train.run-dir", address, "--train.resume", "latest")
        ]
    assert resume_options("") == "--train.resume latest"
    assert os.sep not in resume_options("")


def test_a_run_of_a_version_of_whole_pictures_goes_on_with_them_and_says_so(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    file = run.local / "config.yaml"
    content = yaml.safe_load(file.read_text())
    for key in ("crops", "validation_height", "validation_width", "stream", "split_by"):
        del content["data"][key]
    content["data"] |= {"min_crop_scale": 0.7, "max_crop_scale": 0.9}
    file.write_text(yaml.safe_dump(content))
    with caplog.at_level(logging.INFO):
        after = resumed(run)
    assert after.data.crops == "0.7-0.9"
    assert f"{file} is of a version that knew whole pictures only" in caplog.text
    assert "are data.crops 0.7-0.9 today" in caplog.text
    assert "data.crops:" not in caplog.text
    assert resumed(run, "--data.crops mixed").data.crops == "mixed"
    assert "data.crops: 0.7-0.9 -> mixed" in caplog.text


STAGED = """\
train:
  max_steps: 4
  stages: [{seraena: 0.0}, {freeze_encoder: true}]
"""
"""The checkpoint of step 2 is the end of the first stage, that of step 3 is in the second."""


@pytest.mark.parametrize(
    ("step", "more", "fault"),
    [
        (2, "--train.max-steps 3", ""),
        (3, "--train.stages.1.learning-rate 1e-5", ""),
        (3, "--train.stages.0.seraena 0.1", ""),
        (3, "--train.max-steps 5", ""),
        # The second stage would be in its midst, and has no adversary yet.
        (2, "--train.stages.1.share 2", "train.stages: "),
        (2, "--train.stages.0.seraena 0.1", ""),
        # Back in the first stage, which trains what the second has frozen.
        (3, "--train.max-steps 8", "train.max_steps: 4 -> 8"),
        (3, "--seraena.frames-per-group 1", "seraena.frames_per_group: 3 -> 1"),
        (2, "--seraena.frames-per-group 1", ""),
        (3, "--train.stages.1.freeze-encoder False", "train.stages: "),
    ],
)
def test_a_step_stays_in_its_stage(tmp_path: Path, step: int, more: str, fault: str) -> None:
    run, file = RunFolder(str(tmp_path / "runs" / "staged")), tmp_path / "stages.yaml"
    file.write_text(STAGED)
    begun(run, f"--config {file} --data.annotations {listed(tmp_path)}", whole=False)
    (run.local / checkpoint.name_of(step)).mkdir(parents=True)
    if not fault:
        resumed(run, more)
        return
    with pytest.raises(ConfigError, match=fault):
        resumed(run, f"{more} {SWITCH}")
