"""The head's lasting volume is found and attached, in a pretended EC2."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from cloud.attach_disk import DiskError, attach, device_of, find_volume

ZONE = "us-west-2a"


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("ec2", region_name="us-west-2")


def make_volume(ec2: Any, zone: str) -> str:
    tags = [{"ResourceType": "volume", "Tags": [{"Key": "Name", "Value": "state"}]}]
    made = ec2.create_volume(AvailabilityZone=zone, Size=1, TagSpecifications=tags)
    return str(made["VolumeId"])


def start(ec2: Any) -> str:
    image = ec2.describe_images()["Images"][0]["ImageId"]
    place = {"AvailabilityZone": ZONE}
    made = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, Placement=place)
    return str(made["Instances"][0]["InstanceId"])


def test_the_volume_of_the_zone_is_attached(ec2: Any) -> None:
    make_volume(ec2, "us-west-2b")
    own = make_volume(ec2, ZONE)
    volume = find_volume(ec2, "state", ZONE)
    assert volume["VolumeId"] == own
    instance = start(ec2)
    for _ in range(2):  # A second time, it is there already.
        attach(ec2, volume, instance, patience=0)
        (now,) = ec2.describe_volumes(VolumeIds=[own])["Volumes"]
        assert [a["InstanceId"] for a in now["Attachments"]] == [instance]


def test_a_volume_of_another_head_is_waited_for_and_named(ec2: Any) -> None:
    make_volume(ec2, ZONE)
    volume = find_volume(ec2, "state", ZONE)
    first, second = start(ec2), start(ec2)
    attach(ec2, volume, first, patience=0)
    with pytest.raises(DiskError, match=first):
        attach(ec2, volume, second, patience=0)


@pytest.mark.parametrize(
    ("zones", "message"),
    [([], "anywhere"), (["us-west-2b"], "only in us-west-2b"), ([ZONE, ZONE], "2 volumes")],
)
def test_no_such_volume(ec2: Any, zones: list[str], message: str) -> None:
    for zone in zones:
        make_volume(ec2, zone)
    with pytest.raises(DiskError, match=message):
        find_volume(ec2, "state", ZONE)


def test_the_device_is_found_by_the_volumes_id(tmp_path: Path) -> None:
    device = tmp_path / "nvme1n1"
    device.touch()
    (tmp_path / "nvme-Amazon_Elastic_Block_Store_vol0abc").symlink_to(device)
    assert device_of("vol-0abc", tmp_path, patience=0) == device
    with pytest.raises(DiskError, match="does not appear"):
        device_of("vol-0def", tmp_path, patience=0)
