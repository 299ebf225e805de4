"""Private parts of Ray are used in the files that are named after them, and in no others."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.helpers.jobs_run import REPOSITORY

FILES = {"jobs/cluster/ray_internals.py", "data_pipeline/ray_data_internals.py"}


def private_uses(source: str) -> Iterator[str]:
    """Imports of Ray's private modules and names, and, in a file that imports Ray, attributes with
    an underscore of anything but the class's own object."""
    nodes = list(ast.walk(ast.parse(source)))
    imported = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names] + [
        f"{n.module}.{alias.name}"
        for n in nodes
        if isinstance(n, ast.ImportFrom) and n.module
        for alias in n.names
    ]
    of_ray = [name for name in imported if name.split(".")[0] == "ray"]
    yield from (n for n in of_ray if re.search(r"\._|\.internal|^ray\.train\.v2", n))
    for node in nodes:
        if of_ray and isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()"):
                yield f"{owner}.{node.attr}"


@pytest.mark.parametrize(
    "source",
    [
        "from ray._private.state import state",
        "from ray import _raylet",
        "import ray.data._internal.util",
        "from ray.train.v2.api.config import RunConfig",
        "import ray\nray._private.worker",
        "import ray\ndef f(executor): executor._resource_manager = 1",
    ],
)
def test_a_private_use_is_seen(source: str) -> None:
    assert list(private_uses(source))


def test_private_parts_of_ray_are_used_in_two_files() -> None:
    used = {
        str(file.relative_to(REPOSITORY))
        for room in ("jobs", "data_pipeline", "taehv")
        for file in (REPOSITORY / room).rglob("*.py")
        if list(private_uses(file.read_text()))
    }
    assert used == FILES
