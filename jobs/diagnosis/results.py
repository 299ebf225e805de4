"""Where results go: that the store takes them and gives them back, that all nodes share it, and
that MLflow answers."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.diagnosis.finding import Finding, failure, number_of, ok, warning
from jobs.diagnosis.nodes import NoAnswerError, Node, call_on
from jobs.diagnosis.plain_errors import plain_connection_error, plain_error
from taehv.run.run_folder import RunFolder

AREA = "checkpoint store"
SHARED = "shared folders"
TRACKING = "MLflow"

TEST_BYTES = 8 * 2**20
STORE_SECONDS = 120.0

SLOW_BYTES_PER_SECOND = 2e6
"""A checkpoint of the full size has about a gigabyte."""


@dataclass(frozen=True)
class StoreTest:
    """A file written to the run's folder, read back and deleted."""

    where: str
    write_seconds: float = 0.0
    read_seconds: float = 0.0
    error: str = ""


def look_at_store(run_dir: str, nodes: Sequence[Node], train_nodes: str) -> list[StoreTest]:
    """From the driver, and from one node that trains, whose role may be another."""
    tests = [try_store(run_dir, "the driver")]
    others = [n for n in nodes if not n.is_own and not n.is_head and n.has(train_nodes)]
    if others and "://" in run_dir:
        node = others[0]
        try:
            tests.append(call_on(node, STORE_SECONDS, try_store, run_dir, node.name))
        except NoAnswerError as error:
            tests.append(StoreTest(node.name, error=str(error)))
    return tests


def try_store(run_dir: str, where: str) -> StoreTest:
    """Try it from this process; nothing stays but, on S3, an empty marker of the folder."""
    content = os.urandom(TEST_BYTES)
    try:
        with _existing(run_dir):
            folder = RunFolder(RunFolder(run_dir).address_of(f".doctor-{uuid.uuid4().hex}"))
            try:
                folder.local.mkdir(parents=True, exist_ok=True)
                begun = time.perf_counter()
                (folder.local / "test").write_bytes(content)
                folder.publish("test")
                written = time.perf_counter()
                same = folder.retrieve("test").read_bytes() == content
                read = time.perf_counter()
            finally:
                folder.remove("")
        if not same:
            return StoreTest(where, error="what is read is not what was written")
    except OSError as error:
        return StoreTest(where, error=plain_error(str(error)))
    return StoreTest(where, written - begun, read - written)


@contextmanager
def _existing(run_dir: str) -> Iterator[None]:
    """A local run folder that is there; what was made for that goes again."""
    if "://" in run_dir:
        yield
        return
    path = Path(run_dir)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # Somebody else has begun to use it.
                folder.rmdir()


def judge_store(run_dir: str, tests: Sequence[StoreTest]) -> Iterator[Finding]:
    """Write, read, delete."""
    for test in tests:
        if test.error:
            yield failure(
                AREA,
                f"{run_dir} from {test.where}: {test.error}",
                "choose a --train.run-dir (or --cluster.storage) that can be written; for a "
                "bucket, allow s3:ListBucket, GetObject, PutObject and DeleteObject there",
                run_dir=run_dir,
                where=test.where,
            )
            continue
        write, read = TEST_BYTES / test.write_seconds, TEST_BYTES / test.read_seconds
        figure = f"{write / 1e6:.0f} MB/s"
        message = f"written, {read / 1e6:.0f} MB/s read, deleted, from {test.where}: {run_dir}"
        values = {"write_bytes_per_second": write, "read_bytes_per_second": read}
        if min(write, read) < SLOW_BYTES_PER_SECOND:
            advice = "use a store in the region of the nodes, or a larger --train.checkpoint-every"
            yield warning(AREA, message, advice, figure, **values)
        else:
            yield ok(AREA, message, figure, **values)


@contextmanager
def mark(run_dir: str) -> Iterator[str]:
    """The path of a local file that only nodes which share the run's folder see; "" for a remote
    folder, or one that cannot be written."""
    with ExitStack() as undo:
        path = ""
        if "://" not in run_dir:
            with suppress(OSError):
                undo.enter_context(_existing(run_dir))
                file = Path(run_dir) / f".doctor-{uuid.uuid4().hex}"
                file.touch()
                undo.callback(file.unlink, missing_ok=True)
                path = str(file)
        yield path


def judge_shared(
    run_dir: str, marked: str, inputs: Sequence[str], nodes: Sequence[Node], may_grow: bool
) -> list[Finding]:
    """Whether all nodes see the run's folder and the inputs.

    `marked`: what `mark` made; `inputs`: local files that workers read; `may_grow`: whether nodes
    may come that cannot be asked yet.
    """
    others = [node for node in nodes if not node.is_own]
    findings = [bad for node in others for bad in _judge_sight(node, run_dir, marked, inputs)]
    local = [path for path in [run_dir, *inputs] if "://" not in path]
    return findings or [_judge_places(local, len(others), may_grow)]


def _judge_sight(node: Node, run_dir: str, marked: str, inputs: Sequence[str]) -> Iterator[Finding]:
    missing = node.machine.missing if node.machine else ()
    if marked in missing:
        yield failure(
            SHARED,
            f"{node.name} does not see the run folder {run_dir}",
            "training on several nodes needs a folder that all share: give "
            "--train.run-dir s3://BUCKET/..., or set --cluster.storage s3://BUCKET/...",
            node=node.address,
        )
    unseen = [path for path in inputs if path in missing]
    if unseen:
        yield failure(
            SHARED,
            f"{node.name} does not see {', '.join(unseen)}, which the driver was given",
            "put inputs on s3:// or in a folder that all nodes share",
            node=node.address,
            missing=unseen,
        )


def _judge_places(local: Sequence[str], others: int, may_grow: bool) -> Finding:
    if others:
        return ok(SHARED, f"{number_of(others + 1, 'node')} see the results and inputs")
    if not may_grow:
        return ok(SHARED, "none is needed: there is one machine")
    if local:
        return warning(
            SHARED,
            f"nodes are yet to come, and may not see {', '.join(local)}",
            "use s3:// for results and inputs, or a folder that is mounted on all nodes",
            local=list(local),
        )
    return ok(SHARED, "results and inputs are on s3://")


def judge_tracking(enabled: bool, place: str, error: str) -> Iterator[Finding]:
    """`place`: where MLflow's store is; `error`: why it cannot be used, empty where it can."""
    if not enabled:
        yield ok(TRACKING, "not wanted (tracking.enabled)")
    elif error:
        yield failure(
            TRACKING,
            f"{place} cannot be used: {plain_connection_error(error)}. A run would train without "
            "it, and keep its metrics in its own folder",
            "start the server (cloud/start_mlflow.sh on the head), or correct --tracking.uri or "
            "MLFLOW_TRACKING_URI",
            uri=place,
        )
    else:
        yield ok(TRACKING, place, uri=place)
