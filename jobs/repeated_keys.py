"""Keys that stand twice in one mapping of a YAML file: YAML takes the last without a word."""

from __future__ import annotations

from collections.abc import Iterator

import yaml


def repeated_keys(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Each with the line of its second place, from 1, whatever mapping below `node` it is in."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from repeated_keys(value)
