"""best_model.* and final_model.*, the weights that a run hands over."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from taehv import distributed
from taehv.errors import TrainingError
from taehv.model.weights import export_weights
from taehv.run.run_folder import RunFolder, resume_options

log = logging.getLogger(__name__)


class WeightFiles:
    """Writes a network's weights into the run's folder, as .pth and as .safetensors, on the main
    worker."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._best: dict[str, Tensor] | None = None
        """The best weights, while they have yet to be written."""

    def keep_best(self, network: nn.Module) -> None:
        """Copy the weights, and write them."""
        if distributed.is_main():
            self._best = {key: value.clone() for key, value in network.state_dict().items()}
            self.write_best()

    def write_best(self) -> None:
        """Write the best weights, unless they are written; after a failure the next call tries
        again."""
        if self._best is None:
            return
        try:
            self._write("best_model", self._best)
        except OSError as error:
            log.warning("best_model.* cannot be written yet: %s", error)
        else:
            self._best = None

    def write_final(self, network: nn.Module, last_good: int | None) -> None:
        """Write the final weights. A collective.

        last_good: the step of the last checkpoint that is known to be valid.
        Raises TrainingError if they cannot be written.
        """
        fault = ""
        if distributed.is_main():
            try:
                self._write("final_model", network.state_dict())
            except OSError as error:
                fault = str(error)
        fault = distributed.from_main(fault)
        if fault:
            good = "none of this process's" if last_good is None else f"the one of step {last_good}"
            raise TrainingError(
                f"final_model.* cannot be written ({fault}). Make room in, or see to, {self._run}, "
                f"and go on with {resume_options(self._run.address)}; the last good checkpoint is "
                f"{good}"
            )

    def _write(self, name: str, weights: Mapping[str, Tensor]) -> None:
        files = [f"{name}.pth", f"{name}.safetensors"]
        export_weights(weights, *(self._run.local / file for file in files))
        for file in files:
            self._run.publish(file)
