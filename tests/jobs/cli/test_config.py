"""The command line and the YAML beneath it."""

from pathlib import Path

import pytest
import yaml

from jobs.cli.config import Config, flatten, parse, read_yaml
from jobs.cli.errors import ConfigError
from taehv.training.state import to_yaml

SHIPPED = Path(__file__).resolve().parents[3] / "configs"


def test_defaults_yaml_and_command_line_in_this_order(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {max_steps: 7, seed: 3}\noptim: {learning_rate: 1e-3}\n")
    config = parse(["--config", str(file), "--train.seed", "5"], "")
    assert (config.train.max_steps, config.train.seed) == (7, 5)
    assert config.optim.learning_rate == 0.001
    assert config.train.global_batch_size == Config().train.global_batch_size


def test_the_names_that_users_type() -> None:
    line = (
        "--data.annotations A.json --data.root D --data.height 128 --data.width 128"
        " --data.num-frames 9 --loss.reconstruction 10 --loss.encoder 0.1 --loss.seraena 0.1"
        " --teacher.path C --train.global-batch-size 8 --train.max-steps 10000"
        " --model.pretrained p.pth --cluster.workers 2 --train.run-dir runs/a"
        " --train.resume latest"
    )
    config = parse(line.split(), "")
    assert flatten(config)["cluster.workers"] == "2"
    assert config.data.num_frames == 9
    assert config.train.resume == "latest"


def test_the_resolved_config_reads_back_the_same(tmp_path: Path) -> None:
    config = parse(["--model.decoder-widths", "64", "32", "32", "16", "--loss.encoder", "0"], "")
    file = tmp_path / "resolved.yaml"
    file.write_text(to_yaml(config))
    assert read_yaml(file) == config


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configs_are_accepted(file: Path) -> None:
    read_yaml(file)
    assert set(yaml.safe_load(file.read_text())) <= set(vars(Config()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trian: {max_steps: 1}", "there is no key trian; did you mean train?"),
        ("train: {max_stepz: 1}", "no key train.max_stepz; did you mean train.max_steps?"),
        ("train: {max_steps: many}", "train.max_steps"),
        ("train: 3", "train is a section, but holds 3"),
        ("loss: {seraena: -1}", "loss.seraena is -1"),
        ("- a\n- b", "expected sections"),
        ("a: [", "is not YAML"),
        ("loss:\n  seraena: 1\n  seraena: 2", "line 3: seraena stands here a second time"),
    ],
)
def test_a_bad_file_names_the_key(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        parse([f"--config={file}"], "")
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.max-stepz", "3"], "--train.max-steps"),
        (["--loss.seraena", "-0.5"], "loss.seraena is -0.5"),
        (["--loss.reconstruction", "nan"], "loss.reconstruction is nan"),
        (["--model.variant", "taew2_3"], "did you mean"),
        (["--train.max-steps", "x"], "--train.max-steps"),
    ],
)
def test_a_bad_option_exits_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments, "")
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).split())


def test_the_clusters_defaults_lie_beneath_the_file_and_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tmp_path / "mine.yaml", tmp_path / "cluster.yaml"
    theirs.write_text("cluster: {workers: 1-4, gpu: 'yes', wait_minutes: 60}")
    ours.write_text("cluster: {workers: 2}\ndata: {height: 64}")
    monkeypatch.setenv("TAEHV_CONFIG", str(theirs))
    monkeypatch.setenv("TAEHV_STORAGE", "s3://bucket/taehv/")
    config = parse(["--config", str(ours), "--cluster.wait-minutes", "5"], "")
    cluster = config.cluster
    assert (cluster.gpu, cluster.workers, cluster.wait_minutes) == ("yes", "2", 5)
    assert (config.data.height, cluster.storage) == (64, "s3://bucket/taehv")
    assert parse(["--cluster.storage", "/shared"], "").cluster.storage == "/shared"


def test_a_mistake_in_the_clusters_defaults_names_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster: {train_nodes: train}")
    monkeypatch.setenv("TAEHV_CONFIG", str(file))
    with pytest.raises(ConfigError, match=r"cluster.yaml, cluster: .*KEY=VALUE"):
        parse([], "")
