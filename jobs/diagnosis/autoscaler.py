"""The autoscaler: what it may start, and what became of what it tried.

Ray's own status says that a launch failed, but not why; the reason is in the monitor's log on the
head alone. So a task on the head reads the monitor's command line, its configuration and its logs.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from jobs.cluster.ray_internals import session_log_folder
from jobs.diagnosis.finding import Finding, failure, number_of, ok, skipped, warning
from jobs.diagnosis.nodes import NoAnswerError, Node, Place, call_on
from jobs.diagnosis.plain_errors import explain_launch_error

AREA = "autoscaler"

READ_SECONDS = 60.0
LOG_BYTES = 2**20
"""Of the end of each log."""

CONFIG_OPTION = "--autoscaling-config="


@dataclass(frozen=True)
class NodeType(Place):
    """A type of nodes that the autoscaler may start."""

    name: str
    instance: str
    """The cloud's name for the machine; empty where it has none."""
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    max_nodes: int
    """Of this type at once."""
    priority: int = 0

    def __str__(self) -> str:
        return f"{self.name} ({self.instance})" if self.instance else self.name


@dataclass(frozen=True)
class Launch:
    """The last launch of a node type, by the log."""

    node_type: str
    when: str
    error: str
    """Empty where it succeeded."""


@dataclass(frozen=True)
class Autoscaler:
    """What the head knows of the autoscaler."""

    config_file: str = ""
    """Empty: there is none, or none that can be read from the head."""
    types: tuple[NodeType, ...] = ()
    """Without the head's."""
    max_nodes: int = 0
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
        return _read_this_head()
    try:
        found: Autoscaler = call_on(head, READ_SECONDS, _read_this_head)
    except NoAnswerError as error:
        return Autoscaler(unreadable=str(error))
    return found


def _read_this_head() -> Autoscaler:
    return read_head(session_log_folder())


def read_head(logs: Path) -> Autoscaler:
    """What this machine, the head of the cluster that keeps its logs there, knows."""
    file = _config_file(logs)
    text = "\n".join(_end_of(logs / name) for name in ("monitor.log", "monitor.err"))
    types, max_nodes = read_config(yaml.safe_load(file.read_text())) if file else ((), 0)
    return Autoscaler(
        config_file=str(file or ""),
        types=types,
        max_nodes=max_nodes,
        launches=read_launches(text),
        set_up_failures=read_set_up_failures(text),
        crash=read_crash(text),
        mistyped=mistyped_instances([kind.instance for kind in types if not kind.resources]),
        elsewhere=not file and "KUBERNETES_SERVICE_HOST" in os.environ,
    )


def _config_file(logs: Path) -> Path | None:
    """The configuration of the monitor that keeps its logs there, among all on the machine."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        options = [option for option in command if option.startswith(CONFIG_OPTION)]
        if options and f"--logs-dir={logs}" in command:
            path = Path(options[0].removeprefix(CONFIG_OPTION)).expanduser()
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
    max_nodes = int(config.get("max_workers", 0))
    types = tuple(
        NodeType(
            name=name,
            instance=_instance_type(kind.get("node_config") or {}),
            resources=kind.get("resources") or {},
            labels=kind.get("labels") or {},
            max_nodes=min(max_nodes, int(kind.get("max_workers", max_nodes))),
            priority=int(kind.get("priority", 0)),
        )
        for name, kind in config.get("available_node_types", {}).items()
        if name != config.get("head_node_type")
    )
    return types, max_nodes


def _instance_type(node_config: Mapping[str, Any]) -> str:
    """By AWS's key or GCP's."""
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
    """The last launch of each node type in the monitor's log."""
    matches = sorted([*_LAUNCHED.finditer(log), *_FAILED.finditer(log)], key=re.Match.start)
    last = {match["type"]: match for match in matches}
    return tuple(
        Launch(kind, match["when"], match.groupdict().get("error", ""))
        for kind, match in last.items()
    )


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
    return [*_judge_errors(facts)] or [_judge_presence(facts)]


def _judge_presence(facts: Autoscaler) -> Finding:
    if facts.unreadable:
        return warning(
            AREA,
            f"the head could not be asked about it: {facts.unreadable}",
            "run this on the head: `ray job submit -- python jobs/doctor.py`",
        )
    if facts.config_file:
        figure = number_of(len(facts.types), "node type")
        return ok(AREA, f"no error of late ({facts.config_file})", figure)
    if facts.elsewhere:
        advice = "look at `kubectl logs` of the head's autoscaler container"
        return skipped(AREA, f"it runs beside the head, out of sight: {advice}")
    return ok(AREA, "there is none: the nodes are those that are there")


def _judge_errors(facts: Autoscaler) -> Iterator[Finding]:
    if facts.crash:
        advice = "correct what the message names, and run `ray up cluster.yaml` again"
        yield failure(AREA, f"it has stopped: {facts.crash}", advice)
    # Types behind a failed one are tried too, and have often been launched.
    any_launched = any(not launch.error for launch in facts.launches)
    for launch in facts.launches:
        if launch.error:
            kind = explain_launch_error(launch.error)
            judge = warning if kind.passes or any_launched else failure
            message = f"{kind.words}. Last tried {launch.when}: {launch.error[:400]}"
            yield judge(AREA, message, kind.advice, launch.node_type, **asdict(launch))
    for text in facts.set_up_failures:
        yield warning(
            AREA,
            f"a machine came, but Ray did not start on it: {text[:400]}",
            "look at monitor.out in the head's /tmp/ray/session_latest/logs for the set-up command "
            "that failed; `ray up` again after a change",
        )
