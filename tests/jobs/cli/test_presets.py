"""The YAML files in configs/ that a user begins with."""

from pathlib import Path

import pytest
import torch

from jobs.cli.config import Config, parse
from jobs.cli.errors import ConfigError
from jobs.training.checks import check
from taehv.model import ModelConfig, build_model
from tests.helpers.jobs_run import REPOSITORY
from tests.helpers.small_teacher import save_small_teacher

SMALL = ["--model.encoder-width", "8", "--model.decoder-widths", "16", "8", "8", "8"]
MORE = {
    "small": [],
    "from_scratch": [],
    "fine_tune": ["--model.pretrained", "{tmp}/w.pth", *SMALL],
    "distil": ["--teacher.path", "{tmp}/teacher"],
}
"""What its user gives besides."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    network = build_model(ModelConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8)))
    torch.save(network.state_dict(), folder / "w.pth")
    save_small_teacher(folder / "teacher")
    return folder


def read(name: str, *more: str) -> Config:
    return parse(["--config", str(REPOSITORY / "configs" / f"{name}.yaml"), *more], "")


def test_each_is_known_here() -> None:
    names = {path.stem for path in (REPOSITORY / "configs").glob("*.yaml")}
    assert names == MORE.keys() | {"cluster"}


@pytest.mark.parametrize("name", MORE)
def test_a_preset_can_be_trained(name: str, files: Path) -> None:
    config = read(name, *(word.format(tmp=files) for word in MORE[name]))
    check(config)
    *_, last = stages = [config.of_stage(n) for n in range(len(config.train.steps_of_stages()))]
    # The adversary is the last to come, and never moves the encoder where there was one before.
    weights = [stage.loss.seraena for stage in stages]
    assert weights == sorted(weights)
    assert last.train.freeze_encoder is (len(stages) > 1)
    assert last.seraena.start_step + last.seraena.ramp_steps < config.train.max_steps


@pytest.mark.parametrize("name", MORE)
def test_its_comment_shows_how_it_is_used(name: str) -> None:
    text = (REPOSITORY / "configs" / f"{name}.yaml").read_text()
    assert f"configs/{name}.yaml" in text or name == "small"
    for option in MORE[name]:
        if option.startswith("--") and option not in SMALL:
            assert option in text


def test_what_a_preset_lacks_is_said(files: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is none: give --teacher\.path"):
        check(read("distil"))


def test_stages_are_changed_on_the_command_line() -> None:
    config = read("from_scratch", "--train.stages.1.height", "192", "--train.stages.1.width", "320")
    assert (config.of_stage(1).data.height, config.of_stage(1).data.width) == (192, 320)
    assert (config.of_stage(2).data.height, config.of_stage(0).data.height) == (256, 128)


def test_a_stage_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for text, fault in {
        "{heigth: 64}": r"train\.stages\.0\.heigth: Unexpected",
        "{share: 0}": r"share is 0\.0: it must be positive",
        "{height: 100}": r"stage 1 of train\.stages: data\.height is 100",
        "{height: 1024, width: 1024, num_frames: 65}": r"replay_gigabytes is 1: .* set 3\.4 or",
        "{global_batch_size: 3}": r"stage 1 of train\.stages: train\.global_batch_size 3 is not",
    }.items():
        file = tmp_path / "stages.yaml"
        file.write_text(f"train: {{stages: [{text}]}}")
        with pytest.raises(ConfigError, match=fault):
            check(parse(["--config", str(file)], ""))
    file.write_text("train: {stages: [{global_batch_size: 4}, {}]}")
    check(parse(["--config", str(file), "--cluster.workers", "2"], ""))
    with pytest.raises(ConfigError, match=r"stage 1 of .*: 3 workers cannot share 2 groups"):
        check(parse(["--config", str(file), "--cluster.workers", "3"], ""))
