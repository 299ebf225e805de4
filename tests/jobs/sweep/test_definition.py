"""What a sweep's YAML may say, and what is said, with the line, of one that is wrong."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from jobs import tune
from jobs.cli.config import Config, flatten
from jobs.cli.errors import ConfigError
from jobs.sweep.command_line import keep_definition, parse, resume_options
from jobs.sweep.definition import Plan, make_plan, read_sweep
from jobs.sweep.space import with_settings

SHIPPED = sorted((Path(__file__).resolve().parents[3] / "tune_configs").glob("*.yaml"))

GOOD = """\
settings:
  train: {max_steps: 12}
space:
  loss.encoder: {log: [0.001, 1], ratio_to: loss.reconstruction}
  optim.learning_rate: {log: [1.0e-4, 1.0e-2]}
  seraena.frames_per_group: [1, 3]
search:
  algorithm: random
  trials: 4
"""


def plan_of(folder: Path, text: str) -> Plan:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return make_plan(*read_sweep(path))


def test_a_clusters_defaults_lie_beneath_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cluster.yaml").write_text(
        "cluster: {workers: 1-4, gpu: pretend, wait_minutes: 60}\ntrain: {resume: latest}"
    )
    monkeypatch.setenv("TAEHV_CONFIG", str(tmp_path / "cluster.yaml"))
    monkeypatch.setenv("TAEHV_STORAGE", f"{tmp_path}/shared/")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(GOOD.replace("settings:", "settings:\n  cluster: {workers: 2}"))
    given = ["--cluster.wait-minutes", "5", "--data.annotations", "s3://bucket/videos.json"]
    plan, folder = parse([str(sweep), *given, "--sweep-dir", "runs/sweep"])
    cluster = plan.base.cluster
    assert (cluster.gpu, cluster.workers, cluster.wait_minutes) == ("pretend", "2", 5)
    assert folder.address == f"{tmp_path}/shared/runs/sweep"


def test_the_printed_line_is_all_that_a_sweep_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its file and the options of before it is the same sweep, with what they said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("loss: {encoder: 0.5}\nmodel: {encoder_width: 8}")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(GOOD.replace("train:", "data: {height: 64}\n  train:") + "config: mine.yaml\n")
    typed = "--data.annotations a.json --data.root d --loss.reconstruction 5 --cluster.workers 2"
    uri = ["--tracking.uri", "https://me:secret@mlflow.lan/x"]
    begun, folder = parse([str(sweep), *typed.split(), *uri, "--sweep-dir", "my sweeps/a"])
    folder.local.mkdir(parents=True)
    keep_definition(begun, folder)
    sweep.unlink()
    assert not [file for file in folder.local.iterdir() if "secret" in file.read_text()]

    monkeypatch.chdir("/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri[1])
    again, same = parse(shlex.split(resume_options(folder)))
    assert same.address == folder.address
    kept = flatten(begun.base) | {"tracking.uri": ""}
    assert flatten(again.base) == kept
    assert (again.space, again.rows, again.sweep.search) == (
        begun.space,
        begun.rows,
        begun.sweep.search,
    )
    assert again.sweep.name == begun.sweep.name
    keep_definition(again, folder)

    # A sweep that was begun before there was a choice goes on with what it had.
    file = folder.local / "sweep.yaml"
    before = file.read_text()
    content = yaml.safe_load(before)
    del content["settings"]["optim"]["optimizer"]
    file.write_text(yaml.safe_dump(content))
    of_before = parse(["--sweep-dir", folder.address])[0]
    assert of_before.base.optim.optimizer == "adamw"
    definition = folder.local / "sweep.json"
    kept_definition = definition.read_text()
    named = json.loads(kept_definition)
    for key in ("optim.optimizer", "train.stages", "train.freeze_encoder"):
        del named["config"][key]
    definition.write_text(json.dumps(named))
    keep_definition(of_before, folder)
    definition.write_text(kept_definition)
    file.write_text(before)

    # What is typed goes before it, and what makes another sweep of it is refused.
    other, _ = parse(["--sweep-dir", folder.address, "--loss.reconstruction", "6"])
    assert other.base.loss.reconstruction == 6
    with pytest.raises(ConfigError, match=r"another sweep, which differs in config.loss.reconstr"):
        keep_definition(other, folder)
    with pytest.raises(ConfigError, match=r"nothing/sweep.yaml is not there"):
        parse(["--sweep-dir", f"{tmp_path}/nothing"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_can_be_read(path: Path) -> None:
    sweep, base, lines = read_sweep(path)
    if path.stem in ("ablation", "gpu"):
        with pytest.raises(ConfigError, match=r"line \d+: .*teacher.path"):
            make_plan(sweep, base, lines)
        base = with_settings(base, {"teacher.path": "/models/CogVideoX-2b"})
    plan = make_plan(sweep, base, lines)
    assert plan.space or plan.rows
    assert plan.sweep.metric.startswith("val")


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ("loss.encoder:", "loss.encodr:", 4, "no config key loss.encodr; did you mean loss.enc"),
        ("[0.001, 1], ratio", "[1, 0.001], ratio", 4, "bad range, 1 to 0.001"),
        ("[0.001, 1], ratio", "[0, 1], ratio", 4, "log scale cannot begin at 0"),
        ("[0.001, 1], ratio", "[a, 1], ratio", 4, "needs two numbers"),
        ("ratio_to: loss.reconstruction", "ratio_to: loss.rec", 4, "no config key loss.rec"),
        ("{log: [1.0e-4", "{lgo: [1.0e-4", 5, "no lgo here; did you mean log"),
        ("[1, 3]", "[1, 1]", 6, "a choice stands there twice"),
        ("[1, 3]", "[1, 0]", 6, "seraena.frames_per_group is 0"),
        ("[1, 3]", "[1, many]", 6, "seraena.frames_per_group: Input should be a valid integer"),
        ("algorithm: random", "algorithm: bayes", 8, "search.algorithm: .*'grid', 'random' or"),
        ("algorithm: random", "algorithm: grid", 4, "a grid needs a list of choices"),
        ("trials: 4", "trials: 0", 9, "search.trials is 0: it must be at least 1"),
        ("trials: 4", "trails: 4", 9, "no trails; did you mean trials"),
        ("max_steps: 12", "max_step: 12", 2, "no config key train.max_step; did you mean"),
        ("max_steps: 12", "max_steps: -1", 2, "train.max_steps is -1"),
        ("settings:", "setings:", 1, "no setings; did you mean settings"),
    ],
)
def test_an_error_names_the_line(
    tmp_path: Path, before: str, after: str, line: int, message: str
) -> None:
    assert before in GOOD
    with pytest.raises(ConfigError, match=rf"sweep.yaml, line {line}: .*{message}"):
        plan_of(tmp_path, GOOD.replace(before, after))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("scheduler: {name: hyperband}\n", "line 10: scheduler.name: .*'none', 'asha' or 'median'"),
        ("metric: train/loss\n", "line 10: .*held-out clips, which no weight of a loss enters"),
        ("metric: val/pnsr\n", "line 10: .*did you mean val/psnr"),
        ("seeds: [0, 1]\n", "line 10: .*`confirm: N` runs its best N"),
        ("seeds: [0, 0]\nconfirm: 1\n", "line 10: .*different whole numbers"),
        ("confirm: 2\n", "line 10: confirm needs `seeds`"),
        ("concurrent: 0\n", "line 10: concurrent is 0"),
        ("rows: {a: {loss.seraena: 0}}\n", "line 1: .*either a `space` or `rows`"),
        ("rows: {a: 3}\n", "line 10: a holds 3 instead of config keys"),
        ("space: {}\n", "line 10: space stands here a second time"),
        ("reference_vae: true\n", "line 10: .*--teacher.path"),
        ("budget: {hours: -1}\n", "line 10: budget.hours is -1"),
        ("name: [\n", "line 11: not YAML"),
    ],
)
def test_an_error_in_what_is_added(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(tmp_path, GOOD + more)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("data.num_frames", "all trials are scored on the same ones"),
        ("data.split_seed", "all trials are scored on the same ones"),
        ("train.validation_clips", "all trials are scored on the same ones"),
        ("train.seed", "give `seeds`"),
        ("train.run_dir", "cannot differ from trial to trial"),
        ("cluster.workers", "cannot differ from trial to trial"),
    ],
)
def test_keys_that_trials_cannot_differ_in(tmp_path: Path, key: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"line 2: {key}: .*{why}"):
        plan_of(tmp_path, f"space:\n  {key}: [1, 2]\n")


def test_a_ratio_becomes_a_weight(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        "space:\n  loss.reconstruction: [10, 1]\n"
        "  loss.seraena: {choices: [0.5], ratio_to: loss.reconstruction}\n",
    )
    settings = plan.resolve({"loss.reconstruction": 4.0, "loss.seraena": 0.5})
    assert settings == {"loss.reconstruction": 4.0, "loss.seraena": 2.0}
    # Of a key that is not searched, the configuration's own value counts.
    assert plan.resolve({"loss.seraena": 0.5}) == {"loss.seraena": 5.0}


def test_a_grid_is_every_combination_with_every_seed(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        "space:\n  loss.seraena: [0, 1]\n  loss.encoder: [0.1, 0.2, 0.3]\n"
        "search: {algorithm: grid}\nseeds: [4, 5]\n",
    )
    points = plan.points()
    assert points is not None
    assert len(points) == 12
    assert len({tuple(sorted(point.items())) for point in points}) == 12


def test_held_out_clips_do_not_follow_the_seed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GOOD)
    assert plan.base.data.split_seed == plan.base.train.seed == 0
    seven = with_settings(plan.base, {"train.seed": 7})
    assert seven.train.seed == 7
    assert seven.data.split_seed == 0


def test_settings_change_what_they_name_and_nothing_else() -> None:
    config = Config()
    changed = with_settings(config, {"loss.encoder": "0.25", "optim.betas": [0.8, 0.9]})
    before, after = flatten(config), flatten(changed)
    differing = {key: after[key] for key in after if after[key] != before[key]}
    assert differing == {"loss.encoder": 0.25, "optim.betas": (0.8, 0.9)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss.encoder", "0.5"], "loss.encoder is what this sweep tries"),
        (["--train.run-dir", "x"], "give --sweep-dir"),
        (["--sweep-dir"], "--sweep-dir needs a value"),
        (["--sweep-dir", "--train.seed", "1"], "--sweep-dir needs a value"),
    ],
)
def test_options_that_a_sweep_does_not_take(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(GOOD)
    assert tune.main([str(path), *options]) == 2
    assert message in capsys.readouterr().err
