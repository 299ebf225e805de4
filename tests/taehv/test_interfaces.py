"""What `taehv` and `data_pipeline`, which may not import each other, both define is the same."""

from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np

from data_pipeline import batches, clips
from taehv import interfaces, slots


def structure(kind: Any) -> Any:
    """A type with its typed dictionaries written out; all arrays are alike."""
    if is_typeddict(kind):
        return {name: structure(hint) for name, hint in get_type_hints(kind).items()}
    origin = get_origin(kind)
    if origin is None or origin is np.ndarray:
        return origin or kind
    return origin, *map(structure, get_args(kind))


def test_both_packages_define_the_same_batch() -> None:
    assert structure(interfaces.Batch) == structure(batches.Batch)
    assert structure(interfaces.RejectedVideo) == structure(batches.RejectedVideo)
    assert structure(interfaces.TransientFailure) == structure(clips.TransientFailure)
    assert slots.SURPLUS == batches.SURPLUS
