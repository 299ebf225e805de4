"""The manifest for Kubernetes and the image: fields that exist, and the same names throughout."""

import copy
import re
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from jobs.cli.config import read_yaml
from tests.helpers.jobs_run import REPOSITORY

MANIFEST: dict[str, Any] = yaml.safe_load((REPOSITORY / "kuberay" / "rayjob.yaml").read_text())
SCHEMA = Draft202012Validator(
    yaml.safe_load((REPOSITORY / "tests/cloud/rayjob_schema.yaml").read_text())
)


def groups() -> list[dict[str, Any]]:
    cluster = MANIFEST["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_manifest_has_known_fields_only() -> None:
    SCHEMA.validate(MANIFEST)


def test_a_mistyped_field_is_found() -> None:
    wrong = copy.deepcopy(MANIFEST)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 4
    with pytest.raises(ValidationError, match="maxReplica"):
        SCHEMA.validate(wrong)


def test_it_agrees_with_the_code() -> None:
    cluster = MANIFEST["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    config = read_yaml(REPOSITORY / "configs" / "cluster.yaml")
    labels = [group["rayStartParams"]["labels"] for group in groups()]
    assert labels == ["role=head", config.data.decode_nodes, config.cluster.train_nodes]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_pods_get_what_they_ask_for_and_enough_shared_memory() -> None:
    for group in groups():
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            # Ray counts the limits; memory beyond a request can be taken away.
            assert container["resources"]["requests"] == container["resources"]["limits"]
            (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm")
            assert volumes[mount["name"]]["medium"] == "Memory"
            names = {variable["name"] for variable in container["env"]}
            assert {"TAEHV_STORAGE", "TAEHV_CONFIG"} <= names


def test_the_edits_are_called_out() -> None:
    text = (REPOSITORY / "kuberay" / "rayjob.yaml").read_text()
    assert "Replace EDIT1 by the image" in text
    assert text.count("image: EDIT1") == text.count("//EDIT2/") == 1


def test_the_base_image_has_no_default() -> None:
    """Nobody builds on a tag that moves, or on a digest that was made up."""
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands[:2] == ["ARG BASE", "FROM ${BASE}"]
    assert sum(line.startswith("FROM") for line in commands) == 1
    assert not re.search("sha256:[0-9a-f]", "\n".join(lines))
