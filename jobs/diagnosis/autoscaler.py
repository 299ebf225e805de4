"""The autoscaler: what it may start, and what became of what it tried.

Ray's own status says that a launch failed, but not why; the reason is in the monitor's log on the
head alone. So a task on the head reads the monitor's command line, its configuration and its logs.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

from jobs.cluster.nodes import has_label, on_node
from jobs.cluster.ray_internals import session_log_folder
from jobs.diagnosis.cloud_errors import explain
from jobs.diagnosis.finding import Finding, Level, number_of
from jobs.diagnosis.nodes import Node

AREA = "autoscaler"

READ_SECONDS = 60.0
LOG_BYTES = 2**20
"""Of the end of each log."""

CONFIG_OPTION = "--autoscaling-config="


@dataclass(frozen=True)
class NodeType:
    """A type of nodes that the autoscaler may start."""

    name: str
    instance: str
    """The cloud's name for the machine; empty where it has none."""
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    most: int
    """Nodes of it at once."""
    priority: int = 0

    def has(self, label: str) -> bool:
        """Whether its nodes have the label KEY=VALUE; the empty one has every node."""
        return has_label(self.labels, label)

    @property
    def gpus(self) -> int:
        return int(self.resources.get("GPU", 0))

    def __str__(self) -> str:
        return f"{self.name} ({self.instance})" if self.instance else self.name


@dataclass(frozen=True)
class Launch:
    """What the log says last of a node type."""

    node_type: str
    when: str
    error: str
    """Empty: it was launched."""


@dataclass(frozen=True)
class Autoscaler:
    """What is known of it."""

    config_file: str = ""
    """Empty: there is none, or none that can be read from the head."""
    types: tuple[NodeType, ...] = ()
    """Without the head's."""
    most_nodes: int = 0
    """Of all types at once, besides the head."""
    launches: tuple[Launch, ...] = ()
    """The last of each node type."""
    set_up_failures: tuple[str, ...] = ()
    """Log lines about nodes on which Ray could not be started."""
    crash: str = ""
    """The last error of its loop, where it ended by that."""
    elsewhere: bool = False
    """It runs where the head cannot look (Kubernetes)."""
    mistyped: Mapping[str, str] = field(default_factory=dict)
    """Instance types that AWS has nowhere, each with the nearest that it has, or ""."""
    unreadable: str = ""
    """Why the head could not be asked."""


def look_at_autoscaler(nodes: Sequence[Node]) -> Autoscaler:
    """Ask the head."""
    head = next((node for node in nodes if node.is_head), None)
    if head is None or head.is_own:
        return read_head(session_log_folder())
    asked = _read_head_there.options(scheduling_strategy=on_node(head.id)).remote()
    try:
        found: Autoscaler = ray.get(asked, timeout=READ_SECONDS)
    except ray.exceptions.RayError as error:
        return Autoscaler(unreadable=str(error).splitlines()[0])
    return found


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _read_head_there() -> Autoscaler:
    return read_head(session_log_folder())


def read_head(logs: Path) -> Autoscaler:
    """What this machine, the head of the cluster that keeps its logs there, knows."""
    file = _config_file(logs)
    text = "\n".join(_end_of(logs / name) for name in ("monitor.log", "monitor.err"))
    types, most = read_config(yaml.safe_load(file.read_text())) if file else ((), 0)
    return Autoscaler(
        config_file=str(file or ""),
        types=types,
        most_nodes=most,
        launches=read_launches(text),
        set_up_failures=read_set_up_failures(text),
        crash=read_crash(text),
        mistyped=mistyped_instances([kind.instance for kind in types if not kind.resources]),
        elsewhere=not file and "KUBERNETES_SERVICE_HOST" in os.environ,
    )


def _config_file(logs: Path) -> Path | None:
    """Of the monitor that keeps its logs there; there may be others on the machine."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if f"--logs-dir={logs}" in command:
            for option in command:
                if option.startswith(CONFIG_OPTION):
                    path = Path(option.removeprefix(CONFIG_OPTION)).expanduser()
                    return path if path.is_file() else None
    return None


def _end_of(file: Path) -> str:
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - LOG_BYTES))
        return stream.read().decode(errors="replace")


def read_config(config: Mapping[str, Any]) -> tuple[tuple[NodeType, ...], int]:
    """The node types of a configuration that `ray up` has completed, and the bound on all nodes."""
    most = int(config.get("max_workers", 0))
    types = tuple(
        NodeType(
            name=name,
            instance=_instance(kind.get("node_config") or {}),
            resources=kind.get("resources") or {},
            labels=kind.get("labels") or {},
            most=min(most, int(kind.get("max_workers", most))),
            priority=int(kind.get("priority", 0)),
        )
        for name, kind in config.get("available_node_types", {}).items()
        if name != config.get("head_node_type")
    )
    return types, most


def _instance(node_config: Mapping[str, Any]) -> str:
    """AWS's and GCP's word for it."""
    return str(node_config.get("InstanceType") or node_config.get("machineType") or "")


def mistyped_instances(instances: Sequence[str]) -> dict[str, str]:
    """Those that no region of AWS has, by the list that AWS's own package brings, each with the
    nearest in it. Where one of a cluster is unknown, Ray looks up none of the others either."""
    names = [name for name in instances if "." in name]
    try:
        from botocore.session import get_session
    except ImportError:
        return {}
    if not names:
        return {}
    known = get_session().get_service_model("ec2").shape_for("InstanceType").enum
    unknown = [name for name in names if name not in known]
    return {name: next(iter(difflib.get_close_matches(name, known, n=1)), "") for name in unknown}


_STAMP = r"^(?P<when>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\S*\s.*? -- "
_LAUNCHED = re.compile(_STAMP + r"Launched \d+ nodes of type (?P<type>[^\s.]+)\.?$", re.MULTILINE)
# Both of Ray's autoscalers; the older one says "node(s)", and puts a full stop before the reason.
_FAILED = re.compile(
    _STAMP + r".*?Failed to launch \d+ (?:nodes|node\(s\)) of type (?P<type>[^\s.:]+)"
    r"[:.]\s*(?P<error>.+)$",
    re.MULTILINE,
)
_SET_UP = re.compile(
    _STAMP + r"(?P<text>.*(?:Ray installation failed on instance|is stuck in RAY_INSTALLING"
    r"|update-failed).*)$",
    re.MULTILINE,
)
_CRASH = re.compile(_STAMP + r"Error in monitor loop", re.MULTILINE)


def read_launches(log: str) -> tuple[Launch, ...]:
    """The last word of the monitor's log on each node type."""
    events = [
        (match.start(), Launch(match["type"], match["when"], match.groupdict().get("error") or ""))
        for pattern in (_LAUNCHED, _FAILED)
        for match in pattern.finditer(log)
    ]
    last = {launch.node_type: launch for _, launch in sorted(events, key=lambda event: event[0])}
    return tuple(last.values())


def read_set_up_failures(log: str) -> tuple[str, ...]:
    """Log lines, each once, the newest last."""
    found = {match["text"].strip(): match["when"] for match in _SET_UP.finditer(log)}
    return tuple(f"{when}: {text}" for text, when in found.items())[-3:]


def read_crash(log: str) -> str:
    """The error that ended the monitor's loop; empty where none did."""
    found = list(_CRASH.finditer(log))
    if not found:
        return ""
    trace = log[found[-1].end() :].strip().splitlines()
    ends = [line for line in trace if re.match(r"^[\w.]+(Error|Exception)\b", line)]
    return ends[0] if ends else "no reason given"


def judge_autoscaler(facts: Autoscaler) -> list[Finding]:
    """Its last errors, in plain words."""
    if facts.unreadable:
        return [
            Finding(
                Level.WARNING,
                AREA,
                "",
                f"the head could not be asked about it: {facts.unreadable}",
                "run this on the head: `ray job submit -- python jobs/doctor.py`",
            )
        ]
    findings = [*_judge_crash(facts), *_judge_launches(facts.launches), *_judge_set_up(facts)]
    if findings:
        return findings
    if facts.config_file:
        figure = number_of(len(facts.types), "node type")
        return [Finding(Level.OK, AREA, figure, f"no error of late ({facts.config_file})")]
    if facts.elsewhere:
        advice = "look at `kubectl logs` of the head's autoscaler container"
        return [
            Finding(Level.SKIPPED, AREA, "", f"it runs beside the head, out of sight: {advice}")
        ]
    return [Finding(Level.OK, AREA, "", "there is none: the nodes are those that are there")]


def _judge_crash(facts: Autoscaler) -> Iterable[Finding]:
    if facts.crash:
        yield Finding(
            Level.FAILURE,
            AREA,
            "",
            f"it has stopped: {facts.crash}",
            "correct what the message names, and run `ray up cluster.yaml` again",
        )


def _judge_launches(launches: Sequence[Launch]) -> Iterable[Finding]:
    # Types behind a failed one are tried too, and have often been launched.
    any_launched = any(not launch.error for launch in launches)
    for launch in launches:
        if launch.error:
            words, advice, passes = explain(launch.error)
            yield Finding(
                Level.WARNING if passes or any_launched else Level.FAILURE,
                AREA,
                launch.node_type,
                f"{words}. Last tried {launch.when}: {launch.error[:400]}",
                advice,
                {"node_type": launch.node_type, "when": launch.when, "error": launch.error},
            )


def _judge_set_up(facts: Autoscaler) -> Iterable[Finding]:
    for text in facts.set_up_failures:
        yield Finding(
            Level.WARNING,
            AREA,
            "",
            f"a machine came, but Ray did not start on it: {text[:400]}",
            "look at monitor.out in the head's /tmp/ray/session_latest/logs for the set-up command "
            "that failed; `ray up` again after a change",
        )
