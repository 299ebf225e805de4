"""Imported once by the server that test workers are forked from, so that none has to do it again:
what training imports, and what PyTorch does at the first optimizer."""

import os
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")
# As in taehv/training/engines.py: DeepSpeed's autotuner would import MLflow.
sys.modules["mlflow"] = None  # type: ignore[assignment]
import deepspeed  # noqa: E402, F401

import taehv.training  # noqa: E402, F401

del sys.modules["mlflow"]
