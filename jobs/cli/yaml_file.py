"""Keys that stand twice in one mapping of a YAML file: YAML takes the last without a word."""

from __future__ import annotations

from collections.abc import Iterator

import yaml


def repeated_keys(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Each with the line of its second place, from 1, whatever mapping it is in."""
    # By an alias a node may be met twice, or hold itself.
    seen: set[int] = set()
    left = [root]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            names = [(key.tag, key.value) for key in keys]
            for place, key in enumerate(keys):
                if names[place] in names[:place]:
                    yield key.value, key.start_mark.line + 1
            left += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            left += node.value
