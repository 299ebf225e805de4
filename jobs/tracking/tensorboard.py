"""TensorBoard's event files: the same rows under the same names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class EventFile:
    """One event file in a folder, made with the first row."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._broken = False

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Write one row of metrics, at this step. A disk that refuses costs a warning."""
        if self._broken:
            return
        try:
            if self._writer is None:
                # Imported here, since it takes seconds that most runs need not spend.
                from torch.utils.tensorboard import SummaryWriter

                # A run that goes on writes its last steps again: TensorBoard then drops those of
                # the earlier file.
                self._writer = SummaryWriter(self._folder, purge_step=step)
            for name, value in row.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError as error:
            self._broken = True
            logger.warning("event files for TensorBoard cannot be written: %s", error)

    def close(self) -> None:
        """End the file; a later row begins another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
