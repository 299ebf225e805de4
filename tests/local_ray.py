"""A Ray of this process alone."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def local_ray(cpus: int = 2) -> Iterator[None]:
    """Begin one, with a temporary folder of its own, and end it."""
    # The path of a socket may have 107 characters, which pytest's own folders leave no room for.
    folder = tempfile.mkdtemp(prefix="ray_", dir="/tmp")
    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        namespace=uuid.uuid4().hex,
        logging_level="warning",
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
