"""Whether all processes of a run would speak the same versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.cluster.versions import differences
from jobs.diagnosis.finding import Finding, Level, number_of
from jobs.diagnosis.machine import PROGRAM
from jobs.diagnosis.nodes import ANSWER_SECONDS, Node

AREA = "versions"


def judge_versions(driver: Mapping[str, str], nodes: Sequence[Node]) -> list[Finding]:
    """`driver`: by package, as of the driver's own machine."""
    findings = [_compare(driver, node) for node in nodes]
    bad = [finding for finding in findings if finding is not None]
    if bad:
        return bad
    where = (
        "the driver" if len(nodes) == 1 else f"the driver and all {number_of(len(nodes), 'node')}"
    )
    told = ", ".join(f"{name} {version}" for name, version in driver.items())
    return [Finding(Level.OK, AREA, "", f"{told}: the same on {where}", values=dict(driver))]


def _compare(driver: Mapping[str, str], node: Node) -> Finding | None:
    if node.machine is None:
        return Finding(
            Level.FAILURE,
            AREA,
            "",
            f"{node.name} has not said within {ANSWER_SECONDS:g} s what it is",
            "a node that runs nothing has lost its network, its disk or its memory: look at "
            "`ray list nodes`, and end it so that another one comes",
            {"node": node.address},
        )
    different = differences(driver, node.machine.versions)
    if not different:
        return None
    advice = "install requirements.txt there, or use one image for the head and all nodes"
    if list(different) == [PROGRAM]:
        advice = "submit the job with --working-dir, so that all nodes get the same code"
    return Finding(
        Level.FAILURE,
        AREA,
        "",
        f"{node.name} has {', '.join(different.values())}",
        advice,
        {"node": node.address, "different": list(different)},
    )
