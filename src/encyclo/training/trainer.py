"""The trainer: one fit loop for every system."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from encyclo.errors import InputError
from encyclo.training import checkpoint, micro_batches, randomness
from encyclo.training.config import TrainingConfig
from encyclo.training.curves import Points
from encyclo.training.objective import LossFunction
from encyclo.training.processes import Processes
from encyclo.training.stage import Run, Stage, Task


@dataclass(frozen=True)
class History:
    """What a stage of training did."""

    steps: int
    """Optimiser steps."""
    seconds: float
    """Of training: without checkpoints, evaluation and set-up."""
    curves: Points = field(default_factory=dict)
    """By name: (step, seconds, value)."""


class Trainer:
    """Fits modules: gradients, schedules, averages, curves, checkpoints, one process or many. It knows no system.

    The curves go to `folder/metrics.jsonl`, the checkpoints to `folder/checkpoints/`; without a folder nothing is
    written. The same seed gives the same run, to the bit on one machine's CPU.

    Args:
        folder: of the run.
        seed: of everything random; the global generators are seeded here and again at the start of every stage.
        resume: go on from the last good checkpoint in `folder`.
        progress: show bars; None shows them on a terminal.
        device: "cpu", "cuda", "cuda:1"; None takes CUDA where there is one. The environment variable ENCYCLO_DEVICE
            goes before it.
        label: what the bars call the work.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        seed: int = 0,
        resume: bool = False,
        progress: bool | None = None,
        device: str | None = None,
        label: str = "",
    ) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.seed = seed
        """What a system makes its `Batches` with."""
        self.seed = seed
        self.processes = Processes(device)
        self.device = self.processes.device
        self.generator = torch.Generator()
        """For the noise a system draws: on the CPU, so that all devices see the same; saved in the checkpoints."""
        self._run = Run(self.folder, seed, resume, progress, label, self.processes, self.generator)
        self._stages: set[str] = set()
        self._seed(seed)
        if self.folder is not None:
            self._open(self.folder)

    def _open(self, folder: Path) -> None:
        """Make the folder ready: nothing of another run is written over, nothing half written is left."""
        root = folder / "checkpoints"
        there = checkpoint.found(root)
        if there and not self._run.resume:
            raise InputError(f"'{folder}' holds a run already ({there[0].name}): resume it, or choose another folder")
        if not self.processes.main:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to '{folder}': {error.strerror}; choose another folder") from error
        checkpoint.clean(root)
        if not there:
            (folder / "metrics.jsonl").unlink(missing_ok=True)
            if self._run.resume:
                self._run.say(f"there is no checkpoint in '{folder}' yet: training starts from the beginning")

    def _seed(self, seed: int) -> None:
        randomness.seed_everything(seed)
        self.generator.manual_seed(seed)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and speaks; without `accelerate launch` it always is."""
        return self.processes.main

    @property
    def done(self) -> float:
        """The share in [0, 1] of the present stage's budget that is used up."""
        return self._run.stage.done if self._run.stage is not None else 0.0

    @property
    def step(self) -> int:
        """Finished steps of the present stage."""
        return self._run.stage.step if self._run.stage is not None else 0

    def fit(
        self,
        model: nn.Module,
        loss: LossFunction | Mapping[str, LossFunction],
        batches: Iterable[Any],
        config: TrainingConfig,
        *,
        stage: str = "fit",
        parameters: Iterable[nn.Parameter] | Mapping[str, Iterable[nn.Parameter]] | None = None,
        before_step: Callable[[int], None] | None = None,
        before_update: Callable[[int], None] | None = None,
        after_step: Callable[[int], None] | None = None,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
    ) -> History:
        """Train `model` until the budget of `config` is used up, and leave it on the device, in eval mode.

        The weights left in it are the trained ones, not their running average: `averaged` gives that.

        Args:
            model: holds all modules that `loss` uses and all that changes in training.
            loss: a batch on the device to a `Loss`. A mapping makes several objectives, done in its order within each
                step, each with its own optimiser over its own parameters and on the same batch.
            batches: see `Stream`. Every process gets its share.
            config: every number of the stage.
            stage: its name, unique within the run: checkpoints and curves carry it.
            parameters: what to train (default: all of the model that requires gradients); with several objectives, a
                mapping that gives each its own. All others get no gradients and keep their values.
            before_step, before_update, after_step: called with the step's number (the first is 1) before the forward,
                between the backward and the clipping (once for each objective), and after the update.
            evaluate: called every `config.evaluate_every` steps and at the end, in eval mode, without gradients;
                what it draws does not touch the training's random numbers. Curves: `eval/NAME`.

        Curves, each the mean over the steps since the last point, weighted as the losses are: `loss`, what
        `Loss.logs` names, `lr` and, with clipping, `grad_norm`; with several objectives `OBJECTIVE/loss` and so on.

        Raises:
            InputError: data or settings that do not fit.
            TrainingStopped: a loss that is not finite, a full disk.
        """
        if stage in self._stages:
            raise ValueError(f"this trainer has already run a stage '{stage}': give each stage its own name")
        if not checkpoint.NAME.fullmatch(stage):
            raise ValueError(
                f"stage '{stage}': letters, digits, dots, dashes and underscores only, not ending in a dot or dash"
            )
        self._stages.add(stage)
        losses = dict(loss) if isinstance(loss, Mapping) else {"": loss}
        for name in losses if isinstance(loss, Mapping) else ():
            if not checkpoint.NAME.fullmatch(name):
                raise ValueError(f"objective '{name}': letters, digits, dots, dashes and underscores only")
        task = Task(stage, model, losses, batches, config, parameters, before_step, before_update, after_step, evaluate)
        # Each stage's randomness is its own, whatever was drawn before it.
        self._seed(randomness.derive(self._run.seed, stage, self.processes.rank))
        self._run.stage = now = Stage(self._run, task)
        now.go()
        return History(now.step, now.elapsed, now.curves.points)

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside, `model` has the running average (`TrainingConfig.ema`) of its last stage for weights.

        Without an average it is the model as it stands.
        """
        average = self._run.averages.get(model)
        if average is None:
            yield model
            return
        running = self._run.stage.module if self._run.stage is not None else model
        with average.swapped(model):
            self.processes.regather(running)
            yield model
        self.processes.regather(running)

    def to_device(self, batch: Any) -> Any:
        """The batch with all tensors, however nested, on the trainer's device."""
        return micro_batches.to_device(batch, self.device)
