"""Where results go: that the store takes them and gives them back, and that all nodes share it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError

from jobs.cluster.nodes import on_node
from jobs.diagnosis.finding import Finding, Level, number_of
from jobs.diagnosis.nodes import Node
from jobs.diagnosis.words import plain_error
from taehv.run.run_folder import RunFolder

AREA = "checkpoint store"
SHARED = "shared folders"

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
        chosen = others[0]
        asked = _test_store_there.options(scheduling_strategy=on_node(chosen.id)).remote(
            run_dir, chosen.name
        )
        try:
            tests.append(ray.get(asked, timeout=STORE_SECONDS))
        except GetTimeoutError:
            ray.cancel(asked, force=True)
            late = f"nothing came within {STORE_SECONDS:g} s"
            tests.append(StoreTest(chosen.name, error=late))
        except RayError as error:
            tests.append(StoreTest(chosen.name, error=plain_error(str(error))))
    return tests


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _test_store_there(run_dir: str, where: str) -> StoreTest:
    return try_store(run_dir, where)


def try_store(run_dir: str, where: str) -> StoreTest:
    """Try it from this process; nothing stays but, on S3, an empty marker of the folder."""
    content = os.urandom(TEST_BYTES)
    try:
        with _made(run_dir):
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
def _made(run_dir: str) -> Iterator[None]:
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


def judge_store(run_dir: str, tests: Sequence[StoreTest]) -> list[Finding]:
    """Write, read, delete."""
    findings = []
    for test in tests:
        if test.error:
            findings.append(
                Finding(
                    Level.FAILURE,
                    AREA,
                    "",
                    f"{run_dir} from {test.where}: {test.error}",
                    "choose a --train.run-dir (or --cluster.storage) that can be written; for a "
                    "bucket, allow s3:ListBucket, GetObject, PutObject and DeleteObject there",
                    {"run_dir": run_dir, "where": test.where},
                )
            )
            continue
        write, read = TEST_BYTES / test.write_seconds, TEST_BYTES / test.read_seconds
        figure = f"{write / 1e6:.0f} MB/s"
        message = f"written, {read / 1e6:.0f} MB/s read, deleted, from {test.where}: {run_dir}"
        values = {"write_bytes_per_second": write, "read_bytes_per_second": read}
        if min(write, read) < SLOW_BYTES_PER_SECOND:
            advice = "use a store in the region of the nodes, or a larger --train.checkpoint-every"
            findings.append(Finding(Level.WARNING, AREA, figure, message, advice, values))
        else:
            findings.append(Finding(Level.OK, AREA, figure, message, values=values))
    return findings


@contextmanager
def mark(run_dir: str) -> Iterator[str]:
    """A local file that only nodes which share the run's folder see; "" for a remote folder, or one
    that cannot be written."""
    if "://" in run_dir:
        yield ""
        return
    with _made_if_possible(run_dir) as possible:
        file = Path(run_dir) / f".doctor-{uuid.uuid4().hex}"
        if not possible:
            yield ""
            return
        file.touch()
        try:
            yield str(file)
        finally:
            file.unlink(missing_ok=True)


@contextmanager
def _made_if_possible(run_dir: str) -> Iterator[bool]:
    made = _made(run_dir)
    try:
        made.__enter__()
    except OSError:
        yield False
        return
    try:
        yield os.access(run_dir, os.W_OK)
    finally:
        made.__exit__(None, None, None)


def judge_shared(
    run_dir: str, marked: str, inputs: Sequence[str], nodes: Sequence[Node], may_grow: bool
) -> list[Finding]:
    """Whether all nodes see the run's folder and the inputs.

    `marked`: what `mark` made; `inputs`: local files that workers read; `may_grow`: whether nodes
    may come that cannot be asked yet.
    """
    others = [node for node in nodes if not node.is_own]
    findings = []
    for node in others:
        if node.machine is None:
            continue
        if marked and marked in node.machine.missing:
            findings.append(
                Finding(
                    Level.FAILURE,
                    SHARED,
                    "",
                    f"{node.name} does not see the run folder {run_dir}",
                    "training on several nodes needs a folder that all share: give "
                    "--train.run-dir s3://BUCKET/..., or set --cluster.storage s3://BUCKET/...",
                    {"node": node.address},
                )
            )
        unseen = [path for path in inputs if path in node.machine.missing]
        if unseen:
            findings.append(
                Finding(
                    Level.FAILURE,
                    SHARED,
                    "",
                    f"{node.name} does not see {', '.join(unseen)}, which the driver was given",
                    "put inputs on s3:// or in a folder that all nodes share",
                    {"node": node.address, "missing": unseen},
                )
            )
    if findings:
        return findings
    local = [path for path in [run_dir, *inputs] if "://" not in path]
    if others:
        seen = f"{number_of(len(others) + 1, 'node')} see the results and inputs"
        return [Finding(Level.OK, SHARED, "", seen)]
    if not may_grow:
        return [Finding(Level.OK, SHARED, "", "none is needed: there is one machine")]
    if local:
        return [
            Finding(
                Level.WARNING,
                SHARED,
                "",
                f"nodes are yet to come, and may not see {', '.join(local)}",
                "use s3:// for results and inputs, or a folder that is mounted on all nodes",
                {"local": local},
            )
        ]
    return [Finding(Level.OK, SHARED, "", "results and inputs are on s3://")]
