"""What the tests do in the lab: the cloud's services, the user's commands, a look at the machines.

Everything here runs inside lab.sh, whose end ends it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import yaml

from tests.cluster.account import edited, make_stack
from tests.helpers.doctor_report import worst_by_area
from tests.helpers.held import job_gates
from tests.helpers.hold import Hold
from tests.helpers.jobs_run import REPOSITORY

GATEWAY = "172.31.255.254"
"""Of the machines' network; the cloud's interfaces answer there."""

ENDPOINT = f"http://{GATEWAY}:5000"
DASHBOARD = "http://127.0.0.1:8265"

# What every shell of a machine reads first: the rest of its image is this machine itself.
IMAGE = f"""
export AWS_ENDPOINT_URL={ENDPOINT} RAY_USAGE_STATS_ENABLED=0
# In place of the profile's credentials: a client that misses them on a busy computer would go on
# without any, and moto then stores what it sends with its checksums in between.
export AWS_ACCESS_KEY_ID=node AWS_SECRET_ACCESS_KEY=secret
# /dev is that of the one computer.
export PATH=$HOME/bin:$PATH TAEHV_DEVICES=$HOME/devices
# Memory and cores are those of one computer, whatever number of machines it pretends to be.
export RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES=200000000 RAY_enable_worker_prestart=0
# Packages of a machine's own are found before those of the image.
export PYTHONPATH=$HOME/packages
export RAY_raylet_start_wait_time_s=120 OMP_NUM_THREADS=1
"""

# So small that a step takes a fraction of a second on a CPU.
JOB: dict[str, dict[str, Any]] = {
    "data": {"height": 32, "width": 32, "decode_nodes": "role=decode", "decode_cpus": 0.5},
    "model": {"encoder_width": 8, "decoder_widths": [16, 8, 8, 8]},
    "seraena": {"widths": [4, 8, 8, 8, 8, 8], "replay_gigabytes": 0.01},
    # The run is compared with one in another process, step by step: Soap, in directions in which
    # there is next to no gradient, makes more of what two workers round differently.
    "optim": {"optimizer": "adamw", "learning_rate": 3.0e-4, "warmup_steps": 2},
    "train": {"validation_clips": 2, "log_every": 1, "checkpoint_every": 10, "resume": "latest"},
    "cluster": {
        "gpu": "pretend",
        "train_nodes": "role=train",
        "decode_cpus": 1,
        "wait_minutes": 5,
        "resize_seconds": 20,
    },
}


class Lab:
    """The pretended cloud, from its start to the end of lab.sh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started = time.monotonic()
        self.instances: dict[str, str] = {}
        self._events = 0
        (folder / "notices").mkdir()
        self.hold = Hold(folder / "hold")
        """Of the job, by the name of its run's folder: all machines see it."""
        held = Path(job_gates.__file__).parent
        exports = f"export {job_gates.FOLDER}={self.hold.folder} PYTHONPATH=$PYTHONPATH:{held}\n"
        (folder / "image.env").write_text(IMAGE + exports)
        os.environ.update(
            AWS_ENDPOINT_URL=ENDPOINT,
            AWS_ACCESS_KEY_ID="admin",
            AWS_SECRET_ACCESS_KEY="secret",
            AWS_DEFAULT_REGION="us-west-2",
            RAY_AUTH_MODE="token",
            RAY_API_SERVER_ADDRESS=DASHBOARD,
        )
        self.background(sys.executable, "-m", "tests.cluster.aws", "-H", GATEWAY, "-p", "5000")
        wait_for(lambda: answers(GATEWAY, 5000), 60, "moto's server")
        self.outputs = make_stack()
        self.bucket = self.outputs["Edit3Bucket"]
        self.background(sys.executable, "-m", "tests.cluster.centre", str(folder))

    def say(self, line: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f} s] {line}", flush=True)

    def write_cluster(self, job: dict[str, Any], idle_seconds: float, one_gpu: str) -> Path:
        """The shipped cluster.yaml with the user's edits, and what a test needs besides: a small
        job, little patience, and nodes of one GPU, so that two workers need two. Each change is
        printed."""
        cluster = edited(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()), self.outputs)
        configs = Path("/tmp/configs")
        configs.mkdir(exist_ok=True)
        (configs / "cluster.yaml").write_text(yaml.safe_dump(job))
        self.say(f"edits: {self.outputs}")
        self._override(cluster, ["file_mounts", "~/taehv-trainer/configs"], str(configs))
        for name, kind in cluster["available_node_types"].items():
            if name != "head":
                path = ["available_node_types", name, "idle_timeout_s"]
                self._override(cluster, path, idle_seconds)
            if kind["labels"]["role"] == "train":
                path = ["available_node_types", name, "node_config", "InstanceType"]
                self._override(cluster, path, one_gpu)
        file = Path("/tmp/cluster.yaml")
        file.write_text(yaml.safe_dump(cluster, sort_keys=False))
        return file

    def _override(self, cluster: dict[str, Any], path: list[str], value: Any) -> None:
        place = cluster
        for key in path[:-1]:
            place = place[key]
        self.say(f"override: {'/'.join(path)}: {place[path[-1]]} -> {value}")
        place[path[-1]] = value

    def background(self, *command: str) -> subprocess.Popen[bytes]:
        """Runs until lab.sh ends; its output is in the lab's folder."""
        log = (
            self.folder / f"{Path(command[0]).name}.{len(list(self.folder.iterdir()))}.log"
        ).open("wb")
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY)

    def run(self, *command: str, seconds: float, check: bool = True) -> str:
        """Output of a command of the user's."""
        self.say("$ " + " ".join(command))
        result = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=seconds,
            cwd=REPOSITORY,
            check=False,
        )
        assert result.returncode == 0 or not check, result.stdout[-6000:]
        return result.stdout

    def events(self) -> list[dict[str, Any]]:
        """What the data centre did, in order."""
        file = self.folder / "events.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def alive(self, *types: str) -> list[str]:
        """Ids of the machines of these instance types that were booted and not ended."""
        rows = [row for row in self.events() if not types or row["type"] in types]
        ended = {row["instance"] for row in rows if row["event"] == "end"}
        return [
            row["instance"]
            for row in rows
            if row["event"] == "boot" and row["instance"] not in ended
        ]

    def address(self, instance: str) -> str:
        return next(str(row["address"]) for row in self.events() if row["instance"] == instance)

    def on(self, instance: str, command: str, seconds: float = 60) -> str:
        """Output of a shell command on a machine, in a login shell as Ray's own commands have."""
        (key,) = Path("/root/.ssh").glob("ray-autoscaler*.pem")
        ssh = f"ssh -i {key} -o StrictHostKeyChecking=no -o LogLevel=ERROR"
        return subprocess.run(
            [*ssh.split(), f"ubuntu@{self.address(instance)}", f"bash --login -c '{command}'"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=seconds,
            check=False,
        ).stdout

    def doctor(self, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """Exit code of jobs/doctor.py as a job, and its findings by area: of several in one area
        the worst."""
        command = ["ray", "job", "submit", "--", "python", "jobs/doctor.py", "--json", *options]
        job = Watched(self, command, quiet=True)
        code = job.finish(180)
        printed = re.search(r"^\{$.*?^\}$", job.text(), re.MULTILINE | re.DOTALL)
        assert printed, job.text()
        report = json.loads(printed[0])
        for finding in report["findings"]:
            self.say(f"{finding['level']:<8} {finding['area']}: {finding['message'][:150]}")
        return code, worst_by_area(report)

    def give_notice(self, instance: str, seconds: float = 120) -> None:
        """What the metadata service says two minutes before a spot instance goes; it goes."""
        end = datetime.now(UTC) + timedelta(seconds=seconds)
        notice = {"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
        (self.folder / "notices" / instance).write_text(json.dumps(notice))

        def end_it() -> None:
            boto3.client("ec2").terminate_instances(InstanceIds=[instance])

        timer = threading.Timer(seconds, end_it)
        timer.daemon = True
        timer.start()

    def object(self, key: str) -> bytes:
        """Content of an object of the bucket."""
        body = boto3.client("s3").get_object(Bucket=self.bucket, Key=key)["Body"]
        content: bytes = body.read()
        return content

    def keys(self, prefix: str) -> list[str]:
        """Of the bucket's objects."""
        pages = boto3.client("s3").get_paginator("list_objects_v2")
        listed = pages.paginate(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for page in listed for entry in page.get("Contents", [])]


class Watched:
    """A command of the user's whose output is followed while it runs, and, unless it is to be
    quiet, shown."""

    def __init__(self, lab: Lab, command: Sequence[str], quiet: bool = False) -> None:
        lab.say("$ " + " ".join(command))
        self._quiet = quiet
        self._lab = lab
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=REPOSITORY,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip())
            telling = not re.search(r"step +\d+", line) or self.last_step() % 20 == 0
            if telling and not self._quiet:
                self._lab.say("    " + line.rstrip()[:180])

    def text(self) -> str:
        return "\n".join(self._lines)

    def count(self, words: str) -> int:
        """Lines with these words."""
        return sum(words in line for line in list(self._lines))

    def last_step(self) -> int:
        """That a line has told of; 0 before."""
        for line in reversed(list(self._lines)):
            match = re.search(r"step +(\d+)", line)
            if match:
                return int(match[1])
        return 0

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float) -> None:
        """Until a condition holds, while the command runs; `what` says which."""
        end = time.monotonic() + seconds
        while not condition():
            assert self._process.poll() is None, f"ended before {what}:\n{self.text()}"
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{self.text()}"
            time.sleep(0.3)

    def wait_for_words(self, words: str, seconds: float) -> None:
        """Until a line has them, while the command runs."""
        self.wait_for(lambda: self.count(words), words, seconds)

    def finish(self, seconds: float) -> int:
        """Its exit code, once its last line has been read."""
        try:
            code = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {seconds:g} s:\n{self.text()}") from None
        self._reader.join(timeout=30)
        return code


def answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.5)
