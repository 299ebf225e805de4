"""Random histories of a run's checkpoints: saves, failures, kills, resumes and goings back.

At every moment at least one checkpoint that was reported is whole, and the newest whole one is the
last of the history that goes on.
"""

import logging
import random
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taehv.errors import TrainingError
from taehv.model import TAEHV, ModelConfig
from taehv.run import checkpoint
from taehv.run.resume import prepare_resume
from taehv.run.run_folder import RunFolder
from taehv.run.saving import Saver, Snapshot
from tests.helpers.s3_server import s3_server
from tests.helpers.strikes import Killed, Strikes, StruckFolder, strikes_below

WEIGHTS = TAEHV(ModelConfig(encoder_width=2, decoder_widths=(2, 2, 2, 2))).state_dict()


class History:
    """What a run goes through, and what has been told of its checkpoints.

    Args:
        open_run: opens its folder as a new process does.
        strikes: what may happen to it.
        moments: a save has about so many.
        chance: decides what happens.
    """

    def __init__(
        self,
        open_run: Callable[[], RunFolder],
        strikes: Strikes,
        moments: int,
        chance: random.Random,
    ) -> None:
        self._open, self._strikes, self._moments, self._chance = open_run, strikes, moments, chance
        self._keep = chance.randint(1, 3)
        self._marks = 0
        self._best: int | None = None
        self._struck = False
        self._held: dict[int, int] = {}
        """Those of the history that were whole when this was last looked at."""
        self.reported: dict[int, int] = {}
        """The mark of each checkpoint that was reported of the history that goes on, by step."""
        self._under_way = (0, 0)
        """Step and mark of the last save."""
        self._attempts: set[tuple[int, int]] = set()
        """Those of all saves of the history that goes on."""

    def go_on(self, saves: int) -> None:
        """One life, to its end or its kill, with at most so many saves."""
        run = self._open()
        if len(self.reported) > 1 and self._chance.random() < 0.3:
            self._go_back(run)
            run = self._open()
        elif self._chance.random() < 0.2:
            self._damage_newest()
        step = self._resume()
        whole = self.whole()
        self._held = {s: mark for s, mark in whole.items() if step is not None and s <= step}
        with self._reports():
            self._strike()
            saver: Saver | None = None
            try:
                saver = Saver(run, self._keep, 2, resumed_from=step)
                for _ in range(self._chance.randint(1, saves)):
                    # Also that which the life goes on from, or has just saved, again.
                    step = step + self._chance.randint(0, 3) if step else 1
                    self._save(saver, step)
                    self._strike()
            except (Killed, TrainingError):
                pass
            finally:
                if saver:
                    saver.close()
        self._strikes.spare()
        self.check()

    def whole(self) -> dict[int, int]:
        """The mark of each checkpoint that is whole, by step; read as another process would."""
        run = self._plain()
        found = {}
        with self._strikes.looking():
            for name in checkpoint.names(run):
                folder = run.retrieve(name)
                if checkpoint.find_fault(folder) is None:
                    found[checkpoint.step_of(folder)] = int(checkpoint.read_info(folder)["mark"])
        return found

    def check(self) -> None:
        """What must hold at every moment."""
        whole = self.whole()
        assert not self.reported or whole.items() & self.reported.items(), "none is whole"

    def _resume(self) -> int | None:
        """The step that the next life goes on from."""
        name = checkpoint.latest_valid(self._plain())
        if name is None:
            assert not self.reported
            return None
        run = self._plain()
        step = checkpoint.step_of(Path(name))
        info = checkpoint.read_info(run.retrieve(name))
        if (step, info["mark"]) in self._attempts:
            # Killed, or told a failure, after its last act.
            self.reported[step] = info["mark"]
        assert (step, info["mark"]) == max(self.reported.items()), "not the history's newest"
        self._best = info["best"][1] if info["best"] else None
        return step

    def _save(self, saver: Saver, step: int) -> None:
        if step == saver.last_good:
            saver.begin(Snapshot(step, {}, {}))
            return
        self._marks += 1
        self._under_way = (step, self._marks)
        self._attempts.add(self._under_way)
        best = step if self._chance.random() < 0.3 else self._best
        info = {"step": step, "mark": self._marks, "best": None if best is None else [0.0, best]}
        tensors = {"ema": lambda: WEIGHTS, "generator": lambda: WEIGHTS}
        saver.begin(Snapshot(step, info, tensors, {"note": str(step)}))
        while self._chance.random() < 0.5 and not saver.has_written():
            pass
        saver.finish()
        # As training does: a best whose save fails stays the best.
        self._best = best
        if saver.last_good != step:
            return
        before, self._held = self._held, self.whole()
        if self._struck:
            return
        stays = sorted({*before, step})
        expected = {s: self.reported[s] for s in stays if s in stays[-self._keep :] or s == best}
        assert self._held == expected
        with self._strikes.looking():
            assert len(checkpoint.names(self._plain())) == len(expected)

    def _go_back(self, run: RunFolder) -> None:
        whole = self.whole().keys() & self.reported.keys()
        step = self._chance.choice(sorted(whole))
        self._strike()
        try:
            prepare_resume(run, run.address_of(checkpoint.name_of(step)))
        except (Killed, OSError):
            # The later ones go first.
            step = max(self.whole())
        self._strikes.spare()
        self.reported = {s: mark for s, mark in self.reported.items() if s <= step}
        self._attempts = {(s, mark) for s, mark in self._attempts if s <= step}

    def _damage_newest(self) -> None:
        """As a disk does, of a run that has others."""
        whole = sorted(self.whole().keys() & self.reported.keys())
        run = self._plain()
        if len(whole) < 2:
            return
        name = f"{checkpoint.name_of(whole[-1])}/ema.safetensors"
        path = run.retrieve(name)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        run.publish(name)
        self.reported = {s: mark for s, mark in self.reported.items() if s <= whole[-2]}
        self._attempts = {(s, mark) for s, mark in self._attempts if s != whole[-1]}

    def _strike(self) -> None:
        """Decide on what happens until the next call."""
        self._strikes.spare()
        kind = self._chance.choice(["nothing", "nothing", "a kill", "refusals"])
        first = self._chance.randint(1, self._moments)
        self._struck = kind != "nothing"
        if kind == "a kill":
            self._strikes.kill_at(first)
        elif kind == "refusals":
            self._strikes.refuse(range(first, first + self._chance.randint(1, self._moments)))

    def _plain(self) -> RunFolder:
        return RunFolder(self._open().address)

    @contextmanager
    def _reports(self) -> Iterator[None]:
        """Listen to what is said of checkpoints."""
        history = self

        class Listener(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if re.fullmatch("checkpoint .* is saved", record.getMessage()):
                    step, mark = history._under_way
                    history.reported[step] = mark

        logger, listener = logging.getLogger("taehv.run.saving"), Listener(logging.INFO)
        level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(listener)
        try:
            yield
        finally:
            logger.removeHandler(listener)
            logger.setLevel(level)


@pytest.mark.parametrize("seed", range(20))
def test_on_a_disk(tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "run"
    with strikes_below(folder) as strikes:
        history = History(lambda: RunFolder(str(folder)), strikes, 30, random.Random(seed))
        strikes.watch = history.check
        for _ in range(5):
            history.go_on(saves=5)


@pytest.mark.parametrize("seed", range(1))
def test_in_a_store(seed: int) -> None:
    with s3_server() as server:
        bucket = uuid.uuid4().hex
        server.put(f"{bucket}/there", b"")
        strikes = Strikes()
        address = f"s3://{bucket}/run{server.options}"
        history = History(lambda: StruckFolder(address, strikes), strikes, 20, random.Random(seed))
        for _ in range(3):
            history.go_on(saves=3)
