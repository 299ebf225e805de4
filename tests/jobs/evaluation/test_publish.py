"""Where an evaluation arrives besides its folder: MLflow's run and registry, TensorBoard."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from jobs.evaluate import main
from jobs.tracking.config import TrackingConfig
from jobs.tracking.tracker import Tracker
from tests.helpers.evaluate_run import CLIPS, export_small, make_videos, read_metrics


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def store(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def evaluate(weights: Path, annotations: Path, output: Path, *more: str) -> int:
    words = (
        f"--checkpoint {weights} --data.annotations {annotations} --output-dir {output} --overwrite"
        " --split all --num-samples 2 --clips-per-video 1 --num-videos 1 --worst-clips 1"
    )
    return main([*words.split(), *CLIPS, *more])


def test_everything_is_on_the_run_that_made_the_weights(tmp_path: Path) -> None:
    weights, videos = export_small(tmp_path / "runs" / "a"), make_videos(tmp_path / "videos", 3)
    run_dir, output = weights.parent, tmp_path / "out"
    tracker = Tracker(TrackingConfig(), run_dir, {})
    tracker.finish("KILLED")
    assert tracker.run_id is not None
    assert evaluate(weights, videos, output, "--tracking.tensorboard") == 0
    # A second evaluation gives the version new tags, and makes no other.
    assert evaluate(weights, videos, output) == 0

    client, results = store(tmp_path / "runs"), read_metrics(output)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "KILLED"
    psnr = results["methods"]["network"]["scores"]["psnr"]["mean"]
    assert run.data.metrics["eval/psnr"] == pytest.approx(psnr)
    assert "eval_down_and_up/psnr" in run.data.metrics
    assert run.data.tags["verdict"] == results["verdict"]["overall"]
    listed = {f.path for f in client.list_artifacts(tracker.run_id, "evaluation")}
    assert {"evaluation/summary_report.html", "evaluation/metrics.json"} <= listed
    pictures = client.list_artifacts(tracker.run_id, "evaluation/latent_visualizations")
    assert len(pictures) == 1
    (version,) = client.search_model_versions("name = 'taehv'")
    assert version.run_id == tracker.run_id
    assert version.tags["verdict"] == results["verdict"]["overall"]
    assert version.tags["sha256"] == results["checkpoint"]["sha256"]
    assert version.tags["verdict.SSIM"].startswith(("pass", "warning", "failure"))
    assert Path(urlsplit(version.source).path).read_bytes() == weights.read_bytes()
    assert json.loads((run_dir / "mlflow.json").read_text()) == {"run_id": tracker.run_id}


def test_weights_of_no_run_leave_no_trace(tmp_path: Path) -> None:
    weights, videos = export_small(tmp_path / "w"), make_videos(tmp_path / "videos", 3)
    assert evaluate(weights, videos, tmp_path / "out") == 0
    assert not list(tmp_path.rglob("mlflow*"))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]
    }


def test_event_files_hold_the_same_rows(tmp_path: Path) -> None:
    """Also where MLflow is off; a run that goes on writes its last steps anew."""
    config = TrackingConfig(enabled=False, tensorboard=True)
    first = Tracker(config, tmp_path, {})
    for step in (1, 2, 3):
        first.log({"step": step, "train/loss": 1 / step}, step)
    first.finish()
    second = Tracker(config, tmp_path, {})
    second.log({"step": 3, "train/loss": 0.25, "val/psnr": 20.0}, 3)
    second.finish()
    found = scalars(tmp_path / "tensorboard")
    assert found["train/loss"] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert found["val/psnr"] == [(3, 20.0)]
