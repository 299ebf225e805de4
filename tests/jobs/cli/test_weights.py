"""What a command line takes from the run that made the weights."""

import dataclasses
from pathlib import Path

import pytest
import torch

from data_pipeline.config import DataConfig
from jobs.cli.config import Config
from jobs.evaluation import config as evaluation
from jobs.latents import config as latents
from taehv.model import TAEHV, ModelConfig
from taehv.training.state import to_yaml

MODEL = ModelConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, whose list has a root and a list of held-out videos of its own."""
    data = DataConfig(
        annotations="/mine/list.json",
        root="/mine/videos",
        validation_annotations="/mine/held_out.json",
        stream=1,
    )
    config = dataclasses.replace(Config(), data=data, model=MODEL)
    torch.save(TAEHV(MODEL).state_dict(), tmp_path / "final_model.pth")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    return tmp_path


@pytest.mark.parametrize("named", [[], ["--data.annotations", "/mine/list.json"]])
def test_the_runs_own_videos_are_as_they_were(run: Path, named: list[str]) -> None:
    data = evaluation.parse(["--checkpoint", str(run), *named], "").data
    assert (data.root, data.validation_annotations) == ("/mine/videos", "/mine/held_out.json")
    words = ["--checkpoint", str(run), "--output-dir", str(run / "out"), *named]
    assert latents.parse(words, "").data.root == "/mine/videos"


def test_another_list_has_neither_the_runs_root_nor_its_held_out_videos(run: Path) -> None:
    other = ["--checkpoint", str(run), "--data.annotations", "/other/list.json"]
    data = evaluation.parse(other, "").data
    assert (data.root, data.validation_annotations, data.split_by) == ("", "", "")
    assert data.stream == 1
    given = evaluation.parse([*other, "--data.root", "/mine/videos"], "").data
    assert given.root == "/mine/videos"
    own = latents.parse([*other, "--output-dir", str(run / "out")], "").data
    assert (own.root, own.stream) == ("/other", 1)
