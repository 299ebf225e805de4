"""YAML with the line that each value stands on, and without keys that stand twice in a mapping,
of which YAML takes the last without a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jobs.cli.errors import ConfigError

Place = tuple[Any, ...]
"""The keys that lead to a value, from the top."""


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


class Lines:
    """Where things stand in a file, for messages about them."""

    def __init__(self, path: Path, lines: dict[Place, int]) -> None:
        self.path = path
        self._lines = lines

    def error(self, place: Place, message: str) -> ConfigError:
        """An error about the value at `place`, with its line, or that of what holds it."""
        while place and place not in self._lines:
            place = place[:-1]
        return ConfigError(f"{self.path}, line {self._lines.get(place, 1)}: {message}")


def load(source: str, path: Path) -> tuple[Any, yaml.Node | None]:
    """What a YAML file holds, and the nodes that it is made of; None for both where it is empty.

    Args:
        source: what messages call it.
        path: the file.

    Raises:
        ConfigError: where it cannot be read, or names a key twice.
        yaml.YAMLError: where it is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not text: {error}") from error
    # It says what cannot be a key, which the walks through the nodes take for granted.
    content = yaml.safe_load(text)
    node = yaml.compose(text, yaml.SafeLoader)
    for key, line in repeated_keys(node):
        raise ConfigError(f"{source}, line {line}: {key} stands here a second time")
    return content, node


def read(path: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: where it cannot be read, is no mapping, or names a key twice.
    """
    try:
        content, node = load(str(path), path)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}, line {line}: not YAML: {error.problem}") from error
    if node is None:
        return {}, Lines(path, {(): 1})
    if not isinstance(content, dict):
        raise ConfigError(f"{path}, line 1: expected keys such as `space:` and `search:`")
    return content, Lines(path, {(): 1} | dict(_walk(node, ())))


def _walk(node: yaml.Node, place: Place) -> Iterator[tuple[Place, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, key.value), key.start_mark.line + 1
            yield from _walk(value, (*place, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield (*place, position), value.start_mark.line + 1
            yield from _walk(value, (*place, position))
