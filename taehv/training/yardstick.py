"""The linear limit of a run: fitted to its first training clips, and kept in its folder."""

from __future__ import annotations

import logging

import torch

from taehv import distributed
from taehv.evaluation.linear import FILE, UNREADABLE, BlockShape, LinearFit, LinearLimit
from taehv.interfaces import Batch
from taehv.model import TAEHV
from taehv.run.run_folder import RunFolder
from taehv.slots import SURPLUS

log = logging.getLogger(__name__)


class Yardstick:
    """Fits the transform on the main worker, to the clips that it trains on."""

    def __init__(self, run: RunFolder, network: TAEHV) -> None:
        self._run = run
        self._fit: LinearFit | None = None
        self._limit: LinearLimit | None = None
        if not distributed.is_main():
            return
        if run.exists(FILE):
            try:
                self._limit = LinearLimit.load(run.retrieve(FILE))
            except UNREADABLE as error:
                log.warning("%s is fitted anew: it cannot be read: %s", FILE, error)
        if self._limit is None:
            block = BlockShape(network.time_downscale, network.space_downscale)
            self._fit = LinearFit(block, network.latent_channels)

    def add(self, batch: Batch) -> None:
        """The clips of a step; nothing once there were enough."""
        if self._fit is None:
            return
        real = batch["sample"] != SURPLUS
        self._fit.add(torch.from_numpy(batch["frames"][real]).float() / 255)
        if self._fit.is_full:
            self._conclude(self._fit)

    def limit(self) -> LinearLimit | None:
        """The transform; None where there were too few blocks. A collective."""
        if self._fit is not None:
            self._conclude(self._fit)
        limit: LinearLimit | None = distributed.from_main(self._limit)
        return limit

    def _conclude(self, fit: LinearFit) -> None:
        self._limit, self._fit = fit.result(), None
        if self._limit is None:
            return
        try:
            self._limit.save(self._run.local / FILE)
            self._run.publish(FILE)
        except OSError as error:
            log.warning("%s cannot be written, and later evaluations lack it: %s", FILE, error)
