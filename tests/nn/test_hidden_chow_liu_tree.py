"""The circuit against brute force over all assignments, and EM against its own theory."""

import itertools
import math

import numpy as np
import pytest
import torch

from encyclo.nn.backoff import Backoff
from encyclo.nn.chow_liu import Tree
from encyclo.nn.hidden_chow_liu_tree import HiddenChowLiuTree, power_of_two
from encyclo.nn.part import parameter_count

PARENT = np.array([-1, 0, 0, 2, 2])
EVERY = torch.tensor(list(itertools.product(range(3), repeat=5)))


def circuit(m=2, values=3, parent=PARENT, seed=0, **config):
    part = HiddenChowLiuTree.Config(latents=m, **config).build(tree=Tree(parent), values=values)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (part.prior, part.transition, part.emission):
            p.copy_(torch.rand(p.shape, generator=generator) + 0.05)
            p /= p.sum(-1, keepdim=True)
    return part


def joint(part, x):
    """p(z, x) for every assignment z of the latents, straight from the definition; float64."""
    prior, transition, emission = (p.detach().double() for p in (part.prior, part.transition, part.emission))
    places = {v: i for i, v in enumerate(part.variables.tolist())}
    states = list(itertools.product(range(part.config.latents), repeat=len(part.tree)))
    out = []
    for z in states:
        p = torch.tensor(1.0, dtype=torch.float64)
        for v, parent in enumerate(part.tree.parent.tolist()):
            p = p * (prior[z[v]] if parent < 0 else transition[places[v] - 1, z[parent], z[v]])
            p = p * emission[places[v], z[v], x[v]]
        out.append(p)
    return states, torch.stack(out)


def test_likelihood_is_the_sum_over_latents():
    part = circuit()
    for x in EVERY[::17]:
        assert part.log_likelihood(x[None])[0].item() == pytest.approx(math.log(joint(part, x)[1].sum()), abs=1e-12)


def test_it_sums_to_one_and_marginals_are_sums():
    part = circuit(m=3)
    every = part.log_likelihood(EVERY).exp()
    assert every.sum().item() == pytest.approx(1, abs=1e-6)  # rows of float32 sum to 1 to 1e-7
    for seen in ([1, 0, 0, 0, 1], [0, 0, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]):
        mask = torch.tensor(seen, dtype=torch.bool)
        same = (EVERY[:, mask] == EVERY[40, mask]).all(1)
        got = part.log_likelihood(EVERY[40:41], mask).exp()
        assert got.item() == pytest.approx(every[same].sum().item(), rel=1e-6)
    masks = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 1, 1, 1]], dtype=torch.bool)
    both = part.log_likelihood(EVERY[[3, 99]], masks)
    for row, mask in enumerate(masks):
        assert both[row] == part.log_likelihood(EVERY[[3, 99]][row : row + 1], mask)[0]


def test_float32_and_batches():
    part = circuit(m=4, seed=3)
    exact = part.log_likelihood(EVERY)
    torch.testing.assert_close(part.log_likelihood(EVERY, dtype=torch.float32), exact, atol=2e-5, rtol=0)
    torch.testing.assert_close(part.log_likelihood(EVERY, batch=7), exact)
    assert part.log_likelihood(EVERY[:0]).shape == (0,)


def test_very_unlikely_samples_do_not_underflow():
    parent = np.concatenate([[-1], np.arange(399)])
    part = circuit(m=2, values=256, parent=parent)
    with torch.no_grad():
        part.emission.fill_(1e-12)
        part.emission[..., 0] = 1 - 255e-12
    data = torch.full((2, 400), 7)
    data[1] = 0
    got = part.log_likelihood(data)
    assert got[0].item() == pytest.approx(400 * math.log(1e-12), rel=1e-6)
    assert got[1].item() == pytest.approx(0, abs=1e-4)
    assert part.log_likelihood(data, dtype=torch.float32)[0].item() == pytest.approx(got[0].item(), rel=1e-5)


def test_one_state_is_independence():
    part = circuit(m=1)
    rows = part.emission[torch.tensor([part.variables.tolist().index(v) for v in range(5)]), 0].detach().double()
    want = sum(rows[v, EVERY[:, v]].log() for v in range(5))
    torch.testing.assert_close(part.log_likelihood(EVERY), want)


def test_counts_are_expected_counts():
    part = circuit()
    data = EVERY[[5, 77, 200]]
    got = part.counts(data, dtype=torch.float64, batch=2)
    order = part.variables.tolist()
    prior = torch.zeros_like(got.prior)
    transition, emission = torch.zeros_like(got.transition), torch.zeros_like(got.emission)
    total = 0.0
    for x in data:
        states, p = joint(part, x)
        total += math.log(p.sum())
        for z, share in zip(states, p / p.sum(), strict=True):
            prior[z[order[0]]] += share
            for place, v in enumerate(order):
                emission[place, z[v], x[v]] += share
                if place:
                    transition[place - 1, z[part.tree.parent[v]], z[v]] += share
    torch.testing.assert_close(got.prior, prior)
    torch.testing.assert_close(got.transition, transition)
    torch.testing.assert_close(got.emission, emission)
    assert got.log_likelihood.item() == pytest.approx(total)
    assert got.samples == 3


def test_flows_are_the_gradient_times_the_parameters():
    """F = theta d ln p / d theta (the circuit as a polynomial in its parameters, by central differences)."""
    part = circuit()
    data = EVERY[[1, 60]]
    (part.nll(data) * 3).backward()
    for p in (part.prior, part.transition, part.emission):
        assert p.grad is not None
        for index in list(np.ndindex(*p.shape))[::5]:
            step, values = 1e-3, []
            for sign in (1, -1):
                with torch.no_grad():
                    p[index] += sign * step
                    values.append(part.log_likelihood(data).mean().item())
                    p[index] -= sign * step
            assert p.grad[index].item() == pytest.approx(-3 * (values[0] - values[1]) / (2 * step), abs=2e-3, rel=2e-3)


def trained(part, data, steps, eta=1.0):
    out = []
    for _ in range(steps):
        out.append(part.log_likelihood(data).mean().item())
        part.nll(data).backward()
        part.em_step(len(data), eta)
    return [*out, part.log_likelihood(data).mean().item()]


def sampled(n=400):
    return circuit(m=3, seed=11).sample(torch.Generator().manual_seed(5), torch.zeros(n, 5, dtype=torch.uint8)).long()


def test_full_em_never_loses():
    data = sampled()
    part = circuit(m=3, pseudo_count=0.0, backoff=Backoff.Config(weight=1e-6, own=1e-6))
    part.backoff.learn(data[:, part.variables])
    path = trained(part, data, 15)
    assert all(b >= a - 1e-6 for a, b in itertools.pairwise(path))
    assert path[-1] > path[0] + 0.05
    assert part.prior.grad is None


def test_rows_stay_distributions():
    data = sampled()
    part = circuit(m=3)
    part.backoff.learn(data[:, part.variables])
    trained(part, data, 3, eta=0.3)
    for p in (part.prior, part.transition, part.emission):
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))
        assert float(p.min()) > 0


def test_one_step_of_em_by_hand():
    data = sampled(50)
    part = circuit(pseudo_count=0.5)
    part.backoff.learn(data[:, part.variables])
    counts = part.counts(data)
    want = counts.transition + 0.25
    want = 0.6 * part.transition.detach() + 0.4 * want / want.sum(-1, keepdim=True)
    part.nll(data).backward()
    part.em_step(50, 0.4)
    torch.testing.assert_close(part.transition.detach(), want, atol=1e-5, rtol=1e-4)


def test_equal_states_are_a_saddle_point():
    data = sampled()
    part = HiddenChowLiuTree.Config(latents=3).build(tree=Tree(PARENT), values=3)
    part.backoff.learn(data[:, part.variables])
    trained(part, data, 4)
    torch.testing.assert_close(part.emission[:, :1].expand_as(part.emission), part.emission)


@pytest.mark.parametrize("kind", ["prototypes", "random"])
def test_starts_lead_away_from_it(kind):
    data = sampled()
    part = HiddenChowLiuTree.Config(latents=3, backoff=Backoff.Config(weight=1.0)).build(tree=Tree(PARENT), values=3)
    part.start(data, torch.Generator().manual_seed(0), kind=kind, radius=1)
    assert (part.emission.std(1) > 1e-4).any()
    for p in (part.prior, part.transition, part.emission):
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))
    path = trained(part, data, 10)
    assert path[-1] > path[0]
    again = HiddenChowLiuTree.Config(latents=3, backoff=Backoff.Config(weight=1.0)).build(tree=Tree(PARENT), values=3)
    again.start(data, torch.Generator().manual_seed(0), kind=kind, radius=1)
    trained(again, data, 10)
    assert torch.equal(again.emission, part.emission)


def test_more_states_than_samples_can_start():
    part = HiddenChowLiuTree.Config(latents=5).build(tree=Tree(PARENT), values=3)
    part.start(EVERY[:3], torch.Generator().manual_seed(0))
    assert math.isfinite(part.log_likelihood(EVERY).sum())


def test_conditionals_are_exact():
    part = circuit(m=3)
    mask = torch.tensor([1, 0, 0, 1, 0], dtype=torch.bool)
    got = part.conditionals(EVERY[:3], mask)
    for row in range(3):
        for v in range(5):
            others = mask.clone()
            others[v] = False
            lines = EVERY[row].repeat(3, 1)
            lines[:, v] = torch.arange(3)
            others_and_v = others.clone()
            others_and_v[v] = True
            p = part.log_likelihood(lines, others_and_v).exp()
            torch.testing.assert_close(got[row, v], p / p.sum())


def test_samples_follow_the_distribution():
    part = circuit(m=2)
    n = 60_000
    drawn = part.sample(torch.Generator().manual_seed(0), torch.zeros(n, 5, dtype=torch.uint8)).long()
    found = torch.bincount((drawn * 3 ** torch.arange(4, -1, -1)).sum(1), minlength=243) / n
    want = part.log_likelihood(EVERY).exp()
    assert ((found - want).abs() <= 5 * (want / n).sqrt() + 1e-4).all()


def test_conditional_samples_keep_the_evidence_and_follow_the_conditional():
    part = circuit(m=2)
    n = 20_000
    mask = torch.tensor([0, 1, 0, 1, 1], dtype=torch.bool)
    drawn = part.sample(torch.Generator().manual_seed(1), EVERY[200:201].expand(n, -1).to(torch.uint8), mask).long()
    assert (drawn[:, mask] == EVERY[200, mask]).all()
    for v in (0, 2):
        want = part.conditionals(EVERY[200:201], mask)[0, v]
        found = torch.bincount(drawn[:, v], minlength=3) / n
        assert (found - want).abs().max() < 0.02


@pytest.mark.parametrize(("m", "count"), [(16, 3_411_728), (24, 5_267_928), (32, 7_224_352)])
def test_published_sizes(m, count):
    with torch.device("meta"):
        part = HiddenChowLiuTree.Config(latents=m).build(tree=Tree.balanced(784), values=256)
    assert parameter_count(part) == count == 783 * m * m + 784 * m * 256 + m


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_power_of_two(dtype):
    x = torch.tensor([1.0, 0.5, 0.75, 3.0, 1e-30, 2.0**40], dtype=dtype)
    factor, exponent = power_of_two(x)
    scaled = x * factor
    assert ((scaled >= 0.5) & (scaled < 1)).all()
    assert torch.equal(torch.log2(factor), -exponent.to(dtype))
    assert torch.equal(torch.frexp(x).exponent.long(), exponent)


def test_a_single_variable():
    part = circuit(parent=np.array([-1]))
    x = torch.arange(3)[:, None]
    assert part.log_likelihood(x).exp().sum().item() == pytest.approx(1, abs=1e-6)
    part.backoff.learn(x)
    part.nll(x).backward()
    part.em_step(3, 1.0)
    part.start(x, torch.Generator())
