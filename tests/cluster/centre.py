"""The data centre behind the pretended EC2: `python -m tests.cluster.centre FOLDER` in the lab.

It boots a machine for every instance that moto says is running, ends it when the instance is
terminated, and is the metadata service of them all. What it did is in `FOLDER/events.jsonl`. A file
`FOLDER/notices/INSTANCE` is a spot notice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3

POLL_SECONDS = 0.5
DISK_BYTES = 64 * 2**20
METADATA = "169.254.169.254"
REGION = "us-west-2"


class Centre:
    """Machines by their instance's id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instances: dict[str, dict[str, Any]] = {}
        """Of the machines that were booted, by id."""
        self._processes: dict[str, int] = {}
        self._plugged: set[tuple[str, str]] = set()
        self._ec2 = boto3.client("ec2")

    def look(self) -> None:
        """Boot and end what has changed since the last look."""
        pages = self._ec2.get_paginator("describe_instances").paginate()
        for page in pages:
            for reservation in page["Reservations"]:
                for instance in reservation["Instances"]:
                    self._follow(instance)

        for volume in self._ec2.describe_volumes()["Volumes"]:
            for attachment in volume["Attachments"]:
                if attachment["Device"] == "/dev/sdf":  # Not the one that it boots from.
                    self._plug(volume["VolumeId"], attachment["InstanceId"])

    def _plug(self, volume: str, instance: str) -> None:
        """Give a machine a disk, which keeps what is on it from one machine to the next."""
        folder = self.folder / "machines" / instance / "root" / "devices"
        if (volume, instance) in self._plugged or instance not in self._processes:
            return
        self._plugged.add((volume, instance))
        image = self.folder / f"{volume}.img"
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(DISK_BYTES)
        command = ["losetup", "--find", "--show", str(image)]
        device = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        folder.mkdir(exist_ok=True)
        name = f"nvme-Amazon_Elastic_Block_Store_{volume.replace('-', '')}"
        (folder / name).symlink_to(device.strip())

    def _follow(self, instance: dict[str, Any]) -> None:
        name, state = instance["InstanceId"], instance["State"]["Name"]
        if state == "running" and name not in self.instances:
            self.instances[name] = instance
            threading.Thread(target=self._boot, args=(instance,), daemon=True).start()
        elif state in ("shutting-down", "terminated", "stopped") and name in self._processes:
            os.kill(self._processes.pop(name), signal.SIGKILL)
            self._tell("end", instance)

    def _boot(self, instance: dict[str, Any]) -> None:
        name = instance["InstanceId"]
        keys = self._ec2.describe_key_pairs(IncludePublicKey=True)["KeyPairs"]
        key = next(k["PublicKey"] for k in keys if k["KeyName"] == instance["KeyName"])
        addresses = [instance["PrivateIpAddress"], instance["PublicIpAddress"]]
        script = Path(__file__).with_name("machine.sh")
        booted = subprocess.run(
            [script, name, *addresses, key], stdout=subprocess.PIPE, text=True, check=True
        )
        self._processes[name] = int(booted.stdout)
        self._tell("boot", instance)

    def _tell(self, event: str, instance: dict[str, Any]) -> None:
        row = {
            "event": event,
            "time": time.time(),
            "instance": instance["InstanceId"],
            "type": instance["InstanceType"],
            "market": instance.get("InstanceLifecycle", "on-demand"),
            "address": instance["PrivateIpAddress"],
        }
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


class Metadata(BaseHTTPRequestHandler):
    """IMDSv2: it knows who asks by the address."""

    centre: Centre
    protocol_version = "HTTP/1.1"
    TOKEN = "token-of-the-lab"

    def do_PUT(self) -> None:
        wanted = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        right = self.path == "/latest/api/token" and wanted is not None
        self._answer(200 if right else 400, self.TOKEN)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != self.TOKEN:
            self._answer(401, "")
            return
        caller = self.client_address[0]
        known = (i for i in self.centre.instances.values() if i["PrivateIpAddress"] == caller)
        instance = next(known, None)
        text = None if instance is None else self._fact(instance)
        self._answer(404 if text is None else 200, text or "")

    def _fact(self, instance: dict[str, Any]) -> str | None:
        facts = {
            "/latest/meta-data/placement/region": REGION,
            "/latest/meta-data/placement/availability-zone": instance["Placement"][
                "AvailabilityZone"
            ],
            "/latest/meta-data/instance-id": instance["InstanceId"],
        }
        if self.path in facts:
            return str(facts[self.path])
        if self.path == "/latest/meta-data/spot/instance-action":
            notice = self.centre.folder / "notices" / instance["InstanceId"]
            return notice.read_text() if notice.exists() else None
        return None

    def _answer(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent."""


def main() -> None:
    centre = Centre(Path(sys.argv[1]))
    Metadata.centre = centre
    server = ThreadingHTTPServer((METADATA, 80), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        centre.look()
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
