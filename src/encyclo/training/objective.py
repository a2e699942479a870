"""An objective of a stage: its loss, parameters and optimiser, and what it told since the last point of the curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from encyclo.training.averaging import local
from encyclo.training.config import Optimiser
from encyclo.training.loss import Loss
from encyclo.training.readings import numbers

LossFunction = Callable[[Any], Loss]


class Forward(nn.Module):
    """Calls the loss functions as a module's forward, so that what DDP and FSDP hang on modules is run."""

    def __init__(self, model: nn.Module, losses: Mapping[str, LossFunction], bf16: bool, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.losses = losses
        self.bf16, self.device = bf16, device.type

    def forward(self, name: str, batch: Any) -> Loss:
        """The loss called `name` of a batch."""
        with torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext():
            loss = self.losses[name](batch)
        if not isinstance(loss, Loss):
            raise TypeError(f"a loss function returns encyclo.training.Loss(value, weight), not {type(loss).__name__}")
        return loss


class Objective:
    """A loss, the parameters that follow it, their optimiser, and what it told since the last point of the curves."""

    def __init__(self, name: str, config: Optimiser, names: Sequence[str]) -> None:
        self.name, self.config, self.names = name, config, list(names)
        self.prefix = f"{name}/" if name else ""
        self.window = Window()
        self.lr = config.lr
        self.optimiser: torch.optim.Optimizer
        self.parameters: list[nn.Parameter] = []
        self.others: list[nn.Parameter] = []
        """What the stage trains but this objective does not: it gets no gradients in this objective's turn."""

    def set_lr(self, factor: float) -> None:
        """Set the learning rate to `factor` times its peak."""
        self.lr = self.config.lr * factor
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr

    def gradients(self) -> list[Tensor]:
        """The gradients that are there (this process's shares of them)."""
        return [local(p.grad) for p in self.parameters if p.grad is not None]


class Window:
    """What an objective told since the last point of the curves."""

    def __init__(self) -> None:
        self.steps: list[tuple[float | Tensor, float | Tensor]] = []
        """Weight and loss of each step, over all processes."""
        self.logs: list[tuple[float | Tensor, dict[str, float | Tensor]]] = []
        """Weight and named values of each micro-batch of this process."""
        self.norms: list[float | Tensor] = []

    def totals(self) -> dict[str, tuple[float, float]]:
        """Sum of weight * value, and of weight, by name, of this process's logs."""
        weights = numbers([weight for weight, _ in self.logs])
        values = iter(numbers([value for _, logs in self.logs for value in logs.values()]))
        totals: dict[str, tuple[float, float]] = {}
        for weight, (_, logs) in zip(weights, self.logs, strict=True):
            for name in logs:
                whole, share = totals.get(name, (0.0, 0.0))
                totals[name] = (whole + weight * next(values), share + weight)
        return totals

    def mean(self) -> float:
        """The mean loss, by weight."""
        weights, values = numbers([w for w, _ in self.steps]), numbers([v for _, v in self.steps])
        whole = sum(weights)
        return sum(w * v for w, v in zip(weights, values, strict=True) if w) / whole if whole else math.nan

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain numbers."""
        weights, values = numbers([w for w, _ in self.steps]), numbers([v for _, v in self.steps])
        shares = numbers([w for w, _ in self.logs])
        logs = [dict(zip(values, numbers(list(values.values())), strict=True)) for _, values in self.logs]
        return {
            "steps": [list(pair) for pair in zip(weights, values, strict=True)],
            "logs": [list(pair) for pair in zip(shares, logs, strict=True)],
            "norms": numbers(self.norms),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.steps = [(w, v) for w, v in state["steps"]]
        self.logs = [(w, dict(values)) for w, values in state["logs"]]
        self.norms = list(state["norms"])

    def clear(self) -> None:
        """Begin a new window."""
        self.steps, self.logs, self.norms = [], [], []
