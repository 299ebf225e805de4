"""Folders that all nodes of a cluster see: where a run goes by default, and the synthetic set."""

from __future__ import annotations

import logging
from pathlib import Path

from pyarrow import fs

from data_pipeline.synthetic import ANNOTATIONS

log = logging.getLogger(__name__)


def is_job_copy(folder: Path) -> bool:
    """Whether it is in the copy of the code that `ray job submit` made, and will throw away."""
    return "runtime_resources" in folder.parts


def placed(path: str, storage: str) -> str:
    """`path` below `storage`, where it is relative; storage may end in `?endpoint_override=...`."""
    if "://" in path or path.startswith("/"):
        return path
    place, question, options = storage.partition("?")
    return f"{place.rstrip('/')}/{path}{question}{options}"


def share(folder: Path, storage: str) -> str:
    """Copy a MiniDataset's `folder` below `storage`, if it is not there; the annotations there.

    Raises OSError where the store refuses.
    """
    target = placed(f"data/{folder.name}", storage)
    annotations = placed(f"data/{folder.name}/{ANNOTATIONS}", storage)
    store, path = fs.FileSystem.from_uri(target) if "://" in target else (None, target)
    store = store or fs.LocalFileSystem()
    if store.get_file_info(f"{path}/{ANNOTATIONS}").type != fs.FileType.File:
        log.info("copying the synthetic videos to %s", target)
        store.create_dir(path, recursive=True)
        # The annotations last: where they are, the set is whole.
        for file in sorted(folder.iterdir(), key=lambda file: file.name == ANNOTATIONS):
            with store.open_output_stream(f"{path}/{file.name}") as stream:
                stream.write(file.read_bytes())
    return annotations
