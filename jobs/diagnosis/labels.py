"""Whether the labels that a config asks for are those that nodes have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from jobs.cli.config import Config
from jobs.cluster.nodes import label_selector
from jobs.diagnosis.autoscaler import Autoscaler
from jobs.diagnosis.finding import Finding, Level, number_of
from jobs.diagnosis.nodes import Node

AREA = "labels"


def judge_labels(config: Config, nodes: Sequence[Node], autoscaler: Autoscaler) -> list[Finding]:
    """Those of `cluster.train_nodes` and `data.decode_nodes`, on nodes and on node types."""
    train, decode = config.cluster.train_nodes, config.data.decode_nodes
    findings = [
        *_judge_one("cluster.train_nodes", train, nodes, autoscaler, Level.FAILURE),
        *_judge_one("data.decode_nodes", decode, nodes, autoscaler, Level.WARNING),
    ]
    left_out = [node for node in nodes if train and node.gpus and not node.has(train)]
    if left_out:
        findings.append(
            Finding(
                Level.WARNING,
                AREA,
                number_of(len(left_out), "node"),
                f"{', '.join(node.name for node in left_out)} with GPUs but without the label "
                f"{train} (cluster.train_nodes): no worker will run there",
                "give them the label (`ray start --labels`, or `labels:` of their node type)",
            )
        )
    if not findings:
        findings.append(
            Finding(Level.OK, AREA, "", "none is asked for: any node trains and decodes")
        )
    return findings


def _judge_one(
    key: str, label: str, nodes: Sequence[Node], autoscaler: Autoscaler, bad: Level
) -> list[Finding]:
    if not label:
        return []
    have = [node for node in nodes if node.has(label)]
    types = [kind for kind in autoscaler.types if kind.has(label)]
    if have or types:
        there = f"{number_of(len(have), 'node')} with it now"
        to_come = f", node types {', '.join(kind.name for kind in types)}" if types else ""
        return [Finding(Level.OK, AREA, label, f"{there}{to_come} ({key})")]
    known = [node.own_labels for node in nodes] + [dict(kind.labels) for kind in autoscaler.types]
    what = (
        "training has nowhere to run"
        if bad == Level.FAILURE
        else "after five minutes' wait, any node decodes, those with GPUs too"
    )
    return [
        Finding(
            bad,
            AREA,
            label,
            f"no node has it, and no node type ({key}): {what}",
            _hint(key, label, known),
            {"label": label, "key": key},
        )
    ]


def _hint(key: str, label: str, known: Sequence[Mapping[str, str]]) -> str:
    """The nearest label that there is."""
    pairs = sorted({f"{k}={v}" for labels in known for k, v in labels.items()})
    if not pairs:
        name = next(iter(label_selector(label)))
        return f"no node has any label: start them with one ({name}), or empty --{key}"
    near = difflib.get_close_matches(label, pairs, n=1, cutoff=0.6)
    meant = f"; is {near[0]} meant?" if near else ""
    return f"there are {', '.join(pairs)}{meant} Correct --{key}, or the nodes' labels"
