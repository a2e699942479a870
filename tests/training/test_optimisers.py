import subprocess
import sys

import pytest
import torch
from torch import nn

from encyclo.training import SGD, AdamW, Loss, Schedule, Trainer, TrainingConfig
from encyclo.training.optimiser import build
from encyclo.training.schedule import factor

STEPS = 40


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 2))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, 5), torch.randn(6, 2)


def fitted(optimiser: AdamW | SGD, schedule: Schedule, **settings: object) -> list[torch.Tensor]:
    model = net()
    config = TrainingConfig(steps=STEPS, optimiser=optimiser, schedule=schedule, **settings)
    Trainer(device="cpu").fit(model, lambda b: Loss((model(b[0]) - b[1]).square().mean()), [batch()], config)
    return [p.detach() for p in model.parameters()]


def by_hand(make, schedule: Schedule, lr: float, clip: float | None = None) -> list[torch.Tensor]:
    model, (x, y) = net(), batch()
    optimiser = make(model)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = lr * factor(schedule, step / STEPS)
        optimiser.zero_grad()
        (model(x) - y).square().mean().backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
    return [p.detach() for p in model.parameters()]


def close(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def groups(model: nn.Module, decay: float) -> list[dict]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def test_adamw_is_torchs_and_leaves_vectors_undecayed():
    schedule = Schedule(warmup=0.25, start=0.1, final=0.2)
    ours = fitted(AdamW(lr=0.02, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-6), schedule)
    close(ours, by_hand(lambda m: torch.optim.AdamW(groups(m, 0.3), betas=(0.8, 0.95), eps=1e-6), schedule, 0.02))


def test_adamw_decays_vectors_when_told_to():
    ours = fitted(AdamW(lr=0.02, weight_decay=0.3, decay_vectors=True), Schedule())
    close(ours, by_hand(lambda m: torch.optim.AdamW(m.parameters(), weight_decay=0.3), Schedule(), 0.02))


def test_sgd_is_torchs():
    def theirs(model):
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01)

    ours = fitted(SGD(lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01), Schedule(shape="linear"), clip=0.5)
    close(ours, by_hand(theirs, Schedule(shape="linear"), 0.05, clip=0.5))


@pytest.mark.parametrize("decay_by", ["lr", "schedule"])
def test_decay_in_closed_form(decay_by):
    """Without gradients only the decay moves a weight: it shrinks by 1 - f decay (times the peak rate, by "lr")."""
    weight = nn.Parameter(torch.ones(3, 3))
    model = nn.Module()
    model.weight = weight
    lr, decay, schedule = 0.1, 0.05, Schedule(warmup=0.3, final=0.1)
    config = TrainingConfig(
        steps=STEPS, optimiser=AdamW(lr=lr, weight_decay=decay, decay_by=decay_by), schedule=schedule
    )
    Trainer(device="cpu").fit(model, lambda b: Loss((weight * 0).sum()), [torch.zeros(1)], config)
    expected = 1.0
    for step in range(STEPS):
        rate = decay * factor(schedule, step / STEPS)
        expected *= 1 - (rate if decay_by == "schedule" else lr * rate)
    torch.testing.assert_close(weight.detach(), torch.full((3, 3), expected), rtol=1e-5, atol=0)


def test_the_rate_of_each_step_is_in_the_curves():
    model = net()
    schedule = Schedule(warmup=0.5, final=0.1)
    config = TrainingConfig(steps=10, optimiser=AdamW(lr=2.0), schedule=schedule, log_every=1)
    history = Trainer(device="cpu").fit(model, lambda b: Loss(model(b[0]).mean() * 0), [batch()], config)
    rates = [value for _, _, value in history.curves["lr"]]
    assert rates == pytest.approx([2 * factor(schedule, step / 10) for step in range(10)])


def test_a_parameter_without_gradients_in_some_steps_is_left_alone_in_them():
    def run(make) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = [nn.Linear(3, 3, bias=False) for _ in range(2)]
        optimiser = make([layer.weight for layer in layers])
        for step in range(6):
            optimiser.zero_grad()
            for layer in layers[: 1 + step % 2]:
                layer(torch.ones(2, 3)).square().mean().backward()
            optimiser.step()
        return [layer.weight.detach() for layer in layers]

    close(
        run(lambda p: build(AdamW(lr=0.1, weight_decay=0.2), p)),
        run(lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2)),
    )
    for momentum in (0.0, 0.9):
        close(
            run(lambda p, m=momentum: build(SGD(lr=0.1, momentum=m), p)),
            run(lambda p, m=momentum: torch.optim.SGD(p, lr=0.1, momentum=m)),
        )


def test_the_compiler_is_not_imported():
    """Importing it takes seconds, at the start of every training."""
    code = """
import sys, torch
from encyclo.training import SGD, AdamW, Loss, Trainer, TrainingConfig
model = torch.nn.Linear(2, 1)
for name, kind in (("a", AdamW()), ("b", SGD())):
    config = TrainingConfig(steps=2, optimiser=kind, clip=1.0, ema=0.9, precision="bf16")
    Trainer(device="cpu").fit(model, lambda b: Loss(model(b).mean()), [torch.ones(2, 2)], config, stage=name)
assert not {"torch._dynamo", "torch.distributed.tensor", "accelerate"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
