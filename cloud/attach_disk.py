"""Attaches this machine's lasting volume, the one tagged Name=NAME in its zone, and mounts it:

python cloud/attach_disk.py --name taehv-state --folder ~/state
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

# Run as a script, Python looks for imports in cloud/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cloud.metadata import Aws

PATIENCE_SECONDS = 120.0
"""A head that was just ended holds the volume until it is shut down."""

DEVICES = Path("/dev/disk/by-id")
"""Where a volume appears under its own id, whatever name the kernel gives it."""


class DiskError(RuntimeError):
    """No volume, or one that cannot be had."""


def find_volume(ec2: Any, name: str, zone: str) -> dict[str, Any]:
    """The description of the volume. Raises DiskError unless there is exactly one."""
    filters = [{"Name": "tag:Name", "Values": [name]}]
    volumes = ec2.describe_volumes(Filters=filters)["Volumes"]
    here = [volume for volume in volumes if volume["AvailabilityZone"] == zone]
    if len(here) == 1:
        volume: dict[str, Any] = here[0]
        return volume
    if here:
        raise DiskError(f"{len(here)} volumes in {zone} have the tag Name={name}; keep one")
    elsewhere = sorted({volume["AvailabilityZone"] for volume in volumes})
    where = f"only in {', '.join(elsewhere)}" if elsewhere else "anywhere"
    raise DiskError(
        f"no volume in {zone} has the tag Name={name}, {where}: the head must start in the zone of "
        "the volume, the first of availability_zone in cluster.yaml"
    )


def attach(ec2: Any, volume: dict[str, Any], instance: str, patience: float) -> None:
    """Attach `volume` to `instance`, waiting for whoever holds it to let go. Raises DiskError."""
    identity = volume["VolumeId"]
    end = time.monotonic() + patience
    while True:
        (now,) = ec2.describe_volumes(VolumeIds=[identity])["Volumes"]
        holders = [attachment["InstanceId"] for attachment in now["Attachments"]]
        if instance in holders:
            return
        if not holders:
            try:
                ec2.attach_volume(VolumeId=identity, InstanceId=instance, Device="/dev/sdf")
            except ClientError as error:
                raise DiskError(f"{identity} cannot be attached: {error}") from error
            return
        if time.monotonic() > end:
            raise DiskError(f"{identity} is attached to {holders[0]}: is another cluster up?")
        time.sleep(2)


def device_of(volume: str, devices: Path, patience: float) -> Path:
    """The device that the volume appears as. Raises DiskError where it does not."""
    link = devices / f"nvme-Amazon_Elastic_Block_Store_{volume.replace('-', '')}"
    end = time.monotonic() + patience
    while not link.exists():
        if time.monotonic() > end:
            raise DiskError(f"{volume} is attached, but {link} does not appear")
        time.sleep(0.5)
    return link.resolve()


def mount(device: Path, folder: Path) -> None:
    """Mount `device` at `folder`, with a file system if it has none. Raises CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_mount():
        return
    kind = subprocess.run(["sudo", "blkid", "-o", "value", "-s", "TYPE", device], check=False,
                          capture_output=True, text=True)  # fmt: skip
    # 2: blkid has looked, and there is nothing. Any other failure must not cost a file system.
    if kind.returncode == 2:
        subprocess.run(["sudo", "mkfs.ext4", "-q", device], check=True)
    elif kind.returncode:
        raise DiskError(f"blkid {device}: {kind.stderr.strip()}")
    subprocess.run(["sudo", "mount", device, folder], check=True)
    subprocess.run(["sudo", "chown", f"{os.getuid()}:{os.getgid()}", folder], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--name", required=True, help="the volume's tag Name")
    parser.add_argument("--folder", type=Path, required=True, help="where it is mounted")
    arguments = parser.parse_args()
    machine = Aws()
    try:
        ec2 = boto3.client("ec2", region_name=machine.region())
        volume = find_volume(ec2, arguments.name, machine.zone())
        attach(ec2, volume, machine.instance(), PATIENCE_SECONDS)
        devices = Path(os.environ.get("TAEHV_DEVICES", DEVICES))
        mount(device_of(volume["VolumeId"], devices, PATIENCE_SECONDS), arguments.folder)
    except (DiskError, ClientError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
