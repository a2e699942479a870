"""Three ways to all prefix marginals: equal to brute force and to one another, and counted as theory says."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encyclo.nn.chow_liu import Tree
from encyclo.nn.hidden_chow_liu_tree import HiddenChowLiuTree
from encyclo.tokens.entropy import BITS, cumulative_frequencies
from encyclo.tokens.prefix_marginals import TABLE_BITS, IntegerCircuit, Weights


def model(parent, m=3, values=4, seed=0, sharp=3.0):
    part = HiddenChowLiuTree.Config(latents=m).build(tree=Tree(np.array(parent)), values=values)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (part.prior, part.transition, part.emission):
            p.copy_(torch.rand(p.shape, generator=generator) ** sharp + 1e-6)
            p /= p.sum(-1, keepdim=True)
    return part


def random_parent(d, seed):
    rng = np.random.default_rng(seed)
    return [-1] + [int(rng.integers(0, i)) for i in range(1, d)]


def test_brute_force():
    circuit = IntegerCircuit(model([-1, 0, 0, 1, 1, 2], values=2))
    every = torch.tensor(list(itertools.product(range(2), repeat=6)))
    p = circuit.dequantised().log_likelihood(every).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    found = circuit.structured(every)
    before = torch.ones(len(every), dtype=torch.float64)
    for i in range(6):
        order = circuit.tree.order[: i + 1]
        key = (every[:, order] * 2 ** torch.arange(i + 1)).sum(1)
        prefix = torch.zeros(2 ** (i + 1), dtype=torch.float64).index_add_(0, key, p)[key]
        torch.testing.assert_close(found.log_prefix[:, i], prefix.log(), rtol=0, atol=1e-12)
        share = found.frequencies[:, i] / 2**BITS
        assert (share - prefix / before).abs().max() < 4 / 2**BITS
        before = prefix


@given(st.integers(1, 30), st.integers(1, 5), st.integers(2, 9), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_all_schedules_agree_to_the_bit(d, m, values, seed):
    circuit = IntegerCircuit(model(random_parent(d, seed), m, values, seed))
    data = torch.randint(0, values, (6, d), generator=torch.Generator().manual_seed(seed))
    swept, structured, naive = circuit.swept(data), circuit.structured(data), circuit.naive(data)
    for other in (structured, naive):
        torch.testing.assert_close(other.log_prefix, swept.log_prefix, rtol=1e-12, atol=1e-11)
        assert torch.equal(other.starts, swept.starts)
        assert torch.equal(other.frequencies, swept.frequencies)
    torch.testing.assert_close(
        swept.log_prefix[:, -1], circuit.dequantised().log_likelihood(data), rtol=1e-12, atol=1e-11
    )
    assert structured.work.units <= (math.log2(d) + 1) * circuit.units
    assert naive.work.units == d * circuit.units
    assert swept.work.units < 2 * circuit.units


def test_units_by_hand():
    # a chain of three: X2 alone, then X1, then X0; every step adds one level to the head
    circuit = IntegerCircuit(model([-1, 0, 1], m=2))
    work = circuit.structured(torch.zeros(1, 3, dtype=torch.long)).work
    # inputs 3 x 2; products at X1 and X0 2 x 2; sums of X2 and X1 once each, when their subtree is complete, 2 x 2
    assert (work.units, work.edges) == (14, 8)
    # a star: X1 first (its own head), then X2 and X3 below the root, then the root
    circuit = IntegerCircuit(model([-1, 0, 0, 0], m=2))
    work = circuit.structured(torch.zeros(1, 4, dtype=torch.long)).work
    # inputs 4 x 2; sums 3 x 2; products with what is complete: for X2, X3 and the root 3 x 2
    assert (work.units, work.edges) == (20, 12)
    assert circuit.units == 4 * 2 + 3 * 2 + 3 * 2 + 1


def test_the_encoders_interval_is_the_decoders_cumulative():
    circuit = IntegerCircuit(model(random_parent(12, 0), 4, 7))
    data = torch.randint(0, 7, (9, 12), generator=torch.Generator().manual_seed(0))

    def answer(variable: int, weights: Weights) -> torch.Tensor:
        values = data[:, variable]
        sums, rows = weights.cumulatives(), weights.rows()
        start, frequency, share = weights.interval(values)
        assert torch.equal(sums.gather(1, values[:, None])[:, 0], start)
        assert torch.equal(sums.gather(1, values[:, None] + 1)[:, 0], start + frequency)
        assert (sums[:, 0] == 0).all()
        assert (sums[:, -1] == 1 << BITS).all()
        assert (sums.diff() >= 1).all()
        assert torch.equal(sums, torch.from_numpy(cumulative_frequencies(rows.numpy())))
        torch.testing.assert_close(rows.gather(1, values[:, None])[:, 0] / rows.sum(1), share)
        return values

    circuit.sweep(9, answer)


def test_no_bit_depends_on_batch_threads_or_order():
    circuit = IntegerCircuit(model(random_parent(40, 3), 17, 50))
    data = torch.randint(0, 50, (33, 40), generator=torch.Generator().manual_seed(0))
    whole = circuit.swept(data)
    alone = [circuit.swept(row[None]) for row in data]
    assert torch.equal(whole.starts, torch.cat([a.starts for a in alone]))
    assert torch.equal(whole.frequencies, torch.cat([a.frequencies for a in alone]))
    turned = circuit.swept(data.flip(0))
    assert torch.equal(whole.starts, turned.starts.flip(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = circuit.swept(data)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole.starts, again.starts)
    assert torch.equal(whole.log_prefix, again.log_prefix)


@pytest.mark.parametrize("m", [1, 2, 16, 100])
def test_products_are_exact(m):
    """The split product equals the product of Python's integers."""
    circuit = IntegerCircuit(model([-1, 0], m, 3))
    table = circuit.transition[0].double()
    message = torch.rand(m, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 9 + 1e-30
    parts = circuit.split(message)
    assert torch.equal(parts, parts.round())
    assert float(parts.max()) < 2**circuit.half
    got = table @ parts
    whole, exact = table.long().tolist(), parts.long().tolist()
    for k in range(m):
        for n in range(8):
            total = sum(whole[k][j] * exact[j][n] for j in range(m))
            assert total < 2**53
            assert int(got[k, n]) == total
    merged = circuit.merge(parts) / 2.0 ** (2 * circuit.half)
    scaled = message / message.amax(0)
    torch.testing.assert_close(
        merged / merged.amax(0), scaled.clamp(min=2.0 ** (-2 * circuit.half)), rtol=1e-9, atol=1e-13
    )


def test_tables_are_distributions_in_whole_numbers():
    part = model([-1, 0, 0], 3, 5)
    circuit = IntegerCircuit(part)
    assert int(circuit.prior.sum()) == 1 << TABLE_BITS
    assert (circuit.transition.sum(-1) == 1 << TABLE_BITS).all()
    assert (circuit.cumulative[..., -1] == 1 << TABLE_BITS).all()
    assert (circuit.cumulative.diff() >= 1).all()
    with torch.no_grad():
        part.emission[0, 0] = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])
    assert (IntegerCircuit(part).cumulative.diff() >= 1).all()  # what never occurred can still be coded


def test_the_digest_names_tree_and_tables():
    digests = {
        IntegerCircuit(model(parent, seed=seed)).digest for parent in ([-1, 0, 0], [-1, 0, 1]) for seed in (0, 1)
    }
    assert len(digests) == 4
    assert IntegerCircuit(model([-1, 0, 0])).digest == IntegerCircuit(model([-1, 0, 0])).digest


def test_too_many_states():
    part = HiddenChowLiuTree.Config(latents=1 << 16).build(tree=Tree(np.array([-1])), values=2)
    with pytest.raises(ValueError, match="too many"):
        IntegerCircuit(part)
