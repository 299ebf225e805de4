"""The run that the faults without Ray strike: both networks, the teacher, 12 steps."""

import dataclasses
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taehv.losses.teacher import TeacherConfig
from taehv.training.config import TrainingConfig
from tests.faults.bare_run import Life
from tests.faults.leftovers import environment_of, own_temp
from tests.faults.lives import run_to_end
from tests.helpers.hold import Hold
from tests.helpers.small_run import small_config, with_train
from tests.helpers.small_teacher import save_small_teacher

STEPS, SAVE_EVERY = 12, 2


@dataclass(frozen=True)
class Setting:
    """Where the runs of a test are, and what they are to be compared with."""

    folder: Path
    temp: Path
    """For temporary files of what the test starts."""
    config: TrainingConfig
    chance: random.Random

    def life(self, name: str, **more: Any) -> Life:
        """A life of the run `name`; what of `Life` is not as usual is given."""
        environment = environment_of(self.temp)
        life = Life(self.config, str(self.run(name)), self.notes(name), environment=environment)
        return dataclasses.replace(life, **more)

    def run(self, name: str) -> Path:
        """The folder of the run `name`."""
        return self.folder / name

    def notes(self, name: str) -> Path:
        """What the lives of the run `name` write down."""
        return self.folder / f"{name}_notes"

    def hold(self, name: str, **limits: int) -> Hold:
        """For lives of the run `name`: the names of limits are `STEP` and `SAVE`."""
        return Hold(self.folder / f"{name}_hold", **limits)

    def configured(self, **train: Any) -> "Setting":
        """The same with other settings of the train section."""
        return dataclasses.replace(self, config=with_train(self.config, **train))

    def undisturbed(self, name: str = "reference", workers: int = 1, **more: Any) -> Path:
        """The folder of a run that nothing happened to; made at the first call."""
        if not self.run(name).exists():
            run_to_end(self.life(name, **more), workers)
        return self.run(name)


@contextmanager
def bare_setting(folder: Path) -> Iterator[Setting]:
    """A setting whose processes and temporary files are gone at the end."""
    config = small_config(
        max_steps=STEPS, checkpoint_every=SAVE_EVERY, validation_every=4, validation_clips=2
    )
    teacher = TeacherConfig(path=str(save_small_teacher(folder / "teacher")))
    config = dataclasses.replace(config, teacher=teacher)
    seed = int(os.environ.get("FAULTS_SEED", "0"))
    with own_temp() as temp:
        yield Setting(folder, temp, config, random.Random(seed))
