"""jobs/doctor.py asks stores: a bucket, a tracking server, mounts, logs; each real, on loopback."""

import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.aws import node_provider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

from data_pipeline.clips import open_sources
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from jobs.diagnosis.autoscaler import (
    Autoscaler,
    judge_autoscaler,
    mistyped_instances,
    read_config,
    read_head,
    read_launches,
    read_set_up_failures,
)
from jobs.diagnosis.data import take_sample
from jobs.diagnosis.finding import Level
from jobs.diagnosis.machine import PROGRAM, describe
from jobs.diagnosis.plain_errors import plain_error
from jobs.diagnosis.results import mark, try_store
from jobs.tracking.client import find_fault
from jobs.tracking.config import TrackingConfig
from tests.helpers.data_videos import write_dataset
from tests.helpers.jobs_run import REPOSITORY
from tests.helpers.s3_server import S3Server, s3_server

MISTYPED = "g6.12xlagre"


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def test_a_bucket_takes_a_file_and_gives_it_back(store: S3Server) -> None:
    store.put("runs/there", b"")
    test = try_store(f"s3://runs/a{store.options}", "here")
    assert test.error == ""
    assert test.write_seconds > 0
    assert test.read_seconds > 0


def test_a_bucket_that_is_not_there_is_told(store: S3Server) -> None:
    assert "no such bucket" in try_store(f"s3://nowhere/a{store.options}", "here").error


class Denying(BaseHTTPRequestHandler):
    """Stands for a store whose policy is against it."""

    def refuse(self) -> None:
        content = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""


def test_a_bucket_that_may_not_be_read_is_told(store: S3Server) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Denying)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = f"?endpoint_override=127.0.0.1:{server.server_address[1]}&scheme=http"
    try:
        assert "access is denied" in try_store(f"s3://closed/a{options}", "here").error
        with pytest.raises(DataError) as caught:
            open_sources(DataConfig(annotations=f"s3://closed/a.json{options}"), seed=0, batch=2)
    finally:
        server.shutdown()
        server.server_close()
    assert "access is denied" in plain_error(str(caught.value))


def test_a_list_in_a_bucket_that_is_not_there_is_told(store: S3Server) -> None:
    config = DataConfig(annotations=f"s3://nowhere/a.json{store.options}")
    with pytest.raises(DataError) as caught:
        open_sources(config, seed=0, batch=2)
    assert "nowhere" in plain_error(str(caught.value))


def test_a_folder_is_left_as_it_was(tmp_path: Path) -> None:
    assert try_store(str(tmp_path / "runs" / "a"), "here").error == ""
    with mark(str(tmp_path / "runs" / "a")) as marked:
        assert Path(marked).is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run_dir = str(tmp_path / "file" / "run")
    assert try_store(run_dir, "here").error
    with mark(run_dir) as marked:
        assert marked == ""


def test_videos_are_read_and_decoded(tmp_path: Path) -> None:
    annotations = write_dataset(tmp_path, count=6)
    config = DataConfig(annotations=str(annotations), height=16, width=24, num_frames=5)
    source, _ = open_sources(config, seed=0, batch=2)
    sample = take_sample(source, "here")
    assert (sample.error, sample.unreadable, sample.unusable) == ("", (), ())
    assert sample.bytes_read > 0
    assert sample.clips > 0
    assert sample.clips_per_second > 0

    for video in tmp_path.glob("*.mp4"):
        video.unlink()
    sample = take_sample(source, "here")
    assert sample.videos_read == 0
    assert "No such file" in sample.unreadable[0]


def test_a_tracking_server_that_is_dead_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    uri = f"http://user:secret@127.0.0.1:{port}"
    place, fault = find_fault(TrackingConfig(uri=uri), tmp_path / "run")
    assert place == f"http://127.0.0.1:{port}"
    assert fault
    assert "secret" not in fault


def test_a_tracking_file_is_not_made_by_asking(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "a"
    place, fault = find_fault(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"), run_dir)
    assert (place, fault) == (f"sqlite:///{tmp_path}/mlflow.db", "")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mlflow.db").write_text("something else, and long enough to be looked at" * 100)
    assert find_fault(TrackingConfig(uri=place), run_dir)[1]


def test_a_machine_is_described(tmp_path: Path) -> None:
    """The mount that is measured is given, since /dev/shm is what it is here."""
    machine = describe(["ray", "no-such-package"], [str(tmp_path), "/not/there"], str(tmp_path))
    assert machine.versions["ray"][0].isdigit()
    assert machine.versions["no-such-package"] == "none"
    assert len(machine.versions[PROGRAM]) == 8
    assert machine.missing == ("/not/there",)
    assert machine.shm_bytes > 2**20
    assert describe([], [], "/not/there").shm_bytes == 0


def offered(instance: str, cpus: int, gpus: int) -> dict[str, Any]:
    """What AWS says of an instance type, as far as Ray asks."""
    facts: dict[str, Any] = {
        "InstanceType": instance,
        "VCpuInfo": {"DefaultVCpus": cpus},
        "MemoryInfo": {"SizeInMiB": 2**17},
    }
    if gpus:
        facts["GpuInfo"] = {"Gpus": [{"Name": "L4", "Manufacturer": "NVIDIA", "Count": gpus}]}
    return facts


def test_a_mistyped_instance_type_has_no_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own completion of the shipped cluster.yaml; what AWS offers is given."""
    cluster: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    kinds = cluster["available_node_types"]
    there = [
        offered(kind["node_config"]["InstanceType"], 16, 4 * (kind["labels"]["role"] == "train"))
        for kind in kinds.values()
    ]
    monkeypatch.setattr(node_provider, "list_ec2_instances", lambda *_: there)
    complete = node_provider.AWSNodeProvider.fillout_available_node_types_resources
    types = {kind.name: kind for kind in read_config(complete(cluster))[0]}
    assert "head" not in types
    assert types["train-spot-a10g"].gpus == 4
    assert types["train-spot-a10g"].has("role=train")
    assert types["decode-spot"].resources["CPU"] == 16

    kinds["train-spot-l4"]["node_config"]["InstanceType"] = MISTYPED
    # `ray up` prints this and goes on with what it has: not one type has its resources.
    with pytest.raises(ValueError, match=MISTYPED):
        complete(cluster)
    left, most = read_config(cluster)
    assert most == cluster["max_workers"]
    assert {kind.name for kind in left if kind.resources} == set()
    assert mistyped_instances([kind.instance for kind in left]) == {MISTYPED: "g6.12xlarge"}


class Refusing:
    """Stands for the cloud."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def create_node_with_resources_and_labels(self, *_: object) -> None:
        if self._error:
            raise self._error


class Reader:
    """The part of a configuration's reader that a launch needs."""

    def get_cached_autoscaling_config(self) -> AutoscalingConfig:
        kinds = {
            name: {"node_config": {}, "resources": {}, "max_workers": 1}
            for name in ("head", "spot", "demand")
        }
        content = {
            "cluster_name": "x",
            "max_workers": 2,
            "auth": {},
            "provider": {"type": "aws"},
            "available_node_types": kinds,
            "head_node_type": "head",
        }
        return AutoscalingConfig(content, skip_content_hash=True)


def test_the_log_of_rays_launcher_is_read(tmp_path: Path) -> None:
    """Ray's own code writes the lines, in the form of its monitor's log."""
    refused = NodeLaunchException("InsufficientInstanceCapacity", "We have none.", None)
    handler = logging.FileHandler(tmp_path / "monitor.log")
    form = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"
    handler.setFormatter(logging.Formatter(form))
    logger = logging.getLogger("ray.autoscaler.v2.instance_manager.node_provider")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        for error, kind in ((refused, "demand"), (None, "demand"), (refused, "spot")):
            adapter = NodeProviderAdapter(Refusing(error), Reader())
            adapter._launch_nodes_by_type(kind, 1, "request")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
    demand, spot = sorted(read_head(tmp_path).launches, key=lambda x: x.node_type)
    assert (demand.node_type, demand.error) == ("demand", "")
    assert spot.node_type == "spot"
    assert "InsufficientInstanceCapacity" in spot.error
    assert spot.when[:2] == "20"


def test_the_config_of_the_running_monitor_is_read(tmp_path: Path) -> None:
    """A process with the options of a cluster's monitor stands for it."""
    file = tmp_path / "ray_bootstrap_config.yaml"
    kinds = {"head": {"resources": {"CPU": 0}}, "train": {"resources": {"GPU": 4}}}
    content = {"max_workers": 3, "head_node_type": "head", "available_node_types": kinds}
    file.write_text(yaml.safe_dump(content))
    (tmp_path / "monitor.log").write_text(CRASHED)
    options = [f"--logs-dir={tmp_path}", f"--autoscaling-config={file}"]
    waits = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", *options]
    with subprocess.Popen(waits, stdout=subprocess.PIPE) as monitor:
        assert monitor.stdout
        monitor.stdout.readline()
        facts = read_head(tmp_path)
        elsewhere = read_head(tmp_path / "elsewhere")
        monitor.kill()
    assert facts.config_file == str(file)
    assert [(kind.name, kind.gpus, kind.max_nodes) for kind in facts.types] == [("train", 4, 3)]
    assert facts.crash == "KeyError: 'resources'"
    assert elsewhere.config_file == ""


CRASHED = """2026-01-01 10:00:00,000\tERROR monitor.py:190 -- Error in monitor loop
Traceback (most recent call last):
  File "monitor.py", line 188, in run
KeyError: 'resources'
"""


def test_machines_on_which_ray_did_not_start_are_told() -> None:
    said = "Ray installation failed on instance i-1: setup command `bash setup_node.sh` failed."
    log = f"2026-01-01 10:00:00,000\tINFO threaded_ray_installer.py:81 -- {said}\n"
    (failure,) = read_set_up_failures(3 * log)
    assert failure == f"2026-01-01 10:00:00: {said}"
    finding = judge_autoscaler(Autoscaler("/c.yaml", set_up_failures=(failure,)))[0]
    assert finding.level == Level.WARNING
    assert said in finding.message


def test_the_older_autoscaler_is_read_too() -> None:
    log = (
        "2026-01-01 10:00:00,000\tINFO node_launcher.py:170 -- NodeLauncher0: Failed to launch 2 "
        "node(s) of type spot. (VcpuLimitExceeded): You have requested more vCPU capacity."
    )
    (launch,) = read_launches(log)
    assert launch.node_type == "spot"
    assert launch.error.startswith("(VcpuLimitExceeded)")
