"""All that a run's future depends on, in one object: what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from taehv import distributed
from taehv.credentials import in_all_texts, without_credentials
from taehv.errors import TrainingError
from taehv.interfaces import TransientFailure
from taehv.losses.discriminator import Discriminator
from taehv.losses.replay import ReplayBuffer
from taehv.losses.seraena import corrected_targets
from taehv.model import build_model
from taehv.model.blocks import IMAGE_CHANNELS
from taehv.model.initialise import initialise_as_pytorch
from taehv.ops.cuda_graphs import GraphedCallable
from taehv.precision import autocast
from taehv.run import checkpoint
from taehv.run.saving import Snapshot
from taehv.slots import SURPLUS
from taehv.training.config import TrainingConfig
from taehv.training.ema import Ema
from taehv.training.engines import Engine, build_engine, load_optimizer_pieces, optimizer_pieces

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Adversary:
    """Seraena's part of the state; absent where `loss.seraena` is 0."""

    network: Discriminator
    engine: Engine
    replay: ReplayBuffer
    correct: Callable[[Tensor, Tensor, Tensor], Tensor]
    """`seraena.corrected_targets` of a pass: takes real frames, reconstructions and latents."""


DISCRIMINATOR = "discriminator.safetensors"
"""File of a checkpoint; one that was written without an adversary has none."""

BEST_BY = "the pooled PSNR of native clips"
"""What validations are compared by. Checkpoints of before that name none: they were compared by the
mean PSNR of pictures scaled down, a figure that says little of this one."""


class TrainState:
    """The networks, their engines, the averaged weights, the replay memory, the position, and the
    attempts at videos that failed for a transient reason.

    Learning rates and the order of samples are pure functions of `step`, and every draw is keyed
    by (seed, step, slot), so no scheduler, data iterator or generator has state of its own.
    `resume_from` is a valid checkpoint to load; None begins at step 0, with the weights in the file
    `start` where there is one.

    A state belongs to the stage of the run that makes the next step: `config` and `layout` are that
    stage's. Of what the stage before has left, the replay memory is dropped, whose clips may be of
    another size; an adversary that was not there before is new.
    """

    def __init__(
        self,
        config: TrainingConfig,
        workers: int,
        resume_from: Path | None = None,
        start: Path | None = None,
    ) -> None:
        self.run_config = config
        self.step = int(checkpoint.read_info(resume_from)["step"]) if resume_from else 0
        self.stage = config.train.stage_at(self.step)
        """From 0; a run without stages is all in one."""
        self.config = config = config.of_stage(self.stage)
        offset = self.run_config.sample_offset(self.stage)
        self.layout = layout = dataclasses.replace(
            config.train.layout(workers), sample_offset=offset
        )
        self.learning_rate_scale = 1.0
        """Halved by every rollback."""
        self.rollbacks = 0
        self.best: tuple[float, int] | None = None
        """The best validation PSNR of the averaged weights, in dB, and its step."""
        self.transient_failures: set[TransientFailure] = set()
        self._copies: dict[str, dict[str, Tensor]] = {}
        model = config.model
        weights = start if resume_from is None else resume_from / "generator.safetensors"
        if weights is not None:
            model = dataclasses.replace(model, pretrained=str(weights))
        self.generator = build_model(model).to(distributed.device())
        if config.train.start == "pytorch" and not model.pretrained:
            initialise_as_pytorch(self.generator, config.train.seed)
        self.generator.encoder.requires_grad_(not config.train.freeze_encoder)
        self.generator.gradient_checkpointing = config.train.gradient_checkpointing
        self.ema = Ema(self.generator, config.train.ema_decay)
        self.engine = build_engine(
            self.generator,
            "generator",
            config.optim,
            layout,
            config.train.autocast_dtype(),
            centralizes=config.optim.gradient_centralization,
            compiles=config.train.compile,
            graphs=config.train.cuda_graphs,
        )
        self.adversary = self._build_adversary(resume_from) if config.loss.seraena > 0 else None
        if resume_from is not None:
            self._load(resume_from)
        stages = self.run_config.train.stages
        if stages and distributed.is_main():
            log.info(
                "stage %d of %d, to step %d: %s",
                self.stage + 1,
                len(stages),
                self.stage_steps.stop,
                stages[self.stage],
            )

    @property
    def stage_steps(self) -> range:
        """The steps of this stage."""
        return self.run_config.train.steps_of_stages()[self.stage]

    @property
    def _enters_stage(self) -> bool:
        """Whether what is loaded was left by the stage before."""
        return self.stage > 0 and self.step == self.stage_steps.start

    def begin_new_run(self) -> None:
        """Reset what belongs to the run whose checkpoint was loaded: a new run that starts from it
        has its own best validation, rollbacks and rejected videos."""
        self.best = None
        self.rollbacks, self.learning_rate_scale = 0, 1.0
        self.transient_failures.clear()

    def snapshot(self) -> Snapshot:
        """This worker's part of a checkpoint of this step, in copies. A collective.

        It overwrites the copies of the last snapshot, which must be saved by then: allocating fresh
        memory would take longer than copying.
        """
        rng = {"random.torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["random.cuda"] = torch.cuda.get_rng_state()
        adversary = self.adversary
        replay = adversary.replay.snapshot() if adversary else dict
        tensors: dict[str, Callable[[], Mapping[str, Tensor]]] = {
            _with_rank("worker"): lambda: rng | replay()
        }
        parts: dict[str, Mapping[str, Tensor]] = {
            _with_rank("generator_optimizer"): optimizer_pieces(self.engine, self.generator)
        }
        if adversary:
            pieces = optimizer_pieces(adversary.engine, adversary.network)
            parts[_with_rank("discriminator_optimizer")] = pieces
        texts = {}
        if distributed.is_main():
            parts["generator"] = self.generator.state_dict()
            parts["ema"] = self.ema.network.state_dict()
            if adversary:
                parts["discriminator"] = adversary.network.state_dict()
            texts["config.yaml"] = to_yaml(self.run_config)
        for name, part in parts.items():
            tensors[name] = partial(dict, self._copy(name, part))
        info = {
            "step": self.step,
            "workers": self.layout.workers,
            "verdicts": sorted(self.transient_failures),
            "learning_rate_scale": self.learning_rate_scale,
            "rollbacks": self.rollbacks,
            "best": self.best,
            "best_by": BEST_BY,
        }
        return Snapshot(self.step, info, tensors, texts)

    def _copy(self, name: str, part: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Contiguous copies on the CPU."""
        copies = self._copies.setdefault(name, {})
        for key, value in part.items():
            copy = copies.get(key)
            if copy is None:
                copies[key] = copy = torch.empty(value.shape, dtype=value.dtype)
            copy.copy_(value)
        return copies

    def _build_adversary(self, resume_from: Path | None) -> Adversary:
        config = self.config
        with torch.random.fork_rng():
            torch.manual_seed(config.train.seed)
            network = Discriminator(
                IMAGE_CHANNELS * config.seraena.frames_per_group,
                self.generator.latent_channels,
                config.seraena.widths,
            )
        path = resume_from / DISCRIMINATOR if resume_from else None
        if path is not None and not (self._enters_stage and not path.is_file()):
            if not path.is_file():
                raise TrainingError(
                    f"{resume_from} was written without Seraena: go on with --loss.seraena 0, or "
                    "start a new run from its weights with --model.pretrained"
                )
            try:
                network.load_state_dict(load_file(path))
            except RuntimeError as error:
                raise TrainingError(
                    f"{path} does not fit the seraena section of the configuration: {error}"
                ) from error
        network.to(distributed.device())
        engine = build_engine(
            network,
            "discriminator",
            dataclasses.replace(
                config.optim,
                optimizer="adamw",
                learning_rate=config.seraena.learning_rate,
                betas=config.seraena.betas,
                gradient_clipping=0.0,
            ),
            self.layout,
            config.train.autocast_dtype(),
            graphs=config.train.cuda_graphs,
        )
        replay = ReplayBuffer(
            int(config.seraena.replay_gigabytes * 1e9),
            config.train.global_batch_size,
            config.train.seed,
        )
        groups = self.layout.slots_per_pass // self.layout.slots_per_group

        def correct(real: Tensor, fake: Tensor, latents: Tensor) -> Tensor:
            with autocast(config.train.autocast_dtype()):
                return corrected_targets(network, real, fake, latents, config.seraena, groups)

        graphed = GraphedCallable(correct, "correction") if config.train.cuda_graphs else correct
        return Adversary(network, engine, replay, graphed)

    def _load(self, folder: Path) -> None:
        """Load everything but the weights, which the networks had before the engines were built."""
        info = checkpoint.read_info(folder)
        self.learning_rate_scale = float(info["learning_rate_scale"])
        self.rollbacks = int(info["rollbacks"])
        if info["best"] and not math.isnan(info["best"][0]):
            if info.get("best_by") == BEST_BY:
                self.best = (float(info["best"][0]), int(info["best"][1]))
            elif distributed.is_main():
                log.info(
                    "validations are scored by %s now, and were not when %s was written: the best "
                    "one is looked for anew from here",
                    BEST_BY,
                    folder,
                )
        self.transient_failures = {tuple(attempt) for attempt in info["verdicts"]}
        self.ema.network.load_state_dict(load_file(folder / "ema.safetensors"))
        _load_optimizer(folder, "generator_optimizer", self.engine, self.generator)
        own = folder / f"{_with_rank('worker')}.safetensors"
        if own.is_file():
            with safe_open(own, "pt") as file:
                torch.set_rng_state(file.get_tensor("random.torch"))
                if torch.cuda.is_available() and "random.cuda" in file.keys():  # noqa: SIM118
                    torch.cuda.set_rng_state(file.get_tensor("random.cuda"))
        if self.adversary and (folder / DISCRIMINATOR).is_file():
            _load_optimizer(
                folder, "discriminator_optimizer", self.adversary.engine, self.adversary.network
            )
            if not self._enters_stage:
                self._load_replay(folder, self.adversary.replay)
        if distributed.is_main() and not self._enters_stage:
            log.info("going on from %s, step %d", folder, self.step)

    def _load_replay(self, folder: Path, replay: ReplayBuffer) -> None:
        """Load this worker's slots, whichever workers held them when the checkpoint was written."""
        own = {slot for slot in self.layout.slots(distributed.rank()).tolist() if slot != SURPLUS}
        for path in sorted(folder.glob("worker_*.safetensors")):
            with safe_open(path, "pt") as file:
                saved = {int(k.split(".")[1]) for k in file.keys() if k.startswith("slot.")}  # noqa: SIM118
                for slot in sorted(saved & own):
                    keys = (f"slot.{slot}.images", f"slot.{slot}.context")
                    tensors = {key: file.get_tensor(key) for key in keys}
                    replay.load(slot, tensors, distributed.device())


def _with_rank(name: str) -> str:
    """The name, without suffix, of this worker's file, such as `worker_00003`."""
    return f"{name}_{distributed.rank():05d}"


def _load_optimizer(folder: Path, name: str, engine: Engine, network: nn.Module) -> None:
    files = sorted(folder.glob(f"{name}_*.safetensors"))
    try:
        load_optimizer_pieces(engine, network, map(load_file, files))
    except ValueError as error:
        raise TrainingError(
            f"{folder}/{name}_*.safetensors do not fit the network, or are of another "
            f"optim.optimizer, or of an encoder that was frozen: {error}"
        ) from error


def to_yaml(config: TrainingConfig) -> str:
    """The configuration as YAML that `--config` reads, its addresses without credentials."""
    content = in_all_texts(without_credentials, dataclasses.asdict(config))
    return yaml.safe_dump(content, sort_keys=False)
