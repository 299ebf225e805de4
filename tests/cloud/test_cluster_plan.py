"""What cluster.yaml and its account's stack would start on AWS, asked of a pretended AWS."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.cli.config import read_yaml
from jobs.cli.yaml_file import repeated_keys
from tests.cluster.account import ADMIN, TEMPLATE, edited, make_stack, volume_properties
from tests.helpers.jobs_run import REPOSITORY

REGION = "us-west-2"
CLUSTER: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The outputs of the stack in an account of its own."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(home))  # Ray leaves its key pair there.
        patch.chdir(REPOSITORY)
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text("token")
        yield make_stack()


@pytest.fixture(scope="module")
def plan(account: dict[str, str]) -> dict[str, Any]:
    """cluster.yaml as Ray would launch it."""
    config = prepare_config(edited(CLUSTER, account))
    validate_config(config)
    launched: dict[str, Any] = _bootstrap_config(config, no_config_cache=True)
    return launched


def node_types(plan: dict[str, Any], role: str) -> dict[str, dict[str, Any]]:
    kinds = plan["available_node_types"].items()
    return {name: kind for name, kind in kinds if kind["labels"]["role"] == role}


def test_the_file_has_three_edits() -> None:
    text = (REPOSITORY / "cluster.yaml").read_text()
    assert [text.count(f"# EDIT {n}.") for n in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert text.count("ami-EDIT1") == text.count("sg-EDIT2") == text.count("EDIT3") == 1


@pytest.mark.parametrize("file", ["cluster.yaml", "cloud/aws_account.yaml", "kuberay/rayjob.yaml"])
def test_no_key_stands_twice(file: str) -> None:
    """YAML, and so Ray, would take the last without a word."""
    documents = list(yaml.compose_all((REPOSITORY / file).read_text(), yaml.SafeLoader))
    assert documents
    assert [key for document in documents for key in repeated_keys(document)] == []


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(CLUSTER | {"max_worker": 3}))


def test_every_type_exists_and_has_resources(plan: dict[str, Any]) -> None:
    """A type that does not exist would have none: nothing would ever scale, and nothing fail."""
    assert plan["available_node_types"]["head"]["resources"]["CPU"] == 0
    for kind in node_types(plan, "decode").values():
        assert kind["resources"]["CPU"] >= 8
        assert "GPU" not in kind["resources"]
    for kind in node_types(plan, "train").values():
        assert kind["resources"]["GPU"] == 4


def test_spot_goes_first_and_on_demand_stands_behind(plan: dict[str, Any]) -> None:
    head = plan["available_node_types"]["head"]["node_config"]
    assert "InstanceMarketOptions" not in head
    for kind in node_types(plan, "decode").values():
        assert kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    spot: list[Any] = []
    on_demand: list[Any] = []
    for kind in node_types(plan, "train").values():
        is_spot = "InstanceMarketOptions" in kind["node_config"]
        assert kind["labels"]["market"] == ("spot" if is_spot else "on-demand")
        (spot if is_spot else on_demand).append(kind)
    assert len({kind["node_config"]["InstanceType"] for kind in spot}) >= 2
    assert min(kind["priority"] for kind in spot) > max(kind["priority"] for kind in on_demand)


def test_all_nodes_but_the_head_come_and_go(plan: dict[str, Any]) -> None:
    for name, kind in plan["available_node_types"].items():
        assert kind.get("min_workers", 0) == 0
        assert (kind["max_workers"] > 0) == (name != "head")
    # A run restarts within minutes; its GPU nodes wait longer than that.
    assert all(kind["idle_timeout_s"] >= 600 for kind in node_types(plan, "train").values())


def test_every_machine_is_closed_and_encrypted(
    plan: dict[str, Any], account: dict[str, str]
) -> None:
    for name, kind in plan["available_node_types"].items():
        config = kind["node_config"]
        profile = "taehv-head" if name == "head" else "taehv-node"
        assert config["IamInstanceProfile"] == {"Name": profile}
        assert config["SecurityGroupIds"] == [account["Edit2SecurityGroupId"]]
        assert config["ImageId"] == account["Edit1ImageId"]
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert config["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        for disk in config["BlockDeviceMappings"]:
            assert disk["Ebs"]["Encrypted"] is True
            assert disk["Ebs"]["VolumeType"] == "gp3"
        zones = {
            subnet["AvailabilityZone"]
            for subnet in boto3.client("ec2").describe_subnets(SubnetIds=config["SubnetIds"])[
                "Subnets"
            ]
        }
        assert zones == {"us-west-2a", "us-west-2b"}


def test_the_head_starts_where_the_volume_is(plan: dict[str, Any]) -> None:
    """Ray tries the first subnet first."""
    ec2 = boto3.client("ec2")
    first = plan["available_node_types"]["head"]["node_config"]["SubnetIds"][0]
    (subnet,) = ec2.describe_subnets(SubnetIds=[first])["Subnets"]
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "tag:Name", "Values": ["taehv-state"]}])[
        "Volumes"
    ]
    assert volume["AvailabilityZone"] == subnet["AvailabilityZone"]
    assert volume_properties()["Encrypted"] is True


def test_no_port_is_open_to_the_world(plan: dict[str, Any], account: dict[str, str]) -> None:
    """Nor has Ray opened one in the group, or made another."""
    group = account["Edit2SecurityGroupId"]
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    assert not [g for g in groups if "ray" in g["GroupName"]]
    (own,) = (g for g in groups if g["GroupId"] == group)
    allowed = [
        (rule.get("FromPort"), [r["CidrIp"] for r in rule["IpRanges"]])
        for rule in own["IpPermissions"]
        if not rule["UserIdGroupPairs"]
    ]
    assert allowed == [(22, [ADMIN])]
    (among,) = (rule for rule in own["IpPermissions"] if rule["UserIdGroupPairs"])
    assert [pair["GroupId"] for pair in among["UserIdGroupPairs"]] == [group]
    assert not among["IpRanges"]


def policies(role: str) -> list[dict[str, Any]]:
    """The documents of all policies of a role."""
    iam = boto3.client("iam")
    assert iam.list_role_policies(RoleName=role)["PolicyNames"] == []
    attached = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
    versions = (iam.get_policy_version(PolicyArn=p["PolicyArn"], VersionId="v1") for p in attached)
    return [version["PolicyVersion"]["Document"] for version in versions]


def test_roles_allow_what_is_needed_and_no_more(account: dict[str, str]) -> None:
    iam = boto3.client("iam")
    profiles = iam.list_instance_profiles()["InstanceProfiles"]
    roles = {p["InstanceProfileName"]: [r["RoleName"] for r in p["Roles"]] for p in profiles}
    assert roles == {"taehv-head": ["taehv-head"], "taehv-node": ["taehv-node"]}
    (storage,) = policies("taehv-node")
    bucket = f"arn:aws:s3:::{account['Edit3Bucket']}"
    for statement in storage["Statement"]:
        assert statement["Resource"] in (bucket, f"{bucket}/*")
        assert all(action.startswith("s3:") and "*" not in action for action in statement["Action"])
    head = policies("taehv-head")
    assert storage in head
    (autoscaler,) = (policy for policy in head if policy != storage)
    for statement in autoscaler["Statement"]:
        actions = statement["Action"]
        actions = [actions] if isinstance(actions, str) else actions
        assert not any("*" in action for action in actions)
        if statement["Resource"] == "*":
            assert all(action.startswith("ec2:Describe") for action in actions)
        if "ec2:TerminateInstances" in actions or "iam:PassRole" in actions:
            assert "Condition" in statement


def test_the_template_is_what_cloudformation_takes() -> None:
    lint = Path(sys.executable).with_name("cfn-lint")
    result = subprocess.run(
        [lint, "--regions", REGION, "--", TEMPLATE], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_commands_keep_to_loopback_and_ask_for_the_token() -> None:
    head = " ".join(CLUSTER["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_AUTH_MODE=token" in (REPOSITORY / "cloud" / "setup_node.sh").read_text()
    assert "~/.ray/auth_token" in CLUSTER["file_mounts"]
    assert "--host 127.0.0.1" in (REPOSITORY / "cloud" / "start_mlflow.sh").read_text()


def test_what_is_sent_to_the_nodes_is_there_and_whole(plan: dict[str, Any]) -> None:
    sent = {path for path in CLUSTER["file_mounts"].values() if not path.startswith("~")}
    for path in sent:
        assert (REPOSITORY / path).exists(), path
    assert {"jobs", "taehv", "data_pipeline", "configs", "cloud", "requirements.txt"} <= sent


def test_the_clusters_defaults_are_a_config() -> None:
    config = read_yaml(REPOSITORY / "configs" / "cluster.yaml")
    labels = {kind["labels"]["role"] for kind in CLUSTER["available_node_types"].values()}
    assert config.cluster.train_nodes.partition("=")[2] in labels
    assert config.data.decode_nodes.partition("=")[2] in labels
    # A default batch feeds as many workers as one node has GPUs.
    config.train.layout(config.cluster.max_workers)
