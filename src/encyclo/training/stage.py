"""One stage of training: its state, its steps, its end."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from encyclo.errors import InputError, TrainingStopped
from encyclo.training import checkpoint, micro_batches, optimiser, randomness, schedule
from encyclo.training.averaging import Average, full, local
from encyclo.training.clock import Clock
from encyclo.training.config import TrainingConfig
from encyclo.training.curves import Curves
from encyclo.training.interrupts import Interrupts
from encyclo.training.objective import Forward, LossFunction, Objective
from encyclo.training.processes import Processes
from encyclo.training.progress import Bar
from encyclo.training.readings import Lagging, numbers
from encyclo.training.snapshot import differences, optimiser_tensors, restore, restore_optimiser, weights
from encyclo.training.stream import Stream

Hook = Callable[[int], None] | None
Parameters = Iterable[nn.Parameter] | Mapping[str, Iterable[nn.Parameter]] | None


@dataclass
class Run:
    """What the stages of a run share."""

    folder: Path | None
    seed: int
    resume: bool
    progress: bool | None
    label: str
    processes: Processes
    generator: torch.Generator
    averages: WeakKeyDictionary[nn.Module, Average] = field(default_factory=WeakKeyDictionary)
    stage: "Stage | None" = None
    """The one under way, or the last."""

    def say(self, line: str) -> None:
        """One line to the user, from the main process."""
        if self.processes.main:
            print(f"encyclo: {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Task:
    """What `Trainer.fit` was asked to do."""

    stage: str
    model: nn.Module
    losses: Mapping[str, LossFunction]
    batches: Iterable[Any]
    config: TrainingConfig
    parameters: Parameters = None
    before_step: Hook = None
    before_update: Hook = None
    after_step: Hook = None
    evaluate: Callable[[], Mapping[str, float]] | None = None


class Stage:
    """One call of `Trainer.fit`: its state and its loop."""

    def __init__(self, run: Run, task: Task) -> None:
        self.run, self.task = run, task
        self.processes, self.config, self.model = run.processes, task.config, task.model
        self.device = self.processes.device
        self.step = 0
        self.clock = Clock()
        self.average: Average | None = None
        self.objectives: list[Objective] = []
        self.module: nn.Module = self.model
        path = run.folder / "metrics.jsonl" if run.folder and self.processes.main else None
        self.curves = Curves(path, task.stage)
        self.stream = Stream(task.batches, self.processes.rank, self.processes.world)
        self.root = run.folder / "checkpoints" if run.folder else None
        self.lagging = Lagging()
        self.last_loss = math.nan
        self.interrupts = Interrupts(run.folder is not None, self.processes.world == 1, self.processes.main)
        self._resumed: dict[str, Any] | None = None
        self._saved = time.monotonic()
        self._control: Tensor | None = None
        self._save_due = self._stop_due = False
        # Every micro-batch's loss counts by its weight; where there is but one, weights cancel and nothing is scaled.
        self.alone = self.processes.world == 1 and self.config.accumulate == 1
        self._shared_elapsed = 0.0

    def go(self) -> None:
        """Train to the end of the budget, from the start or from where a checkpoint left off."""
        schedule.factor(self.config.schedule, 1.0)  # refuse now what cannot be followed to the end
        if not self.processes.sharded:
            self.model.to(self.device)
        self._required = {name: p.requires_grad for name, p in self.model.named_parameters()}
        finished = self.resume_weights()
        if not finished:
            try:
                self.prepare()
                self.resume_progress()
                if os.environ.get("ENCYCLO_TENSORBOARD") and not self.curves.follow(self.step):
                    self.run.say("ENCYCLO_TENSORBOARD is set, but there is no TensorBoard: pip install tensorboard")
                with self.interrupts:
                    self.loop()
            except BaseException:
                self.release(together=False)
                raise
            self.release(together=True)
        self.model.eval()

    # -- set-up --

    def prepare(self) -> None:
        """The model on its device, one optimiser for each objective, gradients for what is trained and nothing else."""
        task, config = self.task, self.config
        named = dict(self.model.named_parameters())
        chosen = self._chosen(named)
        union = {name for names in chosen.values() for name in names}
        for name, p in named.items():
            p.grad = None
            if p.requires_grad != (name in union):
                p.requires_grad_(name in union)
        for name, names in chosen.items():
            self.objectives.append(Objective(name, config.optimisers.get(name, config.optimiser), names))
        for objective in self.objectives:
            parameters = [named[name] for name in objective.names]
            objective.optimiser = optimiser.build(objective.config, parameters)
        module = Forward(self.model, task.losses, config.precision == "bf16", self.device)
        optimisers = [objective.optimiser for objective in self.objectives]
        self.module, optimisers = self.processes.prepare(module, optimisers)
        named = dict(self.model.named_parameters())  # sharding has put others in their places
        for objective, prepared in zip(self.objectives, optimisers, strict=True):
            objective.optimiser = prepared
            objective.parameters = [named[name] for name in objective.names]
            objective.others = [named[name] for name in sorted(union - set(objective.names))]
        self._start_average(sorted(union))

    def _start_average(self, names: Sequence[str]) -> None:
        if self.config.ema is not None:
            named = dict(self.model.named_parameters())
            self.average = Average({name: named[name] for name in names}, self.config.ema)
            self.run.averages[self.model] = self.average

    def _chosen(self, named: Mapping[str, nn.Parameter]) -> dict[str, list[str]]:
        """The names of the parameters that each objective trains."""
        task = self.task
        unknown = sorted(set(self.config.optimisers) - set(task.losses))
        if unknown:
            raise InputError(
                f"optimisers.{unknown[0]}: stage '{task.stage}' has no such objective; it has"
                f" {', '.join(name or 'one without a name' for name in task.losses)}"
            )
        given: dict[str, Iterable[nn.Parameter]] = {}
        if isinstance(task.parameters, Mapping):
            given = dict(task.parameters)
        elif task.parameters is not None:
            shared = list(task.parameters)
            given = dict.fromkeys(task.losses, shared)
        elif len(task.losses) == 1:
            given = {name: [p for p in named.values() if p.requires_grad] for name in task.losses}
        if set(given) != set(task.losses):
            raise ValueError(
                f"stage '{task.stage}': give `parameters` for each of the objectives {sorted(task.losses)}"
            )
        names = {id(p): name for name, p in named.items()}
        chosen: dict[str, list[str]] = {}
        for objective, parameters in given.items():
            ids = dict.fromkeys(map(id, parameters))
            if not ids:
                raise ValueError(f"stage '{task.stage}': there are no parameters to train")
            if any(i not in names for i in ids):
                raise ValueError(f"stage '{task.stage}': `parameters` has some that are not in the model")
            chosen[objective] = [names[i] for i in ids]
        return {name: chosen[name] for name in task.losses}

    def release(self, together: bool) -> None:
        """Let go of all that only training needs; `together`: the other processes do so too (none has failed)."""
        self.curves.close()
        self.stream.close()
        self.processes.release(together)
        named = dict(self.model.named_parameters())
        for name, p in named.items():
            p.grad = None
            p.requires_grad_(self._required.get(name, p.requires_grad))
        if self.average is not None and together:
            self.average.settle()
        self.module = self.model

    # -- the budget --

    @property
    def elapsed(self) -> float:
        """Seconds of training, the same number on every process."""
        return self.clock.elapsed if self.processes.world == 1 else self._shared_elapsed

    @property
    def done(self) -> float:
        """The share in [0, 1] of the budget that is used up."""
        if self.config.steps is not None:
            return min(self.step / self.config.steps, 1.0)
        assert self.config.seconds is not None
        return min(self.elapsed / self.config.seconds, 1.0)

    # -- the loop --

    def loop(self) -> None:
        """Step by step until the budget is used up."""
        config = self.config
        self.model.train()
        unit, total = ("steps", float(config.steps)) if config.steps else ("s", float(config.seconds or 0))
        label = self.run.label or self.task.stage
        bar = Bar(label, total, unit, self.run.progress if self.processes.main else False)
        self._saved = time.monotonic()
        self.clock.start()
        try:
            over, done = False, self.done
            while not over:
                self.one_step(done)
                bar.update(float(self.step) if config.steps else self.elapsed, self.last_loss, config.batch_size)
                done = self.done  # asked once a step: the clock goes on
                over = done >= 1
                if over or self.step % config.log_every == 0 or self._evaluation_due(over):
                    self.point(over)
                if over or self._stopping() or self._saving():
                    self.save(finished=over)
                if self._stopping():
                    self.leave()
        finally:
            bar.close()
            self.clock.stop()

    def one_step(self, done: float) -> None:
        """One optimiser step of every objective."""
        number = self.step + 1
        task = self.task
        factor = schedule.factor(self.config.schedule, done)
        batch = next(self.stream)
        if self.device.type != "cpu":
            batch = micro_batches.to_device(batch, self.device)
        if task.before_step is not None:
            task.before_step(number)
        losses = [self.turn(objective, batch, factor, number) for objective in self.objectives]
        self.step = number
        if task.after_step is not None:
            task.after_step(number)
        if self.average is not None:
            self.average.update(number)
        self._listen(losses)

    def _listen(self, losses: Sequence[float | Tensor]) -> None:
        """Learn what the step (on CUDA: the one before) came to, and what the main process has decided."""
        control = self._control
        if self.device.type != "cuda":
            self.last_loss = float(losses[0])
            if control is not None:
                self._obey(control.tolist())
            return
        parts = [torch.stack([torch.as_tensor(loss).double() for loss in losses])]
        self._heard(self.lagging.put(self.step, torch.cat([*parts, control] if control is not None else parts)))

    def _heard(self, known: tuple[int, list[float]] | None) -> None:
        if known is None:
            return
        step, values = known
        for objective, value in zip(self.objectives, values, strict=False):
            self._check(objective, value, step)
        self.last_loss = values[0]
        if len(values) > len(self.objectives):
            self._obey(values[len(self.objectives) :])

    def _obey(self, control: Sequence[float]) -> None:
        self._shared_elapsed = control[0]
        self._save_due, self._stop_due = control[1] > 0, control[2] > 0

    def _stopping(self) -> bool:
        return self._stop_due if self.processes.world > 1 else self.interrupts.received is not None

    def _saving(self) -> bool:
        return self._save_due if self.processes.world > 1 else self._time_to_save()

    def _time_to_save(self) -> bool:
        return self.root is not None and time.monotonic() - self._saved >= self.config.checkpoint_seconds

    def _check(self, objective: Objective, value: float, step: int) -> None:
        if not math.isfinite(value):
            name = f" of '{objective.name}'" if objective.name else ""
            raise self.stopped(
                f"the loss{name} is {value} at step {step}",
                "a lower learning rate, a longer warm-up or clipping (clip=1.0) may help",
            )

    def turn(self, objective: Objective, batch: Any, factor: float, number: int) -> float | Tensor:
        """Forward, backward and update of one objective; its loss."""
        several = len(self.objectives) > 1
        if several:
            for p in objective.others:
                p.requires_grad_(False)
        objective.set_lr(factor)
        weight: float | Tensor
        value: float | Tensor
        weight, value = self.backward_alone(objective, batch) if self.alone else self.backward(objective, batch)
        if self.device.type != "cuda":
            value = float(value)
            self._check(objective, value, number)  # before the update: the weights stay good
        objective.window.steps.append((weight, value))
        if self.task.before_update is not None:
            self.task.before_update(number)
        if self.config.clip is not None:
            norm = nn.utils.clip_grad_norm_(objective.parameters, self.config.clip, foreach=True)
            objective.window.norms.append(full(norm))
        objective.optimiser.step()
        for p in objective.parameters:  # the optimiser's own zero_grad does this too, and takes 3 times as long
            p.grad = None
        if several:
            for p in objective.others:
                p.requires_grad_(True)
        return value

    def backward_alone(self, objective: Objective, batch: Any) -> tuple[float | Tensor, Tensor]:
        """The gradient of one process's one batch; its weight and loss."""
        loss = self.module(objective.name, batch)
        loss.value.backward()
        if loss.logs:
            objective.window.logs.append((_detached(loss.weight), {k: _detached(v) for k, v in loss.logs.items()}))
        return _detached(loss.weight), loss.value.detach()

    def backward(self, objective: Objective, batch: Any) -> tuple[Tensor, Tensor]:
        """The gradient of sum(value * weight) / sum(weight) over micro-batches and processes; weight and loss."""
        parts = micro_batches.split(batch, self.config.accumulate)
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last else self.processes.unsynchronised(self.module):
                loss = self.module(objective.name, part)
                weight = _detached(loss.weight)
                weighted = loss.value * weight
                weighted.backward()
            totals[0] += weight
            totals[1] += weighted.detach()
            objective.window.logs.append((weight, {k: _detached(v) for k, v in loss.logs.items()}))
        if self.processes.world > 1:
            totals = self.processes.sum(torch.cat([totals, self._decisions()]))
            totals, self._control = totals[:2], totals[2:]
        weight = totals[0]
        share = torch.where(weight > 0, 1 / weight, 0.0)  # nothing at all gives a gradient of 0, not of 0 / 0
        gradients = objective.gradients()
        if gradients:
            torch._foreach_mul_(gradients, (share * self.processes.world).float())  # the launcher averaged them
        return weight, totals[1] * share

    def _decisions(self) -> Tensor:
        """What all processes must do at the same step: the main one's clock and checkpoints, anyone's interruption."""
        main = self.processes.main
        own = [self.clock.elapsed if main else 0.0, float(main and self._time_to_save())]
        own.append(float(self.interrupts.received is not None))
        return torch.tensor(own, dtype=torch.float64).to(self.device, non_blocking=True)

    # -- curves --

    def _evaluation_due(self, over: bool) -> bool:
        every = self.config.evaluate_every
        return self.task.evaluate is not None and (over or (every is not None and self.step % every == 0))

    def point(self, over: bool) -> None:
        """Add a point to the curves, with an evaluation where one is due."""
        with self.clock.paused():
            values: dict[str, float] = {}
            for objective in self.objectives:
                values |= {objective.prefix + name: value for name, value in self._means(objective).items()}
            if self._evaluation_due(over):
                values |= {f"eval/{name}": float(value) for name, value in self._evaluate().items()}
            try:
                with checkpoint.reasons():
                    self.curves.add(self.step, self.elapsed, values)
            except checkpoint.NotWritten as error:
                raise self.stopped(f"{error} (writing the curves at step {self.step})", "free some space") from error

    def _means(self, objective: Objective) -> dict[str, float]:
        window = objective.window
        values = {"loss": window.mean()} if window.steps else {}
        totals: dict[str, tuple[float, float]] = {}
        for of_process in self.processes.gather(window.totals()):
            for name, (whole, weight) in of_process.items():
                before = totals.get(name, (0.0, 0.0))
                totals[name] = (before[0] + whole, before[1] + weight)
        values |= {name: whole / weight if weight else math.nan for name, (whole, weight) in totals.items()}
        values["lr"] = objective.lr
        if window.norms:
            values["grad_norm"] = sum(numbers(window.norms)) / len(window.norms)
        window.clear()
        return values

    def _evaluate(self) -> Mapping[str, float]:
        assert self.task.evaluate is not None
        modes = [(module, module.training) for module in self.model.modules()]
        state = randomness.capture(self.run.generator)
        self.model.eval()
        try:
            with torch.no_grad(), self.processes.whole(self.module):
                return self.task.evaluate()
        finally:
            randomness.restore(state, self.run.generator)
            for module, training in modes:
                module.training = training

    # -- checkpoints --

    def save(self, finished: bool = False) -> None:
        """Write a checkpoint; the last one of a stage, `finished`, is without the optimisers' memory.

        Raises:
            TrainingStopped: weights that are not finite, a full disk; the checkpoints before it are kept.
        """
        if self.root is None:
            self._heard(self.lagging.drain())
            return
        with self.clock.paused():
            self._heard(self.lagging.drain())
            self._check_weights()
            collect = self.processes.collect
            files: dict[str, dict[str, Tensor]] = {"model": collect(weights(self.model)), "optimiser": {}}
            if self.average is not None:
                files["average"] = collect(self.average.tensors)
            for objective in [] if finished else self.objectives:
                files["optimiser"] |= collect(optimiser_tensors(objective))
            own = {
                "random": randomness.capture(self.run.generator),
                "windows": {objective.name: objective.window.state_dict() for objective in self.objectives},
            }
            state = {
                "stage": self.task.stage,
                "step": self.step,
                "elapsed": self.elapsed,
                "finished": finished,
                "seed": self.run.seed,
                "config": self.config.model_dump(mode="json"),
                "trained": {objective.name: objective.names for objective in self.objectives},
                "stream": self.stream.state_dict(),
                "processes": self.processes.gather(own),
                "torch": torch.__version__,
            }
            problem = ""
            if self.processes.main:
                try:
                    with checkpoint.reasons():
                        self.curves.sync()
                    checkpoint.write(self.root, f"{self.task.stage}-{self.step}", files, state)
                    checkpoint.prune(self.root, self.task.stage, self.config.keep_checkpoints)
                except checkpoint.NotWritten as error:
                    problem = str(error)
            problem = self.processes.share(problem)
            if problem:
                raise self.stopped(f"{problem} (writing a checkpoint at step {self.step})", "free some space")
            self._saved = time.monotonic()
            self._save_due = False

    def _check_weights(self) -> None:
        """Refuse to save what a gradient that was not finite has spoilt."""
        shares = [local(p.detach()) for objective in self.objectives for p in objective.parameters]
        shares = [share for share in shares if share.numel()]  # it may be empty
        largest = torch._foreach_norm(shares, math.inf) if shares else ()
        spoilt = float(not all(math.isfinite(number) for number in numbers(largest)))
        if self.processes.sum(torch.tensor(spoilt, device=self.device)).item():
            raise self.stopped(
                f"the weights are not finite after step {self.step}",
                "a lower learning rate, a longer warm-up or clipping (clip=1.0) may help",
            )

    def resume_weights(self) -> bool:
        """Find the newest good checkpoint and take the weights from it; True when the stage was already finished."""
        run, stage = self.run, self.task.stage
        if self.root is None or not run.resume:
            return False
        good = checkpoint.newest(self.root, stage, run.say) if self.processes.main else None
        path: Path | None = self.processes.share(good[0] if good else None)
        if path is None:
            return False
        state = good[1] if good else checkpoint.read(path, check=False)
        self._same_settings(path, state)
        restore(weights(self.model), checkpoint.tensors(path, "model"), path)
        self._resumed, self._path = state, path
        self.step = int(state["step"])
        self.clock = Clock(float(state["elapsed"]))
        self._shared_elapsed = self.clock.elapsed
        self.curves.resume(self.step)
        self.curves.points = self.processes.share(self.curves.points)
        if state["finished"]:
            self.stream.load_state_dict(state["stream"])
            self.stream.close()
            self._start_average([name for names in state["trained"].values() for name in names])
            self._resume_average()
            self._resume_random()
            self._resumed = None
        return bool(state["finished"])

    def resume_progress(self) -> None:
        """Take all the rest from the checkpoint: optimisers, average, data position, random states."""
        if self._resumed is None:
            self.curves.resume(-1)
            return
        state = self._resumed
        stored = checkpoint.tensors(self._path, "optimiser")
        for objective in self.objectives:
            if state["trained"].get(objective.name) != objective.names:
                raise InputError(
                    f"stage '{self.task.stage}' trains other parameters than checkpoint {self._path}: resume with the"
                    " same configuration, or start in another folder"
                )
            restore_optimiser(objective, stored)
        self._resume_average()
        self.stream.load_state_dict(state["stream"])
        self._resume_random()
        self._resumed = None
        self.run.say(f"stage '{self.task.stage}' goes on from step {self.step} ({self._path})")

    def _resume_average(self) -> None:
        if self.average is not None:
            restore(self.average.tensors, checkpoint.tensors(self._path, "average"), self._path)

    def _resume_random(self) -> None:
        assert self._resumed is not None
        states = self._resumed["processes"]
        if len(states) != self.processes.world:
            seed = randomness.derive(self.run.seed, self.task.stage, self.processes.rank, self.step)
            randomness.seed_everything(seed)
            self.run.generator.manual_seed(seed)
            self.run.say(
                f"the checkpoint was made by {len(states)} processes, there are {self.processes.world} now:"
                " weights, optimiser and data go on, random numbers are drawn anew"
            )
            return
        own = states[self.processes.rank]
        randomness.restore(own["random"], self.run.generator)
        for objective in self.objectives:
            objective.window.load_state_dict(own["windows"][objective.name])

    def _same_settings(self, path: Path, state: Mapping[str, Any]) -> None:
        now = {**self.config.model_dump(mode="json"), "seed": self.run.seed}
        then = {**state["config"], "seed": state["seed"]}
        for name in ("checkpoint_seconds", "keep_checkpoints"):  # they do not change what is trained
            now.pop(name), then.pop(name)
        for field_name, value, before in differences(now, then):
            raise InputError(
                f"stage '{self.task.stage}': {field_name}={value}, but checkpoint {path} was made with"
                f" {field_name}={before}: resume with that, or start in another folder"
            )

    # -- the end --

    def leave(self) -> NoReturn:
        """End on the user's wish: say how to go on, exit."""
        self.run.say(
            f"stopped at step {self.step} of stage '{self.task.stage}'; checkpoint"
            f" {self.root}/{self.task.stage}-{self.step}; the same command with --resume goes on from there"
        )
        raise SystemExit(128 + (self.interrupts.received or signal.SIGTERM))

    def stopped(self, why: str, remedy: str) -> TrainingStopped:
        """The error that ends the stage early."""
        last = checkpoint.found(self.root, self.task.stage) if self.root else []
        kept = f"the last good checkpoint is {last[0]}" if last else "there is no checkpoint yet"
        again = ", then resume" if last else ""
        return TrainingStopped(f"stage '{self.task.stage}': {why}; {kept}; {remedy}{again}")


def _detached(value: Any) -> float | Tensor:
    return value.detach() if isinstance(value, Tensor) else float(value)
