"""The stack of cloud/aws_account.yaml, made in a pretended account."""

from __future__ import annotations

from typing import Any

import boto3
from cfnlint.decode import cfn_yaml

from tests.helpers.jobs_run import REPOSITORY

TEMPLATE = REPOSITORY / "cloud" / "aws_account.yaml"
IMAGE_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04"
ADMIN = "203.0.113.7/32"


def make_stack() -> dict[str, str]:
    """The outputs of the stack. An image of moto's own stands for the one that AWS publishes."""
    ec2, ssm, cloudformation = (boto3.client(n) for n in ("ec2", "ssm", "cloudformation"))
    image = ec2.describe_images()["Images"][0]["ImageId"]
    # Names that begin with /aws/ are AWS's own.
    ssm.put_parameter(Name="/image", Value=image, Type="String")
    template = TEMPLATE.read_text()
    assert IMAGE_PARAMETER in template
    cloudformation.create_stack(
        StackName="taehv",
        TemplateBody=template.replace(f"{IMAGE_PARAMETER}/latest/ami-id", "/image"),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": "AdminCidr", "ParameterValue": ADMIN}],
    )
    (stack,) = cloudformation.describe_stacks(StackName="taehv")["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    # What moto leaves out of a volume.
    (volume,) = ec2.describe_volumes()["Volumes"]
    ec2.create_tags(Resources=[volume["VolumeId"]], Tags=volume_properties()["Tags"])
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def volume_properties() -> dict[str, Any]:
    """Of the template's volume."""
    properties: dict[str, Any] = cfn_yaml.load(str(TEMPLATE))["Resources"]["Volume"]["Properties"]
    return properties


def edited(cluster: dict[str, Any], outputs: dict[str, str]) -> dict[str, Any]:
    """cluster.yaml with the three edits that its user makes."""
    edits = {
        "ami-EDIT1": outputs["Edit1ImageId"],
        "sg-EDIT2": outputs["Edit2SecurityGroupId"],
        "EDIT3": outputs["Edit3Bucket"],
    }

    def apply(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: apply(content) for key, content in value.items()}
        if isinstance(value, list):
            return [apply(content) for content in value]
        if isinstance(value, str):
            for mark, right in edits.items():
                value = value.replace(mark, right)
        return value

    result: dict[str, Any] = apply(cluster)
    return result
