"""Whether the labels that a config asks for are those that nodes have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from jobs.cli.config import Config
from jobs.cluster.nodes import label_selector
from jobs.diagnosis.autoscaler import Autoscaler
from jobs.diagnosis.finding import Finding, Level, number_of, ok, warning
from jobs.diagnosis.nodes import Node

AREA = "labels"


def judge_labels(config: Config, nodes: Sequence[Node], autoscaler: Autoscaler) -> list[Finding]:
    """Those of `cluster.train_nodes` and `data.decode_nodes`, on nodes and on node types."""
    train, decode = config.cluster.train_nodes, config.data.decode_nodes
    findings = []
    if train:
        effect = "training has nowhere to run"
        key = "cluster.train_nodes"
        findings.append(_judge_label(key, train, nodes, autoscaler, Level.FAILURE, effect))
    if decode:
        effect = "after five minutes' wait, any node decodes, those with GPUs too"
        key = "data.decode_nodes"
        findings.append(_judge_label(key, decode, nodes, autoscaler, Level.WARNING, effect))
    left_out = [node.name for node in nodes if train and node.gpus and not node.has(train)]
    if left_out:
        findings.append(
            warning(
                AREA,
                f"{', '.join(left_out)} with GPUs but without the label {train} "
                "(cluster.train_nodes): no worker will run there",
                "give them the label (`ray start --labels`, or `labels:` of their node type)",
                number_of(len(left_out), "node"),
            )
        )
    return findings or [ok(AREA, "none is asked for: any node trains and decodes")]


def _judge_label(
    key: str, label: str, nodes: Sequence[Node], autoscaler: Autoscaler, bad: Level, effect: str
) -> Finding:
    """`bad`: how bad it is where nothing has the label; `effect`: what happens then."""
    have = [node for node in nodes if node.has(label)]
    types = [kind.name for kind in autoscaler.types if kind.has(label)]
    if have or types:
        to_come = f", node types {', '.join(types)}" if types else ""
        return ok(AREA, f"{number_of(len(have), 'node')} with it now{to_come} ({key})", label)
    known = [node.own_labels for node in nodes] + [dict(kind.labels) for kind in autoscaler.types]
    message = f"no node has it, and no node type ({key}): {effect}"
    values = {"label": label, "key": key}
    return Finding(bad, AREA, label, message, _format_hint(key, label, known), values)


def _format_hint(key: str, label: str, known: Sequence[Mapping[str, str]]) -> str:
    """The nearest label that there is."""
    pairs = sorted({f"{k}={v}" for labels in known for k, v in labels.items()})
    if not pairs:
        name = next(iter(label_selector(label)))
        return f"no node has any label: start them with one ({name}), or empty --{key}"
    near = difflib.get_close_matches(label, pairs, n=1, cutoff=0.6)
    meant = f"; is {near[0]} meant?" if near else ""
    return f"there are {', '.join(pairs)}{meant} Correct --{key}, or the nodes' labels"
