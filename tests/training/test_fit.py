import json
import sys
import time

import pytest
import torch
from torch import nn

from encyclo.errors import InputError
from encyclo.training import SGD, AdamW, Loss, Schedule, Trainer, TrainingConfig
from training.jobs import Net, Positions, noisy_loss, plain

FLAT = Schedule(shape="constant")


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


def weighted_loss(model):
    def loss(batch):
        x, y, weight = batch
        error = (model(x) - y).square().mean(-1)
        return Loss((error * weight).sum() / weight.sum(), weight.sum(), {"largest": error.detach().max()})

    return loss


def data(count: int = 4, size: int = 12) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(9)
    return [
        (
            torch.randn(size, 4, generator=generator),
            torch.randn(size, 3, generator=generator),
            torch.randint(1, 9, (size,), generator=generator).float(),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("clip", [None, 0.1])
def test_micro_batches_of_uneven_weights_equal_one_big_batch(clip):
    results = []
    for accumulate in (1, 2, 6):
        model = linear()
        config = TrainingConfig(
            steps=15, batch_size=12, accumulate=accumulate, clip=clip, optimiser=SGD(lr=0.1), log_every=1
        )
        history = Trainer(device="cpu").fit(model, weighted_loss(model), data(), config)
        results.append((model.weight.detach(), [value for *_, value in history.curves["loss"]]))
    for weight, losses in results[1:]:
        torch.testing.assert_close(weight, results[0][0], rtol=1e-5, atol=1e-7)
        assert losses == pytest.approx(results[0][1], rel=1e-5)


def test_curves_hold_the_weighted_means_of_what_was_seen(tmp_path):
    model = linear()
    seen = []

    def loss(batch):
        weight = float(len(seen) + 1)
        value = model(batch[0]).square().mean()
        seen.append((weight, float(value.detach())))
        return Loss(value, weight, {"twice": 2 * value, "only_first": 1.0} if weight == 1 else {"twice": 2 * value})

    config = TrainingConfig(steps=5, log_every=3, clip=10.0)
    history = Trainer(tmp_path, device="cpu").fit(model, loss, data(), config)
    means = [sum(w * v for w, v in part) / sum(w for w, _ in part) for part in (seen[:3], seen[3:])]
    assert plain(history.curves)["loss"] == [(3, pytest.approx(means[0])), (5, pytest.approx(means[1]))]
    assert plain(history.curves)["twice"] == [(3, pytest.approx(2 * means[0])), (5, pytest.approx(2 * means[1]))]
    assert plain(history.curves)["only_first"] == [(3, 1.0)]
    assert [step for step, *_ in history.curves["grad_norm"]] == [3, 5]
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in written] == [("fit", 3), ("fit", 5)]
    assert written[1]["loss"] == history.curves["loss"][1][2]
    assert history.steps == 5
    assert history.seconds >= written[1]["seconds"] - 1e-6


def test_objectives_take_turns_with_their_own_parameters_and_optimisers():
    """Two adversaries, against the same game written out by hand."""
    torch.manual_seed(0)
    both = nn.ModuleDict({"maker": nn.Linear(4, 4), "judge": nn.Linear(4, 1)})
    torch.manual_seed(0)
    maker, judge = nn.Linear(4, 4), nn.Linear(4, 1)
    noticed = []

    def make(batch):
        noticed.append([p.requires_grad for p in both.parameters()])
        return Loss(-both["judge"](both["maker"](batch)).mean())

    def weigh(batch):
        noticed.append([p.requires_grad for p in both.parameters()])
        return Loss(
            (both["judge"](both["maker"](batch)) - both["judge"](batch)).mean() + both["judge"].weight.square().sum()
        )

    batches = [torch.randn(8, 4) for _ in range(3)]
    config = TrainingConfig(
        steps=9, optimiser=SGD(lr=0.1), optimisers={"judge": AdamW(lr=0.01)}, schedule=FLAT, log_every=1
    )
    history = Trainer(device="cpu").fit(
        both,
        {"make": make, "judge": weigh},
        batches,
        config,
        parameters={"make": both["maker"].parameters(), "judge": both["judge"].parameters()},
    )
    assert noticed[:2] == [[True, True, False, False], [False, False, True, True]]
    first, second = (
        torch.optim.SGD(maker.parameters(), lr=0.1, momentum=0.9),
        torch.optim.AdamW(judge.parameters(), lr=0.01, weight_decay=0),
    )
    for step in range(9):
        batch = batches[step % 3]
        first.zero_grad()
        (-judge(maker(batch)).mean()).backward()
        first.step()
        second.zero_grad()
        ((judge(maker(batch)) - judge(batch)).mean() + judge.weight.square().sum()).backward()
        second.step()
    torch.testing.assert_close(both["maker"].weight, maker.weight)
    torch.testing.assert_close(both["judge"].weight, judge.weight)
    assert set(history.curves) == {"make/loss", "make/lr", "judge/loss", "judge/lr"}
    assert history.curves["judge/lr"][0][2] == 0.01


def test_only_the_given_parameters_are_trained():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].bias.requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    Trainer(device="cpu").fit(
        model, weighted_loss(model), data(), TrainingConfig(steps=3), parameters=model[1].parameters()
    )
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [False, False, True, True]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_average_in_closed_form_and_raw_weights_left_in_place():
    model = linear()
    trainer = Trainer(device="cpu")
    trail = [model.weight.detach().clone()]
    config = TrainingConfig(steps=30, ema=0.7, optimiser=SGD(lr=0.05))
    trainer.fit(
        model, weighted_loss(model), data(), config, after_step=lambda _: trail.append(model.weight.detach().clone())
    )
    expected = trail[0]
    for step, weight in enumerate(trail[1:], start=1):
        expected = expected + (weight - expected) * (1 - min(0.7, step / (step + 9)))
    with trainer.averaged(model) as inside:
        assert inside is model
        torch.testing.assert_close(model.weight.detach(), expected)
    torch.testing.assert_close(model.weight.detach(), trail[-1], rtol=0, atol=0)


def test_a_budget_of_seconds_counts_training_alone():
    model = linear()
    rates = []
    trainer = Trainer(device="cpu")

    def look():
        time.sleep(0.3)
        return {}

    begun = time.perf_counter()
    history = trainer.fit(
        model,
        weighted_loss(model),
        data(),
        TrainingConfig(seconds=0.6, evaluate_every=100000, log_every=1),
        after_step=lambda _: (rates.append(trainer.done), time.sleep(0.005)),
        evaluate=look,
    )
    assert time.perf_counter() - begun > 0.9
    assert 0.6 <= history.seconds < 0.75
    assert rates == sorted(rates)
    assert trainer.done == 1.0
    values = [value for *_, value in history.curves["lr"]]
    assert values == sorted(values, reverse=True)
    assert values[len(values) // 2] == pytest.approx(0.5e-3, rel=0.3)  # half of the time, half of the cosine
    assert history.steps == len(rates)


def test_hooks_come_in_order_and_number_from_one():
    model = linear()
    trainer = Trainer(device="cpu")
    calls = []

    def loss(batch):
        calls.append("loss")
        return weighted_loss(model)(batch)

    trainer.fit(
        model,
        loss,
        data(),
        TrainingConfig(steps=2, clip=1e-9),
        before_step=lambda n: calls.append(("before", n, trainer.step)),
        before_update=lambda n: calls.append(("update", n, float(model.weight.grad.abs().max()) > 1e-6)),
        after_step=lambda n: calls.append(("after", n, model.weight.grad is None)),
    )
    expected = []
    for n in (1, 2):
        expected += [("before", n, n - 1), "loss", ("update", n, True), ("after", n, True)]
    assert calls == expected


def test_a_hook_can_take_components_out_of_the_gradient():
    model = nn.Linear(4, 3, bias=False)
    start = model.weight.detach().clone()
    direction = nn.functional.normalize(start, dim=1)

    def project(_: int) -> None:
        gradient = model.weight.grad
        gradient -= (gradient * direction).sum(1, keepdim=True) * direction

    config = TrainingConfig(steps=1, optimiser=SGD(lr=1.0, momentum=0.0))
    Trainer(device="cpu").fit(model, weighted_loss(model), data(), config, before_update=project)
    change = model.weight.detach() - start
    assert change.abs().max() > 1e-3
    torch.testing.assert_close((change * direction).sum(1), torch.zeros(3), atol=1e-6, rtol=0)


def test_evaluation_is_in_eval_mode_and_leaves_the_random_numbers_alone():
    def run(every: int | None) -> tuple[torch.Tensor, list]:
        net = Net()
        net.inner[3].eval()  # one part is kept in eval mode by its system
        trainer = Trainer(seed=1, device="cpu")
        modes = []

        def look():
            modes.append((net.training, torch.is_grad_enabled()))
            return {"draw": float(torch.rand(()) + torch.rand((), generator=trainer.generator))}

        config = TrainingConfig(steps=12, evaluate_every=every)
        history = trainer.fit(net, noisy_loss(trainer, net), Positions(), config, evaluate=look)
        assert not net.training
        assert modes == [(False, False)] * len(history.curves["eval/draw"])
        return net.outer.weight.detach(), [step for step, *_ in history.curves["eval/draw"]]

    often, steps = run(5)
    never, last = run(None)
    assert steps == [5, 10, 12]
    assert last == [12]
    assert torch.equal(often, never)


def test_the_same_seed_gives_the_same_run_and_another_does_not():
    def run(seed: int) -> torch.Tensor:
        net = Net()
        trainer = Trainer(seed=seed, device="cpu")
        torch.rand(seed + 1)  # what was drawn before a stage does not count
        trainer.fit(net, noisy_loss(trainer, net), Positions(), TrainingConfig(steps=5))
        return net.outer.weight.detach()

    assert torch.equal(run(4), run(4))
    assert not torch.equal(run(4), run(5))


def test_bf16_casts_the_products_and_keeps_the_weights():
    model = linear()
    kinds = []

    def loss(batch):
        output = model(batch[0])
        kinds.append(output.dtype)
        return Loss((output - batch[1]).float().square().mean())

    history = Trainer(device="cpu").fit(model, loss, data(), TrainingConfig(steps=20, precision="bf16", log_every=1))
    assert set(kinds) == {torch.bfloat16}
    assert model.weight.dtype == torch.float32
    losses = [value for *_, value in history.curves["loss"]]
    assert losses[-4] < losses[0]


def test_a_frozen_device_wins_over_the_argument(monkeypatch):
    monkeypatch.setenv("ENCYCLO_DEVICE", "cpu")
    assert Trainer(device="cuda").device == torch.device("cpu")
    monkeypatch.setenv("ENCYCLO_DEVICE", "toaster")
    with pytest.raises(InputError, match="device 'toaster'"):
        Trainer()
    monkeypatch.setenv("ENCYCLO_DEVICE", "cuda:99")
    with pytest.raises(InputError, match="device 'cuda:99': this machine has"):
        Trainer()


def test_wrong_requests_are_refused():
    model = linear()
    trainer = Trainer(device="cpu")
    one = TrainingConfig(steps=1)

    def fit(stage: str, config: TrainingConfig = one, **options):
        arguments = {"loss": weighted_loss(model), "batches": data(), **options}
        return trainer.fit(model, arguments.pop("loss"), arguments.pop("batches"), config, stage=stage, **arguments)

    with pytest.raises(InputError, match="the data gave no batch"):
        fit("a", batches=[])
    with pytest.raises(InputError, match="batches ended and cannot be gone through again"):
        fit("b", TrainingConfig(steps=9), batches=iter(data()))
    with pytest.raises(InputError, match=r"optimisers\.judge: stage 'c' has no such objective"):
        fit("c", TrainingConfig(steps=1, optimisers={"judge": SGD()}))
    with pytest.raises(InputError, match=r"schedule\.final=0"):
        fit("d", TrainingConfig(steps=1, schedule=Schedule(shape="exponential")))
    with pytest.raises(ValueError, match="not in the model"):
        fit("e", parameters=linear().parameters())
    with pytest.raises(ValueError, match="no parameters to train"):
        fit("f", parameters=[])
    with pytest.raises(ValueError, match="give `parameters` for each"):
        fit("g", loss={"x": weighted_loss(model), "y": weighted_loss(model)})
    with pytest.raises(ValueError, match="already run a stage 'g'"):
        fit("g")
    with pytest.raises(ValueError, match="stage 'a/b'"):
        fit("a/b")
    with pytest.raises(ValueError, match="objective 'x:y'"):
        fit("i", loss={"x:y": weighted_loss(model)})
    with pytest.raises(TypeError, match=r"returns encyclo\.training\.Loss\(value, weight\), not Tensor"):
        fit("j", loss=lambda b: model(b[0]).mean())
    with pytest.raises(InputError, match="batch of 12 cannot be split into 5 equal parts"):
        fit("h", TrainingConfig(steps=1, batch_size=10, accumulate=5))
    assert all(p.requires_grad for p in model.parameters())
    assert fit("fine").steps == 1


class Terminal:
    """A stream that says it is a terminal and keeps what it is told."""

    def __init__(self, terminal: bool) -> None:
        self.terminal, self.text = terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("terminal", "progress", "shown"), [(True, None, True), (False, None, False), (True, False, False)]
)
def test_the_bar_is_for_long_work_on_a_terminal(monkeypatch, terminal, progress, shown):
    stream = Terminal(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    model = linear()
    trainer = Trainer(device="cpu", progress=progress, label="learning [to see]")
    trainer.fit(model, weighted_loss(model), data(), TrainingConfig(seconds=0.3), stage="short")
    assert stream.text == ""
    trainer.fit(
        model,
        weighted_loss(model),
        data(),
        TrainingConfig(seconds=2.6),
        stage="long",
        after_step=lambda _: time.sleep(0.01),
    )
    assert ("learning [to see]" in stream.text and "loss" in stream.text) == shown
    if not shown:
        assert stream.text == ""
