"""The sections of the configuration that training reads, put together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Self, TypeVar

import torch

from taehv import distributed
from taehv.losses.reconstruction import LossConfig
from taehv.losses.seraena import SeraenaConfig
from taehv.losses.teacher import TeacherConfig
from taehv.model.variants import ModelConfig
from taehv.slots import SlotLayout
from taehv.training.optimizer import OptimConfig
from taehv.training.stages import Stage, steps_of_stages

T = TypeVar("T")


@dataclass(frozen=True)
class TrainConfig:
    run_dir: str = ""
    """Folder of the run; empty: a new one under runs/, named by date and time."""
    resume: str = ""
    """`latest`: go on from this run folder's newest whole checkpoint, or from the start where
    there is none yet. Or the address of a checkpoint: an older one of this run, to which this
    command goes back, setting aside what came after it; or one of another run, from which this one
    begins. A resumed run has the settings of its own config.yaml, unless --config or the command
    line says otherwise; the differences are logged."""
    resume_changed: bool = False
    """Go on also where other videos, another split into training and validation, or another frame
    rule of the network is asked for than the run had: each would otherwise be refused. It holds for
    one command."""
    start: Literal["solved", "near_identity", "pytorch"] = "solved"
    """The weights of a run from scratch. solved: a linear codec, by principal components and least
    squares from the first clips of training, written into the network in seconds. near_identity:
    a faint thumbnail. pytorch: PyTorch's own initialisation, and a grey picture."""
    global_batch_size: int = 8
    """Clips per step over all workers. What each worker does of it follows from their number."""
    slots_per_group: int = 2
    """Clips over which the discriminator's BatchNorm and the correction's spread are taken.
    Workers are given whole groups; it is part of the result, unlike the number of workers."""
    max_clips_per_pass: int = 0
    """Most clips that fit a worker's memory at once; the rest is accumulated. 0: no limit."""
    auto_micro_batch: bool = False
    """Where a pass is too large for a GPU's memory, halve `max_clips_per_pass`, down to one group,
    and go on from the last good checkpoint. The global batch stays; no failure is counted."""
    gradient_checkpointing: bool = False
    """Activations are computed again in the backward pass: less memory, about a third more time."""
    max_steps: int = 10_000
    """Steps of the run."""
    stages: tuple[Stage, ...] = ()
    """Parts of the run, in a YAML file a list, that have other settings than the rest of the
    configuration says: size of the clips, batch, learning rate, adversary, frozen encoder."""
    freeze_encoder: bool = False
    """Train the decoder alone, on the latents of the encoder as it is."""
    seed: int = 0
    """Of the sample order and of every random draw."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks; auto: bf16 on a GPU, fp32 on a CPU. Weights are fp32 always."""
    compile: bool = False
    """Run the generator through torch.compile: the first step takes a minute longer, and each one
    after may take less; benchmarks/step.py tells. Where it cannot be compiled, a line in the log
    says so, and the run goes on without."""
    cuda_graphs: bool = True
    """On a GPU, record the kernels of a pass and start them together: the CPU takes longer to start
    some one by one than the GPU to run them. Each pass then keeps its memory for itself; where that
    is short, a line in the log says so, and the run goes on without."""
    ema_decay: float = 0.999
    """Of the averaged weights, which a run exports."""
    log_every: int = 10
    """Steps between rows of metrics."""
    validation_every: int = 500
    """Steps between validations; one stands at the start and one at the end besides."""
    validation_clips: int = 16
    """Clips of the held-out videos that are scored."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is written at the end besides."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept, besides the one of the best validation."""
    max_failed_saves: int = 3
    """Checkpoints in a row that may fail to be written, because of a full disk, say, before the
    run stops."""
    early_stopping_validations: int = 0
    """Validations in a row without a better PSNR after which the run ends; 0: never."""
    on_divergence: Literal["stop", "rollback", "ignore"] = "stop"
    """What a diverging run does. rollback: back to the last good checkpoint, learning rate
    halved. ignore: it goes on as long as its loss is finite, and its gradient; at ZeRO 1 and 2
    DeepSpeed leaves out the update by one that is not."""
    max_rollbacks: int = 3
    """Rollbacks after which a diverging run stops after all."""
    sample_clips: int = 4
    """Validation clips that are logged as pictures and video."""

    def __post_init__(self) -> None:
        for name in (
            "global_batch_size",
            "slots_per_group",
            "max_steps",
            "log_every",
            "validation_every",
            "validation_clips",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}: it must be at least 1")
        for name in (
            "max_clips_per_pass",
            "seed",
            "sample_clips",
            "max_failed_saves",
            "early_stopping_validations",
            "max_rollbacks",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}: it cannot be negative")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay is {self.ema_decay}: at least 0 and less than 1")
        self.layout(workers=1)
        self.steps_of_stages()

    def steps_of_stages(self) -> list[range]:
        """The steps of each stage; a run without stages is one."""
        return steps_of_stages(self.stages or (Stage(),), self.max_steps)

    def stage_at(self, step: int) -> int:
        """The stage, from 0, that makes this step; after the run's last step, the last one."""
        ranges = self.steps_of_stages()
        return next((n for n, steps in enumerate(ranges) if step in steps), len(ranges) - 1)

    def layout(self, workers: int) -> SlotLayout:
        """Of a run without stages, or of one of them (see `TrainingConfig.of_stage`)."""
        return SlotLayout(
            self.global_batch_size, self.slots_per_group, workers, self.max_clips_per_pass
        )

    def autocast_dtype(self) -> torch.dtype | None:
        """bf16 or None, which stands for float32."""
        on_gpu = distributed.device().type == "cuda"
        bf16 = self.precision == "bf16" or (self.precision == "auto" and on_gpu)
        return torch.bfloat16 if bf16 else None


@dataclass(frozen=True)
class TrainingConfig:
    """The configuration of `taehv.training.train`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    seraena: SeraenaConfig = field(default_factory=SeraenaConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        frozen = False
        for number in range(len(self.train.stages)):
            try:
                stage = self.of_stage(number)
            except ValueError as error:
                raise ValueError(f"stage {number + 1} of train.stages: {error}") from error
            if frozen and not stage.train.freeze_encoder:
                raise ValueError(
                    f"stage {number + 1} of train.stages trains the encoder, which the stage "
                    "before has frozen: what its optimizer had learned is gone"
                )
            frozen = stage.train.freeze_encoder

    def contradiction(self) -> str:
        """What does not go together; empty: nothing. Not asked of every configuration, since files
        and options set one key after the other."""
        if self.loss.decoder_input == "teacher" and not self.teacher.path:
            return (
                "loss.decoder_input is teacher, but there is none: give --teacher.path, or set "
                "loss.decoder_input student"
            )
        if self.train.stages and self.train.early_stopping_validations:
            return (
                "train.early_stopping_validations would end the run before its last stage: set it "
                "to 0, or do without train.stages"
            )
        return self.optim.contradiction()

    def of_stage(self, number: int) -> Self:
        """What this part of the run has, apart from the size of its clips: a configuration without
        stages, of as many steps as the whole run."""
        if not self.train.stages:
            return self
        stage, train = self.train.stages[number], self.train
        limits = [most for most in (train.max_clips_per_pass, stage.max_clips_per_pass) if most]
        train = replace(
            train,
            stages=(),
            global_batch_size=_first(stage.global_batch_size, train.global_batch_size),
            max_clips_per_pass=min(limits, default=0),
            freeze_encoder=_first(stage.freeze_encoder, train.freeze_encoder),
        )
        rate = _first(stage.learning_rate, self.optim.learning_rate)
        start_step = self._adversary_from(number) + self.seraena.start_step
        return replace(
            self,
            train=train,
            optim=replace(self.optim, learning_rate=rate),
            loss=replace(self.loss, seraena=self._adversary_weight(number)),
            seraena=replace(self.seraena, start_step=start_step),
        )

    def each_stage(self) -> list[Self]:
        """What every stage has, in their order; of a run without stages, the run itself."""
        return [self.of_stage(number) for number in range(max(1, len(self.train.stages)))]

    def sample_offset(self, number: int) -> int:
        """For `SlotLayout`, so that a stage begins with a sample that none before it has used: the
        next one that is a multiple of its batch."""
        used = 0
        for steps in self.train.steps_of_stages()[: number + 1]:
            batch = self.of_stage(self.train.stage_at(steps.start)).train.global_batch_size
            first = -(-used // batch) * batch
            used = first + len(steps) * batch
        return first - steps.start * batch

    def _adversary_weight(self, number: int) -> float:
        return _first(self.train.stages[number].seraena, self.loss.seraena)

    def _adversary_from(self, number: int) -> int:
        """The step at which the adversary came in that stage `number` has."""
        while number and self._adversary_weight(number - 1):
            number -= 1
        return self.train.steps_of_stages()[number].start


def _first(own: T | None, common: T) -> T:
    return common if own is None else own
