"""What the tests run in one process and under `accelerate launch`: `python launched.py OUT`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encyclo.errors import TrainingStopped
from encyclo.training import SGD, AdamW, Loss, Trainer, TrainingConfig
from training.jobs import plain

CONFIG = TrainingConfig(
    steps=10,
    batch_size=16,
    accumulate=2,
    optimiser=AdamW(lr=1e-2, weight_decay=0.1),
    clip=1.0,
    ema=0.9,
    log_every=3,
    evaluate_every=5,
    checkpoint_seconds=0.0,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(12, 12), nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(torch.relu(self.inner(x)))


class Model(nn.Module):
    """Two blocks, a buffer, and a layer that no loss uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(5, 12), nn.ModuleList([Block(), Block()]), nn.Linear(12, 3)
        self.spare = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class Pair(nn.Module):
    def __init__(self, maker: nn.Module) -> None:
        super().__init__()
        self.maker, self.judge = maker, nn.Linear(3, 1)


def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Four batches whose weights are very uneven between their halves and quarters."""
    generator = torch.Generator().manual_seed(2)
    weights = torch.arange(16.0).square().round()
    return [
        (torch.randn(16, 5, generator=generator), torch.randn(16, 3, generator=generator), weights.roll(4 * i))
        for i in range(4)
    ]


def collect(trainer: Trainer, model: nn.Module, curves: Any) -> dict[str, Any]:
    state = {name: value.flatten().tolist() for name, value in model.state_dict().items()}
    with trainer.averaged(model):
        average = {name: value.flatten().tolist() for name, value in model.state_dict().items()}
    return {"weights": state, "average": average, "curves": plain(curves)}


def two_stages(folder: Path | None, resume: bool = False, stop_at: int | None = None, noise: float = 0.0) -> Any:
    """A weighted regression, then an adversarial stage on the same model."""
    torch.manual_seed(0)
    model = Model()
    pair = Pair(model)
    trainer = Trainer(folder, seed=1, resume=resume, progress=False)

    def loss(batch: tuple[Tensor, Tensor, Tensor]) -> Loss:
        x, y, weight = batch
        x = x + noise * torch.randn(x.shape, generator=trainer.generator)
        error = (model(x) - y).square().mean(-1)
        total = weight.sum()
        return Loss((error * weight).sum() / total.clamp(min=1e-9), total, {"seen": error.mean()})

    def look() -> dict[str, float]:
        assert not model.training
        raw = model(torch.ones(1, 5)).sum().item()
        with trainer.averaged(model):
            return {"raw": raw, "average": model(torch.ones(1, 5)).sum().item()}

    def after(step: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    first = trainer.fit(model, loss, batches(), CONFIG, stage="fit", after_step=after, evaluate=look)
    result = {"fit": collect(trainer, model, first.curves)}

    def make(batch: tuple[Tensor, ...]) -> Loss:
        return Loss((model(batch[0]) - batch[1]).square().mean() - 0.1 * pair.judge(model(batch[0])).mean(), 1.0)

    def judge(batch: tuple[Tensor, ...]) -> Loss:
        return Loss((pair.judge(batch[1]) - 1).square().mean() + pair.judge(model(batch[0]).detach()).square().mean())

    config = CONFIG.replace(accumulate=1, ema=None, evaluate_every=None, optimisers={"judge": SGD(lr=0.05)})
    second = trainer.fit(
        pair,
        {"make": make, "judge": judge},
        batches(),
        config,
        stage="game",
        parameters={"make": model.parameters(), "judge": pair.judge.parameters()},
    )
    result["game"] = collect(trainer, pair, second.curves)
    return result


def one_goes_bad() -> str:
    """A loss that is not finite in one process only must stop all."""
    model = Model()
    trainer = Trainer(seed=1, progress=False)

    def loss(batch: tuple[Tensor, ...]) -> Loss:
        value = model(batch[0]).square().mean()
        return Loss(value * float("nan") if trainer.processes.rank == trainer.step - 2 else value)

    try:
        trainer.fit(model, loss, batches(), CONFIG.replace(ema=None, evaluate_every=None))
    except TrainingStopped as error:
        return str(error)
    return "it went on"


def main(out: Path) -> None:
    trainer = Trainer()
    processes = trainer.processes
    result = {"world": processes.world, "sharded": processes.sharded, "device": str(trainer.device)}
    result["plain"] = two_stages(out / "plain")
    result["noisy"] = two_stages(None, noise=0.1)
    try:
        two_stages(out / "noisy", stop_at=7, noise=0.1)
    except KeyboardInterrupt:
        result["resumed"] = two_stages(out / "noisy", resume=True, noise=0.1)
    result["bad"] = one_goes_bad()
    (out / f"result-{processes.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
