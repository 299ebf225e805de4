"""Synthetic driving videos, to try things out on: `python -m data_pipeline.synthetic --out DIR`."""

from data_pipeline.synthetic.dataset import (
    ANNOTATIONS,
    SyntheticConfig,
    ensure_synthetic,
    write_synthetic,
)

__all__ = ["ANNOTATIONS", "SyntheticConfig", "ensure_synthetic", "write_synthetic"]
