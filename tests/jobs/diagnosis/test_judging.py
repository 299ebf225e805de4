"""jobs/doctor.py: what is made of the facts, for each sickness and for a healthy cluster."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig
from jobs.cli.config import ClusterConfig, Config
from jobs.diagnosis.autoscaler import Autoscaler, Launch, NodeType, judge_autoscaler
from jobs.diagnosis.capacity import count_workers, judge_cost, judge_workers
from jobs.diagnosis.collective import MESSAGE_BYTES, Reduction, judge_collective
from jobs.diagnosis.data import Sample, VideoList, judge_list, judge_sample
from jobs.diagnosis.finding import Finding, Level, worst
from jobs.diagnosis.gpus import judge_gpus
from jobs.diagnosis.labels import judge_labels
from jobs.diagnosis.machine import PROGRAM, Gpu, Machine, read_smi
from jobs.diagnosis.memory import (
    Estimate,
    estimate,
    judge_memory,
    judge_object_store,
    judge_shared_memory,
)
from jobs.diagnosis.nodes import Node, judge_versions
from jobs.diagnosis.output import SCHEMA_VERSION, format_finding, format_verdict, to_json
from jobs.diagnosis.results import StoreTest, judge_shared, judge_store, judge_tracking
from taehv.model import ModelConfig
from taehv.training.config import TrainConfig
from taehv.training.footprint import Footprint
from taehv.training.stages import Stage

GIB = 2**30
VERSIONS = {"ray": "2.60.0", "torch": "2.13.0", "python": "3.11.9", PROGRAM: "0123abcd"}
L4 = Gpu("NVIDIA L4", "550.54", 23 * GIB)
CONFIG = Config(
    data=DataConfig(decode_nodes="role=decode"),
    cluster=ClusterConfig(workers="1-4", gpu="yes", train_nodes="role=train", decode_cpus=8),
)

HEAD = Node(
    "h", "10.0.0.1", True, True, {"CPU": 0}, {"role": "head"}, Machine(VERSIONS, 4 * GIB, 16 * GIB)
)
TRAIN = Node(
    "t",
    "10.0.0.2",
    False,
    False,
    {"CPU": 48, "GPU": 4, "object_store_memory": 50 * GIB},
    {"role": "train", "ray.io/node-id": "t"},
    Machine(VERSIONS, 90 * GIB, 190 * GIB, (L4,) * 4),
)
DECODE = Node(
    "d",
    "10.0.0.3",
    False,
    False,
    {"CPU": 16, "object_store_memory": 9 * GIB},
    {"role": "decode"},
    Machine(VERSIONS, 15 * GIB, 32 * GIB, gpu_error="there is no nvidia-smi"),
)
NODES = [HEAD, TRAIN, DECODE]

SPOT = NodeType("spot", "g6.12xlarge", {"CPU": 48, "GPU": 4}, {"role": "train"}, 4, priority=30)
CPUS = NodeType("decode", "c6i.4xlarge", {"CPU": 16}, {"role": "decode"}, 4)
CLOUD = Autoscaler("/root/ray_bootstrap_config.yaml", (SPOT, CPUS), max_nodes=12)


def changed(node: Node, **facts: object) -> Node:
    """The same node with other facts of its machine."""
    assert node.machine
    return dataclasses.replace(node, machine=dataclasses.replace(node.machine, **facts))  # type: ignore[arg-type]


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def workers_finding(config: Config, nodes: Sequence[Node], cloud: Autoscaler) -> Finding:
    return only(judge_workers(config, count_workers(config, nodes, cloud), cloud))


def test_a_healthy_cluster_is_all_green() -> None:
    workers = count_workers(CONFIG, NODES, CLOUD)
    sample = Sample("node 10.0.0.3", 40_000_000, 0.5, 4, (), 16, 0.8)
    findings = [
        *judge_versions(VERSIONS, NODES),
        *judge_autoscaler(CLOUD),
        *judge_labels(CONFIG, NODES, CLOUD),
        *judge_workers(CONFIG, workers, CLOUD),
        *judge_gpus(CONFIG, NODES),
        *judge_shared_memory(NODES),
        *judge_object_store(CONFIG, NODES, 4),
        *judge_shared("s3://bucket/run", "", [], NODES, True),
        *judge_list(VideoList("s3://bucket/a.json", 500, 0.1)),
        *judge_sample(CONFIG, sample),
        *judge_store("s3://bucket/run", [StoreTest("the driver", 0.2, 0.1)]),
        *judge_collective(Reduction("nccl", 4, 1, seconds=0.01), 4, 70_000_000),
        *judge_memory(CONFIG, [an_estimate(Footprint(GIB, GIB, 1))], NODES),
        *judge_cost(CONFIG, workers, sample, NODES, CLOUD, gpu_clips_per_second=40),
        *judge_tracking(True, "http://127.0.0.1:5000", ""),
    ]
    assert [f for f in findings if f.level != Level.OK] == []


def an_estimate(memory: Footprint) -> Estimate:
    return Estimate(memory, 4, 2, "9x64x64", True, "")


def test_a_cluster_without_nodes_yet_is_not_called_checked() -> None:
    cloud = dataclasses.replace(CLOUD)
    workers = count_workers(CONFIG, [HEAD], cloud)
    assert (workers.now, workers.possible) == (0, 16)
    assert workers_finding(CONFIG, [HEAD], cloud).level == Level.OK
    for findings in (
        judge_gpus(CONFIG, [HEAD]),
        judge_shared_memory([HEAD]),
        judge_object_store(CONFIG, [HEAD], 4),
        judge_collective(None, 4, 1),
    ):
        assert only(findings).level == Level.SKIPPED


def test_a_version_that_differs_is_named() -> None:
    old = changed(TRAIN, versions=VERSIONS | {"torch": "2.12.1"})
    finding = only(judge_versions(VERSIONS, [HEAD, old, DECODE]))
    assert finding.level == Level.FAILURE
    assert finding.message == "node 10.0.0.2 has torch 2.12.1 (the driver has 2.13.0)"
    assert "requirements.txt" in finding.advice
    old = changed(TRAIN, versions=VERSIONS | {PROGRAM: "ffffffff"})
    assert "--working-dir" in only(judge_versions(VERSIONS, [old])).advice


def test_a_node_that_does_not_answer_is_named() -> None:
    finding = only(judge_versions(VERSIONS, [HEAD, dataclasses.replace(TRAIN, machine=None)]))
    assert finding.level == Level.FAILURE
    assert "node 10.0.0.2 has not said" in finding.message


def test_a_mistyped_instance_type_is_named() -> None:
    """Ray gives its node type no resources, and nothing ever fails."""
    mistyped = dataclasses.replace(SPOT, instance="g6.12xlagre", resources={})
    cloud = dataclasses.replace(CLOUD, types=(mistyped, CPUS))
    finding = workers_finding(CONFIG, [HEAD], cloud)
    assert finding.level == Level.FAILURE
    assert finding.figure == "0 of 1-4"
    assert "without resources: spot" in finding.message
    assert "g6.12xlagre" in finding.advice
    cloud = dataclasses.replace(cloud, mistyped={"g6.12xlagre": "g6.12xlarge"})
    assert "g6.12xlagre (is g6.12xlarge meant?)" in workers_finding(CONFIG, [HEAD], cloud).advice
    # Beside a type that serves, it is a warning.
    both = dataclasses.replace(CLOUD, types=(SPOT, dataclasses.replace(mistyped, name="other")))
    findings = judge_workers(CONFIG, count_workers(CONFIG, [HEAD], both), both)
    assert [f.level for f in findings] == [Level.WARNING, Level.OK]


def test_the_bounds_of_the_cluster_bound_the_workers() -> None:
    few = dataclasses.replace(CONFIG.cluster, workers="2-8")
    config = dataclasses.replace(CONFIG, cluster=few)
    one_node = dataclasses.replace(CLOUD, max_nodes=1)
    finding = workers_finding(config, [HEAD], one_node)
    assert (finding.level, finding.figure) == (Level.WARNING, "4 of 2-8")
    nowhere = workers_finding(config, [HEAD], Autoscaler())
    assert nowhere.level == Level.FAILURE
    assert "no autoscaler" in nowhere.advice


@pytest.mark.parametrize(
    ("label", "hint"), [("role=trian", "is role=train meant?"), ("kind=gpu", "there are")]
)
def test_a_wrong_label_is_named_with_those_that_there_are(label: str, hint: str) -> None:
    cluster = dataclasses.replace(CONFIG.cluster, train_nodes=label)
    config = dataclasses.replace(CONFIG, cluster=cluster)
    bad = [f for f in judge_labels(config, NODES, CLOUD) if f.level != Level.OK]
    assert [f.level for f in bad] == [Level.FAILURE, Level.WARNING]
    assert bad[0].figure == label
    assert hint in bad[0].advice
    assert "role=decode, role=head, role=train" in bad[0].advice
    assert "node 10.0.0.2 with GPUs but without the label" in bad[1].message


def test_a_missing_decode_label_costs_speed_alone() -> None:
    config = dataclasses.replace(CONFIG, data=DataConfig(decode_nodes="role=decoder"))
    bad = [f for f in judge_labels(config, NODES, CLOUD) if f.level != Level.OK]
    assert [f.level for f in bad] == [Level.WARNING]
    assert "any node decodes" in bad[0].message


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"gpus": (), "gpu_error": "there is no nvidia-smi"}, "driver cannot be asked"),
        ({"gpus": (L4,) * 3}, "more GPUs"),
        ({"gpus": (L4, L4, L4, dataclasses.replace(L4, driver="535.1"))}, "differ in their driver"),
    ],
)
def test_gpus_that_are_not_there_are_missed(facts: dict[str, object], words: str) -> None:
    assert words in only(judge_gpus(CONFIG, [HEAD, changed(TRAIN, **facts)])).message


def test_nvidia_smi_is_read() -> None:
    (gpu, second) = read_smi("NVIDIA L4, 550.54, 23034\nNVIDIA L4, 550.54, 23034\n")
    assert gpu == second == Gpu("NVIDIA L4", "550.54", 23034 * 2**20)


def test_a_small_dev_shm_is_missed() -> None:
    finding = only(judge_shared_memory([HEAD, changed(TRAIN, shm_bytes=64 * 2**20), DECODE]))
    assert (finding.level, finding.figure) == (Level.FAILURE, "64 MiB")
    assert "node 10.0.0.2" in finding.message
    assert "--shm-size" in finding.advice
    # Even where the object store was told to be smaller still.
    tiny = dataclasses.replace(TRAIN, resources={"CPU": 1, "object_store_memory": 2**20})
    assert worst(judge_shared_memory([changed(tiny, shm_bytes=64 * 2**20)])) == Level.FAILURE


def test_an_object_store_that_is_too_small_for_the_workers_is_a_warning() -> None:
    small = dataclasses.replace(DECODE, resources={"CPU": 16, "object_store_memory": 2**28})
    assert only(judge_object_store(CONFIG, [small], 4)).level == Level.WARNING


def test_unreadable_data_is_a_failure() -> None:
    error = "When reading: AWS Error NO_SUCH_BUCKET during HeadObject operation"
    finding = only(judge_list(VideoList("s3://x/a.json", error=error)))
    assert finding.level == Level.FAILURE
    assert finding.message.startswith("there is no such bucket")
    sample = Sample("node d", 0, 0.1, 0, ("a.mp4: access is denied",))
    finding = only(judge_sample(CONFIG, sample))
    assert (finding.level, finding.figure) == (Level.FAILURE, "0 of 1")
    assert "a.mp4: access is denied" in finding.message
    slow = Sample("node d", 40_000_000, 10.0, 4)
    assert only(judge_sample(CONFIG, slow)).level == Level.WARNING
    some = Sample("node d", 1000, 0.1, 3, ("a.mp4: gone",), 4, 1.0)
    assert [f.level for f in judge_sample(CONFIG, some)] == [Level.WARNING, Level.OK]


def test_decoding_that_the_gpus_would_wait_for_is_told() -> None:
    """4 GPUs at 40 clips/s need 160/s; a task that makes 2/s takes 80 CPUs, of which 32 are had."""
    workers = count_workers(CONFIG, NODES, CLOUD)
    slow = Sample("node d", 1000, 0.1, 4, (), 4, 2.0)
    finding = only(judge_cost(CONFIG, workers, slow, NODES, CLOUD, gpu_clips_per_second=40))
    assert finding.level == Level.WARNING
    assert (finding.values["decode_cpus"], finding.values["decode_cpus_asked"]) == (80, 32)
    assert "--cluster.decode-cpus 20" in finding.advice
    assert finding.figure == "1 x spot (g6.12xlarge)"
    assert "5 x decode (c6i.4xlarge), of which at most 4 may come" in finding.message


def test_results_that_cannot_be_kept_are_a_failure() -> None:
    tests = [StoreTest("the driver", 0.1, 0.1), StoreTest("node t", error="access is denied")]
    assert [f.level for f in judge_store("s3://b/r", tests)] == [Level.OK, Level.FAILURE]
    slow = StoreTest("the driver", 10.0, 0.1)
    assert only(judge_store("s3://b/r", [slow])).level == Level.WARNING


def test_a_folder_that_a_node_does_not_see_is_a_failure() -> None:
    blind = changed(TRAIN, missing=("/data/.doctor-1", "/data/a.json"))
    findings = judge_shared("/data", "/data/.doctor-1", ["/data/a.json"], [HEAD, blind], False)
    assert [f.level for f in findings] == [Level.FAILURE, Level.FAILURE]
    assert "s3://BUCKET" in findings[0].advice
    assert "/data/a.json" in findings[1].message
    # Nodes that are yet to come cannot be asked.
    assert only(judge_shared("/data", "", [], [HEAD], True)).level == Level.WARNING
    assert only(judge_shared("/data", "", [], [HEAD], False)).level == Level.OK


def test_bandwidth_is_that_of_the_slowest_link() -> None:
    """By NCCL's own tests: 2 (n - 1) / n of the message passes every link."""
    reduction = Reduction("gloo", 4, 2, seconds=0.1)
    finding = only(judge_collective(reduction, 4, 10**8))
    assert finding.values["bytes_per_second"] == pytest.approx(1.5 * MESSAGE_BYTES / 0.1)
    assert finding.values["step_seconds"] == pytest.approx(0.1 * 10**8 / MESSAGE_BYTES)
    assert finding.level == Level.OK
    assert only(judge_collective(reduction, 4, 10**9)).level == Level.WARNING


@pytest.mark.parametrize(
    ("facts", "level"),
    [({"error": "no result in 90 s"}, Level.FAILURE), ({"silent": ("node t",)}, Level.WARNING)],
)
def test_an_all_reduce_without_a_result_is_told(facts: dict[str, object], level: Level) -> None:
    reduction = dataclasses.replace(Reduction("nccl", 2, 2), **facts)  # type: ignore[arg-type]
    assert only(judge_collective(reduction, 2, 1)).level == level


def test_a_batch_that_no_gpu_holds_is_a_failure() -> None:
    estimates = [an_estimate(Footprint(2 * GIB, 20 * GIB, 1))]
    finding = only(judge_memory(CONFIG, estimates, NODES))
    assert (finding.level, finding.figure) == (Level.FAILURE, "22.0 GiB")
    assert "23.0 GiB" in finding.message
    assert "--train.max-clips-per-pass" in finding.advice
    assert "no GPU is there" in only(judge_memory(CONFIG, estimates, [HEAD])).message


def test_the_memory_of_each_stage_is_reckoned() -> None:
    """A batch twice as large, a frozen encoder, and no adversary: by the networks' own shapes."""
    small = ModelConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8))
    stages = (
        Stage(height=64, width=64),
        Stage(height=64, width=64, global_batch_size=16),
        Stage(height=64, width=64, freeze_encoder=True, seraena=0.0),
    )
    config = Config(model=small, train=TrainConfig(stages=stages))
    estimates = estimate(config, workers=1, on_real_gpus=False)
    first, double, frozen = (estimated.memory for estimated in estimates)
    assert double.one_pass == pytest.approx(2 * first.one_pass, rel=0.05)
    assert double.between_passes == first.between_passes
    assert frozen.one_pass < 0.8 * first.one_pass
    assert first.between_passes - frozen.between_passes > config.seraena.replay_gigabytes * 1e9
    messages = [finding.message for finding in judge_memory(config, estimates, NODES)]
    assert ["stage 2 of 3, a worker, estimated" in message for message in messages] == [
        *(False, True, False)
    ]
    assert "a pass of 16 clips of 9x64x64" in messages[1]


def test_a_dead_tracking_server_is_a_failure() -> None:
    finding = only(judge_tracking(True, "http://127.0.0.1:5000", "connection refused"))
    assert finding.level == Level.FAILURE
    assert "http://127.0.0.1:5000 cannot be used: connection refused." in finding.message
    layers = "HTTPConnectionPool(host='x'): (Caused by E(\"[Errno 111] Connection refused\"))"
    (finding,) = judge_tracking(True, "http://x", layers)
    assert "http://x cannot be used: [Errno 111] Connection refused." in finding.message


@pytest.mark.parametrize(
    ("error", "words", "level"),
    [
        ("InsufficientInstanceCapacity): We have no", "no such machine free", Level.WARNING),
        ("MaxSpotInstanceCountExceeded): Max", "quota", Level.FAILURE),
        ("VcpuLimitExceeded): You have", "quota", Level.FAILURE),
        ("UnauthorizedOperation): You are not", "may not start such nodes", Level.FAILURE),
        ("Unable to locate credentials", "does not accept the head's", Level.FAILURE),
        ("InvalidAMIID.NotFound): The image", "no such image", Level.FAILURE),
        ("InvalidGroup.NotFound): The group", "does not exist in this region", Level.FAILURE),
        ("InvalidParameterValue): Value (taehv-node) for", "does not exist", Level.FAILURE),
        ("Quota 'GPUS' exceeded", "quota", Level.FAILURE),
        ("ZONE_RESOURCE_POOL_EXHAUSTED", "no such machine free", Level.WARNING),
        ("something new", "the launch failed", Level.FAILURE),
    ],
)
def test_errors_of_clouds_are_told_in_plain_words(error: str, words: str, level: Level) -> None:
    cloud = dataclasses.replace(CLOUD, launches=(Launch("spot", "2026-01-01 00:00:00", error),))
    finding = only(judge_autoscaler(cloud))
    assert finding.level == level
    assert words in finding.message
    assert error in finding.message


def test_a_launch_that_fails_behind_one_that_works_is_a_warning() -> None:
    launches = (Launch("spot", "now", "VcpuLimitExceeded"), Launch("on-demand", "now", ""))
    cloud = dataclasses.replace(CLOUD, launches=launches)
    assert only(judge_autoscaler(cloud)).level == Level.WARNING


def test_an_autoscaler_that_died_is_a_failure() -> None:
    cloud = dataclasses.replace(CLOUD, crash="KeyError: 'resources'")
    assert only(judge_autoscaler(cloud)).level == Level.FAILURE


BAD = Finding(Level.FAILURE, "workers", "0 of 4", "there is no room", "add nodes", {"now": 0})
GOOD = Finding(Level.OK, "versions", "", "all the same")


def test_lines_are_readable_without_colors() -> None:
    text = format_finding(BAD, colors=False)
    assert text.splitlines()[0] == "FAILURE  workers              0 of 4: there is no room"
    assert text.splitlines()[1].strip() == "-> add nodes"
    assert "\x1b" not in text
    assert format_finding(BAD, colors=True).startswith("\x1b[31mFAILURE")
    assert format_verdict([GOOD, BAD]).startswith("1 OK, 1 FAILURE; not ready")


def test_json_has_all_of_it(tmp_path: Path) -> None:
    content = json.loads(to_json([GOOD, BAD], "auto"))
    assert content["schema_version"] == SCHEMA_VERSION
    assert content["verdict"] == "FAILURE"
    assert content["address"] == "auto"
    assert content["findings"][1] == {
        "level": "FAILURE",
        "area": "workers",
        "figure": "0 of 4",
        "message": "there is no room",
        "advice": "add nodes",
        "values": {"now": 0},
    }


def test_a_bad_finding_says_what_to_do() -> None:
    with pytest.raises(AssertionError):
        Finding(Level.FAILURE, "workers", "", "bad")
