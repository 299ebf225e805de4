"""The training loop. It imports no Ray: it takes batches and hooks, and runs in any process group,
under Ray Train, under torchrun, or in a single process."""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from taehv import distributed
from taehv.errors import DivergedError, MemoryShortageError, TrainingError
from taehv.host_memory import keep_freed_memory
from taehv.interfaces import Data, Hooks
from taehv.losses.teacher import Teacher, slope_to_student, slope_warning
from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder
from taehv.run.saving import Saver
from taehv.training.config import TrainingConfig
from taehv.training.memory import explain_memory_shortage, release_gpu_memory
from taehv.training.meter import Meter
from taehv.training.recovery import end_of_stage, halve_passes, rollback_target
from taehv.training.run_log import RunLog
from taehv.training.start import prepare_start
from taehv.training.state import TrainState
from taehv.training.step import Signals, StepOutcome, train_step
from taehv.training.supply import Supply
from taehv.training.validation import SampleClips, Scores, ValidationSet
from taehv.training.weight_files import WeightFiles
from taehv.training.yardstick import Yardstick

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """How a call of `train` ended."""

    step: int
    finished: bool
    """False if a hook stopped the run before its last step."""
    baselines: dict[str, Scores] = field(default_factory=dict)


def train(
    config: TrainingConfig,
    data: Data,
    hooks: Hooks,
    run: RunFolder,
    resume_from: Path | None = None,
    retry: bool = True,
) -> Summary:
    """Train until `train.max_steps`, or until a hook asks to stop.

    Leaves in the run's folder metrics.jsonl, quarantine.jsonl, checkpoints/, best_model.* and,
    when finished, final_model.pth and .safetensors with the averaged weights.

    Args:
        config, data, hooks: what to train and how, where clips come from, and what to call.
        run: the folder, which all workers share.
        resume_from: a valid checkpoint.
        retry: whether a single worker halves its passes by itself when a GPU's memory is short
            (`train.auto_micro_batch`). Several workers leave that to the process that started them.

    Raises:
        MemoryShortageError: if a pass is too large for a GPU, on the worker where it happens. The
            other workers then wait for it in a collective, and must be killed.
        TrainingError: for bad input, for a run that diverges and may not be rolled back, and for
            checkpoints that cannot be written.
    """
    if fault := config.contradiction():
        raise TrainingError(fault)
    distributed.initialise()
    # Workers wait for the main one's start, which waits for clips.
    distributed.set_collective_timeouts()
    keep_freed_memory()
    # This process may have trained another run before.
    release_gpu_memory()
    with ThreadPoolExecutor(1) as executor:
        # Other processes decode the validation clips while this one builds the networks.
        decoding = executor.submit(ValidationSet, data, config.train.validation_clips, 1)
        teacher = None
        if config.teacher.path:
            teacher = Teacher.load(config.teacher, distributed.device())
            student = config.model.architecture
            teacher.check_matches(
                student.latent_channels, student.time_downscale, student.space_downscale
            )
        start = prepare_start(config, data, run, teacher) if resume_from is None else None
        state = _build_state(config, run, resume_from, start)
        # Of DeepSpeed's groups too.
        distributed.set_collective_timeouts()
        validation = decoding.result()
    while True:
        resumed_step = checkpoint.step_in_run(run, resume_from)
        validation.set_clips_per_pass(state.layout.slots_per_pass)
        attempt = _Attempt(state, data, hooks, run, validation, teacher, resumed_step)
        rollbacks, scale = state.rollbacks, state.learning_rate_scale
        try:
            with explain_memory_shortage(state.config, state.layout, attempt.clip_shape):
                summary = attempt.run_steps(resume_from is not None)
            if summary is not None:
                return summary
            resume_from = end_of_stage(run, state)
        except DivergedError as error:
            attempt.close()
            resume_from = rollback_target(run, state, error)
            rollbacks, scale = rollbacks + 1, scale / 2
        except MemoryShortageError as error:
            if not retry or state.layout.workers > 1:
                raise
            config = halve_passes(config, error)
            attempt.close()
            newest = checkpoint.latest_valid(run)
            resume_from = run.retrieve(newest) if newest else resume_from
        # Free the old state's memory before the new state is allocated.
        del attempt, state
        release_gpu_memory()
        state = _build_state(config, run, resume_from, start)
        state.rollbacks, state.learning_rate_scale = rollbacks, scale


def _build_state(
    config: TrainingConfig, run: RunFolder, resume_from: Path | None, start: Path | None
) -> TrainState:
    """A new state, from the weights in `start` if there is such a file, or that of a checkpoint."""
    torch.manual_seed(config.train.seed)
    state = TrainState(config, distributed.world_size(), resume_from, start)
    if checkpoint.step_in_run(run, resume_from) is None:
        state.begin_new_run()
    return state


class _Attempt:
    """The steps from a state to the end of its stage or of the run, to a stop, or to a failure.

    Args:
        state, data, hooks, run, validation, teacher: as in `train`.
        resumed_from: the step of the run's own checkpoint that the state is; None for another.
    """

    def __init__(
        self,
        state: TrainState,
        data: Data,
        hooks: Hooks,
        run: RunFolder,
        validation: ValidationSet,
        teacher: Teacher | None,
        resumed_from: int | None,
    ) -> None:
        self.state, self.hooks, self.run = state, hooks, run
        self.validation, self.teacher = validation, teacher
        self.config = state.config.train
        self.saver = Saver(
            run, self.config.keep_checkpoints, self.config.max_failed_saves, resumed_from
        )
        self.supply = Supply(
            data,
            state.layout,
            state.stage,
            range(state.step, state.stage_steps.stop),
            state.transient_failures,
            run,
            hooks,
        )
        self.yardstick = Yardstick(run, state.generator)
        self.meter = Meter(self.config.global_batch_size)
        self._clip_shape: tuple[int, ...] = (0, 0, 0, 0)
        self.weight_files = WeightFiles(run)

    def run_steps(self, resumed: bool) -> Summary | None:
        """Train until the end or a stop; None where the run goes on with its next stage, from the
        checkpoint that this one ends with.

        Args:
            resumed: whether the state is a checkpoint's. Its step was logged and validated before
                it was saved, and is not again.
        """
        state, config, hooks = self.state, self.config, self.hooks
        for batch in self.validation.batches:
            self.supply.add_rejected(batch)
            self._clip_shape = batch["frames"].shape[1:]
        self.log = RunLog(self.run, state, hooks, state.step if resumed else -1)
        outcome: StepOutcome | None = None
        stopping = False

        while True:
            finished = state.step >= config.max_steps
            stage_ends = state.step >= state.stage_steps.stop
            stopping = stopping or finished
            if outcome or not resumed:
                row: dict[str, float] = {}
                if outcome and (stopping or stage_ends or state.step % config.log_every == 0):
                    row |= outcome.row() | self.meter.row() | self.supply.row()
                    row |= self._stage_row()
                improved = False
                if state.step % config.validation_every == 0 or stage_ends:
                    row |= self._validate()
                    improved = self._update_best(row["val_ema/psnr"])
                if row:
                    self.log.write(row)
                if self._has_stagnated():
                    stopping = finished = True
                due = improved or state.step % config.checkpoint_every == 0
                # A rollback must not lead to a checkpoint from after the divergence began.
                if stage_ends and not finished:
                    self.log.check_end_of_stage()
                due = due and not self.log.divergence_suspected
                if outcome and (stopping or stage_ends or due):
                    self._save()
            if stopping or stage_ends:
                break

            # ------------------------------------------------------------ one step
            batch = self.supply.next()
            self.yardstick.add(batch)
            self._clip_shape = batch["frames"].shape[1:]
            outcome = train_step(
                state,
                batch,
                self.teacher,
                Signals(stop=hooks.should_stop(), written=self.saver.has_written()),
                self.supply.prefetch,
            )
            stopping = outcome.stop_wanted
            if outcome.all_have_written:
                self.saver.conclude()
            self.meter.count_step()
            hooks.on_step(state.step, batch["sample"].tolist())
            # ------------------------------------------------------------

        if not stopping:
            self.close()
            self.log.close()
            return None
        self._end(finished)
        # Scored last, since training does not need it.
        baselines = self.validation.score_baselines(self.yardstick.limit())
        return Summary(state.step, finished, baselines)

    def _stage_row(self) -> dict[str, float]:
        """The stage, from 1; nothing of a run without stages."""
        return {"train/stage": self.state.stage + 1} if self.state.run_config.train.stages else {}

    def clip_shape(self) -> tuple[int, ...]:
        """[T, C, H, W] of the last batch."""
        return self._clip_shape

    def _validate(self) -> dict[str, float]:
        state, train = self.state, self.config
        dtype = train.autocast_dtype()
        samples = SampleClips(train.sample_clips if distributed.is_main() else 0)
        artifacts: Scores = {}
        averaged = self.validation.score(state.ema.network, dtype, samples, artifacts)
        # Before the first step both networks are the same.
        raw = self.validation.score(state.generator, dtype) if state.step else averaged
        shrunk = self.validation.score_shrunk(state.ema.network, dtype)
        if samples.count:
            self.hooks.on_samples(state.step, *samples.arrays())
        found = {"val": raw, "val_ema": averaged, "val_shrunk": shrunk, "artifacts": artifacts}
        return {
            f"{prefix}/{name}": value
            for prefix, scores in found.items()
            for name, value in scores.items()
        }

    def _update_best(self, psnr: float) -> bool:
        """Whether this validation is the best so far; if so, write its averaged weights."""
        state = self.state
        # Also false for NaN.
        if not psnr > (-math.inf if state.best is None else state.best[0]):
            return False
        state.best = (psnr, state.step)
        self.weight_files.keep_best(state.ema.network)
        return True

    def _has_stagnated(self) -> bool:
        """Whether `early_stopping_validations` in a row have brought no better PSNR."""
        patience, best = self.config.early_stopping_validations, self.state.best
        if not patience or best is None:
            return False
        stagnated = self.state.step - best[1] >= patience * self.config.validation_every
        if stagnated and distributed.is_main():
            log.info(
                "no better validation than %.2f dB (step %d) in %d: the run ends early",
                best[0],
                best[1],
                patience,
            )
        return stagnated

    def _save(self) -> None:
        self.supply.gather_rejected()
        self.log.publish()
        self.weight_files.write_best()
        # The new snapshot overwrites the one that may still be being written.
        self.saver.finish()
        self.saver.begin(self.state.snapshot())

    def _end(self, finished: bool) -> None:
        self.close()
        if self.teacher and self.validation.batches:
            _warn_of_slope(self.state, self.teacher, self.validation)
        self.weight_files.write_best()
        if finished:
            self.weight_files.write_final(self.state.ema.network, self.saver.last_good)
        self.log.close()
        distributed.barrier()

    def close(self) -> None:
        """Complete the save that is under way, and end the threads and the decoding."""
        self.saver.finish()
        self.saver.close()
        self.supply.close()


@torch.no_grad()
def _warn_of_slope(state: TrainState, teacher: Teacher, validation: ValidationSet) -> None:
    """Warn if the student's latents have another scale than the teacher's."""
    frames = torch.from_numpy(validation.batches[0]["frames"]).to(distributed.device())
    frames = frames.float() / 255
    slope = slope_to_student(state.ema.network.encode_video(frames), teacher.encode(frames))
    warning = slope_warning(slope)
    if warning and distributed.is_main():
        log.warning(warning)
