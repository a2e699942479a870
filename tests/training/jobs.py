"""Small trainings that tests run here and in processes of their own."""

import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encyclo.training import AdamW, Loss, Schedule, Trainer, TrainingConfig

CONFIG = TrainingConfig(
    steps=60,
    batch_size=8,
    optimiser=AdamW(lr=1e-2, weight_decay=0.1),
    schedule=Schedule(warmup=0.1),
    clip=1.0,
    ema=0.9,
    log_every=7,
    evaluate_every=20,
    checkpoint_seconds=0.05,
)


class Net(nn.Module):
    """Linear layers, dropout, a norm with running statistics, and (`ballast`) a buffer of so many bytes."""

    def __init__(self, width: int = 16, ballast: int = 0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.inner = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2))
        self.outer = nn.Linear(width, 2)
        self.register_buffer("ballast", torch.zeros(ballast // 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))


class Positions:
    """Batches that keep their own position, drawn by it alone."""

    def __init__(self, size: int = 8) -> None:
        self.size, self.index = size, 0

    def __iter__(self) -> "Positions":
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.index)
        self.index += 1
        x = torch.randn(self.size, 6, generator=generator)
        return x, x[:, :2] * 2 - 1

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.index = state["index"]


def noisy_loss(trainer: Trainer, net: nn.Module) -> Callable[[Any], Loss]:
    """A loss that draws from the trainer's generator and torch's own."""

    def loss(batch: tuple[Tensor, Tensor]) -> Loss:
        x, y = batch
        error = net(x + 0.1 * torch.randn(x.shape, generator=trainer.generator)) - y
        return Loss(error.square().mean(), len(x), {"absolute": error.abs().mean()})

    return loss


def train(
    folder: Path | None,
    *,
    resume: bool = False,
    config: TrainingConfig = CONFIG,
    ballast: int = 0,
    seconds_per_step: float = 0.0,
    seed: int = 3,
    before_step: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Two stages on one net; everything that must come out alike."""
    net = Net(ballast=ballast)
    trainer = Trainer(folder, seed=seed, resume=resume, progress=False, device="cpu")

    def wait(step: int) -> None:
        if seconds_per_step:
            time.sleep(seconds_per_step)

    def look() -> dict[str, float]:
        with trainer.averaged(net):
            return {"noise": float(torch.rand(())), "output": float(net(torch.ones(1, 6)).detach().sum())}

    positions = Positions()
    first = trainer.fit(
        net,
        noisy_loss(trainer, net),
        positions,
        config,
        stage="first",
        before_step=before_step,
        after_step=wait,
        evaluate=look,
    )
    between = float(torch.rand(()) + torch.rand((), generator=trainer.generator))
    second = trainer.fit(
        net,
        noisy_loss(trainer, net),
        [next(Positions()) for _ in range(3)],
        config.replace(steps=30, ema=None, accumulate=2),
        stage="second",
        parameters=net.outer.parameters(),
        after_step=wait,
    )
    with trainer.averaged(net):
        average = {name: p.detach().clone() for name, p in net.named_parameters()}
    return {
        "weights": {name: value.detach().clone() for name, value in net.state_dict().items()},
        "average": average,
        "curves": [plain(first.curves), plain(second.curves)],
        "between": between,
        "position": positions.index,
    }


def plain(curves: dict[str, list[tuple[int, float, float]]]) -> dict[str, list[tuple[int, float]]]:
    """Curves without the seconds, which no two runs share."""
    return {name: [(step, value) for step, _, value in points] for name, points in curves.items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without the seconds."""
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in parsed]


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, however nested."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


def train_in_child(folder: Path, out: Path | None = None, limit: int | None = None, **options: Any) -> None:
    """`train` as the target of a process: its error's text or result goes to `out`; `limit`: bytes a file may have."""
    torch.set_num_threads(1)
    os.setsid()
    os.dup2(os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        result = train(folder, **options)
    except Exception as error:
        assert out is not None
        out.write_text(f"{type(error).__name__}: {error}")
        return
    if out is not None:
        torch.save(result, out)
