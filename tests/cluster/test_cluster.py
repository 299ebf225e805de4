"""The shipped cluster.yaml from `ray up` to `ray down`, with a run that loses two nodes.

The tests are one story, told in order: `make test-cluster`.
"""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from jobs.cli.config import read_yaml
from tests.cluster.lab import DASHBOARD, JOB, Lab, Watched, answers, wait_for
from tests.cluster.without_ray import train_here

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

STEPS = 60

AT_START, AT_LOSS, AT_NOTICE = 1, 15, 35
"""Steps at which the run waits for what is done to it next. It loses some more steps to each start
of its workers: they make two before they wait again."""

RUN = "story"
IDLE_SECONDS = 60
"""Longer than a busy computer needs to bring a run from its nodes to their first work."""

NEW_RUN = ["--train.run-dir", "runs/next"]
"""For the doctor, which is not asked about a run that has ended."""

LOSSES: dict[int, float] = {}
"""Of the run, by step."""

LISTENERS: dict[tuple[str, str], list[tuple[str, str]]] = {}
"""By machine and its address: where it listened while the run was on, and which program."""

RAYS_OWN = ("sshd", "ray::", "/site-packages/ray/", "python jobs/train.py")
"""Ray's servers, of which a driver is one, and the machine's."""

STORY = JOB | {
    "train": JOB["train"] | {"max_steps": STEPS, "run_dir": f"runs/{RUN}"},
    "cluster": JOB["cluster"] | {"workers": "1-2"},
}
"""The job of the cluster, which is given no option."""

SUBMIT = ["ray", "job", "submit", "--", "python", "jobs/train.py"]


@pytest.fixture(scope="module")
def lab() -> Lab:
    if "LAB" not in os.environ:
        pytest.skip("needs the pretended data centre: make test-cluster")
    return Lab(Path(os.environ["LAB"]))


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[Path]:
    """cluster.yaml, up, with a tunnel to its dashboard; whatever happens, `ray down` is seen."""
    file = lab.write_cluster(STORY, IDLE_SECONDS, one_gpu="g6.4xlarge")
    lab.run("ray", "get-auth-token", "--generate", seconds=60)
    lab.run("ray", "up", str(file), "-y", "--no-config-cache", seconds=240)
    lab.background("ray", "dashboard", str(file))
    wait_for(lambda: answers("127.0.0.1", 8265), 60, "the tunnel")
    yield file
    lab.run("ray", "down", str(file), "-y", seconds=120)
    wait_for(lambda: not lab.alive(), 30, "the end of all machines")
    reservations = boto3.client("ec2").describe_instances()["Reservations"]
    states = {i["State"]["Name"] for r in reservations for i in r["Instances"]}
    assert states == {"terminated"}
    lab.say("ray down left nothing")


@pytest.fixture(scope="module")
def job(lab: Lab, cluster: Path) -> Watched:
    """The literal command, which first makes its videos on the head."""
    lab.hold.let_go(RUN, AT_START)
    return Watched(lab, SUBMIT)


def listeners(lab: Lab, instance: str) -> list[tuple[str, str]]:
    """Addresses on which a machine listens now, and the command of the program that does."""
    lines = lab.on(instance, "ss -ltnpH; ps -ww -eo pid,args").splitlines()
    commands = dict(line.split(maxsplit=1) for line in lines if re.match(r" *\d+ \S", line))
    found = [re.match(r"LISTEN +\S+ +\S+ +(\S+):\d+ .*?pid=(\d+)", line) for line in lines]
    return [(match[1], commands.get(match[2], "")) for match in found if match]


def check_decoding(lab: Lab) -> None:
    """It is done on the nodes that are there for it, and nowhere else."""
    running = {
        kind: any(
            "data_pipeline.decoding.sandbox_process" in lab.on(i, "ps -eo args")
            for i in lab.alive(kind)
        )
        for kind in ("c6i.4xlarge", "g6.4xlarge", "m6i.xlarge")
    }
    assert running == {"c6i.4xlarge": True, "g6.4xlarge": False, "m6i.xlarge": False}


def status_of(path: str, token: str = "") -> int:
    request = urllib.request.Request(DASHBOARD + path)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_without_the_token_nothing_answers_but_the_pages_shell(lab: Lab, job: Watched) -> None:
    token = Path("/root/.ray/auth_token").read_text().strip()
    assert status_of("/") == 200
    for path in (
        "/api/version",
        "/api/jobs/",
        "/nodes?view=summary",
        "/api/v0/nodes",
        "/logical/actors",
    ):
        assert status_of(path) == 401, path
        assert status_of(path, "0" * len(token)) in (401, 403), path
        assert status_of(path, token) == 200, path
    (head,) = lab.alive("m6i.xlarge")
    connect = 'import ray; ray.init(address="auto")'
    stranger = lab.on(head, f"RAY_AUTH_MODE=disabled python -c '\\''{connect}'\\''", seconds=120)
    assert "uthentication" in stranger, stranger
    # What follows counts on being there from its first step.
    assert job.last_step() == 0


def test_a_job_goes_on_over_lost_nodes(lab: Lab, job: Watched) -> None:
    """One node is ended, another is given notice; the run is the same."""
    prefix = f"taehv/runs/{RUN}"
    job.wait_for_words("starting 2 training workers", 420)
    lab.hold.let_go(RUN, AT_LOSS)
    job.wait_for(lambda: lab.hold.waits(RUN), f"step {AT_LOSS}", 300)
    train = lab.alive("g6.4xlarge")
    lab.say(f"training on {train}; decoding on {lab.alive('c6i.4xlarge')}")
    assert len(lab.alive("c6i.4xlarge")) >= 1
    LISTENERS.update({(i, lab.address(i)): listeners(lab, i) for i in lab.alive()})
    check_decoding(lab)

    lab.say(f"{train[0]} ends without notice")
    lives = job.count("starting ")
    boto3.client("ec2").terminate_instances(InstanceIds=[train[0]])
    # Its end comes a moment later, maybe in the midst of a step.
    lab.hold.let_go(RUN, AT_NOTICE)
    job.wait_for(lambda: job.count("starting ") > lives, "another start", 300)
    # The last workers may have been there before their end; now it is the next ones that are.
    lab.hold.let_go(RUN, AT_NOTICE)
    job.wait_for(lambda: lab.hold.waits(RUN), f"step {AT_NOTICE}", 300)

    remaining = [i for i in lab.alive("g6.4xlarge") if i != train[0]]
    lab.say(f"{train[1]} is given notice; training nodes: {remaining}")
    lives, lost = job.count("starting "), job.count("nodes have gone")
    lab.give_notice(train[1])
    # It is told, unless the workers were making way for more just then.
    job.wait_for(
        lambda: job.count("given notice") or job.count("starting ") > lives, "the notice", 90
    )
    lab.hold.let_go(RUN)
    assert job.finish(300) == 0, job.text()
    assert job.count("nodes have gone") == lost

    rows = [json.loads(line) for line in lab.object(f"{prefix}/metrics.jsonl").splitlines()]
    losses = {r["step"]: r["train/reconstruction_loss"] for r in rows if "train/loss" in r}
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert len([r for r in rows if "train/loss" in r]) == STEPS
    held = lab.keys(prefix)
    assert f"{prefix}/final_model.safetensors" in held
    assert any(f"{prefix}/checkpoints/step_" in key for key in held)
    assert not job.count("failed")
    LOSSES.update(losses)


def test_nothing_listened_elsewhere_than_it_must() -> None:
    """On loopback, and on the machine's own address in the cluster's network: dashboard, MLflow,
    and the workers' meeting point. Ray's own servers take all addresses of a node, which cannot be
    set; the security group and the token stand before them."""
    assert LISTENERS
    elsewhere = {
        f"{program[:90]} on {place}"
        for (_, own), places in LISTENERS.items()
        for place, program in places
        if not place.removeprefix("[::ffff:").startswith("127.")
        and place not in ("[::1]", own, f"[::ffff:{own}]")
        and not any(mark in program for mark in RAYS_OWN)
    }
    assert not elsewhere


def test_the_doctor_is_all_green_on_the_healthy_cluster(lab: Lab, cluster: Path) -> None:
    code, found = lab.doctor("--start-nodes", "--cluster.workers=2", *NEW_RUN)
    # The machine that was given notice may still be there.
    assert [f for f in found.values() if f["level"] != "OK" and f["area"] != "nodes"] == []
    assert code == 0
    assert found["all-reduce"]["values"]["ranks"] == 2


def test_the_doctor_finds_what_is_wrong(lab: Lab, cluster: Path) -> None:
    """All at once: none hides another."""
    (decode, *_) = lab.alive("c6i.4xlarge")
    # What pip leaves of another version.
    other = "~/packages/deepspeed-9.9.9.dist-info"
    metadata = f'mkdir -p {other}; printf "Name: deepspeed\\nVersion: 9.9.9\\n" > {other}/METADATA'
    lab.on(decode, f"{metadata}; mount -o remount,size=150m /dev/shm")
    try:
        code, found = lab.doctor(
            "--cluster.train-nodes=role=trian",
            "--data.annotations=s3://nowhere/annotations.json",
            "--tracking.uri=http://127.0.0.1:9",
            *NEW_RUN,
        )
    finally:
        lab.on(decode, f"rm -r {other}; mount -o remount,size=3g /dev/shm")
    assert code == 1
    failed = {area: f for area, f in found.items() if f["level"] == "FAILURE"}
    assert set(failed) == {"versions", "shared memory", "labels", "workers", "data list", "MLflow"}
    address = lab.address(decode)
    assert failed["versions"]["values"] == {"node": address, "different": ["deepspeed"]}
    assert failed["shared memory"]["values"]["node"] == address
    assert "is role=train meant?" in failed["labels"]["advice"]
    assert "nowhere" in failed["data list"]["message"]


def test_no_sample_was_lost(lab: Lab, cluster: Path) -> None:
    """Every step saw the clips that it sees in a run without Ray that nothing happens to."""
    assert len(LOSSES) == STEPS
    (annotations,) = (k for k in lab.keys("taehv/data") if k.endswith("/annotations.json"))
    lab.say("the same training without Ray")
    config = read_yaml(Path("/tmp/configs/cluster.yaml"))
    train_here(config, f"s3://{lab.bucket}/{annotations}", Path("/tmp/reference"))
    lines = Path("/tmp/reference/metrics.jsonl").read_text().splitlines()
    rows = {row["step"]: row for row in map(json.loads, lines) if "train/loss" in row}
    differences = {
        step: abs(loss / rows[step]["train/reconstruction_loss"] - 1)
        for step, loss in LOSSES.items()
    }
    lab.say(f"largest difference of a step's loss: {max(differences.values()):.2g}")
    neighbours = [abs(LOSSES[step + 1] / LOSSES[step] - 1) for step in range(1, len(LOSSES))]
    # From step to step it moves by far more: another clip would show.
    assert max(differences.values()) < 0.2 * sorted(neighbours)[len(neighbours) // 2]


def test_mlflow_is_on_the_volume(lab: Lab, cluster: Path) -> None:
    """On the disk that outlives the head, which another head would mount."""
    (head,) = lab.alive("m6i.xlarge")
    assert "ext4" in lab.on(head, "findmnt --noheadings --output FSTYPE ~/state")
    assert "mlflow.db" in lab.on(head, "ls ~/state")


def test_mlflow_has_the_run(lab: Lab, cluster: Path) -> None:
    head = lab.alive("m6i.xlarge")[0]
    query = (
        'import mlflow; c = mlflow.MlflowClient("http://127.0.0.1:5000");'
        'e = c.get_experiment_by_name("taehv"); r = c.search_runs([e.experiment_id]);'
        'print(len(r), r[0].info.status, r[0].data.metrics["train/loss"], r[0].info.run_id);'
        "print([a.path for a in c.list_artifacts(r[0].info.run_id)])"
    )
    told = lab.on(head, f"python -W ignore -c '\\''{query}'\\''", seconds=120)
    lab.say(told)
    assert re.search(r"^1 FINISHED \d", told, re.MULTILINE), told
    assert "final_model.safetensors" in told
    assert any(key.startswith("taehv/mlflow/") for key in lab.keys("taehv/mlflow"))


def test_idle_nodes_go(lab: Lab, cluster: Path) -> None:
    try:
        wait_for(lambda: lab.alive() == lab.alive("m6i.xlarge"), 180, "the end of idle nodes")
    except AssertionError:
        # What it is that keeps them: nothing else tells it afterwards.
        for what in ("status -v", "list actors --filter state=ALIVE", "list tasks"):
            lab.say(lab.on(lab.alive("m6i.xlarge")[0], f"ray {what}", seconds=120))
        raise
    lab.say("only the head is left")


def test_the_doctor_finds_a_mistyped_instance_type(lab: Lab, cluster: Path) -> None:
    """Of which Ray says a line in the midst of `ray up`, and then never brings a node."""
    file = lab.write_cluster(STORY, IDLE_SECONDS, one_gpu="g6.4xlarg")
    # Ray goes on; its autoscaler reads the file again by itself.
    lab.run("ray", "up", str(file), "-y", "--no-config-cache", "--no-restart", seconds=240)
    code, found = lab.doctor(*NEW_RUN)
    assert code == 1
    assert {area for area, f in found.items() if f["level"] == "FAILURE"} == {"workers"}
    assert "no instance type g6.4xlarg (is g6.4xlarge meant?)" in found["workers"]["advice"]
