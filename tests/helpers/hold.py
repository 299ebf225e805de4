"""A job that waits for its test, so that it is neither over before a blow falls nor struck too
early, however fast the machine is."""

import os
from pathlib import Path

from tests.helpers.held import job_gates
from tests.helpers.held.job_gates import FOLDER, READS

__all__ = ["READS", "Hold"]


class Hold:
    """Limits for a job, which waits where it has reached one.

    Args:
        folder: for what the test and the job tell each other; made here.
        limits: by the name of a run's folder, how many of its steps may be made before it waits:
            after the last of them, before anything is told or written of it, and leaves where it is
            asked to stop. By `READS`, how many reads of videos may be made, by all decoders
            together.
    """

    def __init__(self, folder: Path, **limits: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, limit in limits.items():
            self.let_go(name, limit)

    @property
    def variables(self) -> dict[str, str]:
        """Of the job's environment; its processes hand them on to those that they start."""
        places = [str(Path(job_gates.__file__).parent), os.environ.get("PYTHONPATH", "")]
        return {
            FOLDER: str(self.folder),
            "PYTHONPATH": os.pathsep.join(place for place in places if place),
        }

    def let_go(self, name: str, limit: int | None = None) -> None:
        """On to a limit further away, or, without one, to the end. Where it was is forgotten."""
        file = self.folder / f"{name}.limit"
        self._where(name).unlink(missing_ok=True)
        if limit is None:
            file.unlink(missing_ok=True)
            return
        # In one piece, since the job may be reading it.
        piece = self.folder / f"{name}.piece"
        piece.write_text(str(limit))
        piece.replace(file)

    def waits(self, name: str) -> bool:
        """Whether the job has reached the limit, and goes no further before it is let go."""
        limit = int((self.folder / f"{name}.limit").read_text())
        where = self._where(name)
        if not where.exists():
            return False
        if int(where.read_text()) >= limit:
            return True
        # It had waited at the last limit, and was let go just then.
        where.unlink()
        return False

    def _where(self, name: str) -> Path:
        return self.folder / f"{name}.waits"
