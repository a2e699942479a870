"""Backed-off rows of probabilities."""

import torch

from encyclo.nn.backoff import Backoff, equal_mass_bins


def test_bins_are_runs_of_equal_mass():
    histogram = torch.ones(9)
    histogram[0] = 100  # the lowest value is always alone and does not count
    assert equal_mass_bins(histogram, 5).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    histogram[4] = 50  # a heavy value is alone too
    bins = equal_mass_bins(histogram, 5)
    assert (bins == bins[4]).sum() == 1
    assert (bins.diff() >= 0).all()
    assert int(bins.max()) <= 4


def test_rows_by_hand():
    data = torch.tensor([[0], [0], [1], [2]])
    part = Backoff.Config(bins=2, weight=2.0, own=1.0).build(variables=1, values=3)
    part.learn(data)
    assert part.bin_of.tolist() == [0, 1, 1]
    # shares within the bins from counts 2, 1, 1 and a half each
    torch.testing.assert_close(part.within, torch.tensor([1.0, 0.5, 0.5]))
    own = (torch.tensor([2.0, 2.0]) + torch.tensor([2.5, 3.0]) / 5.5) / 5
    coarse = (torch.tensor([0.0, 4.0]) + own) / 5
    shared = torch.stack([coarse[0], coarse[1] / 2, coarse[1] / 2])
    want = (torch.tensor([0.0, 4.0, 0.0]) + 2 * shared) / 6
    torch.testing.assert_close(part(torch.tensor([[[0.0, 4.0, 0.0]]]))[0, 0], want)


def test_limits():
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 50, (300, 4), generator=generator)
    counts = torch.rand(4, 3, 64, generator=generator) * 10
    free = Backoff.Config(bins=8, weight=1e-6).build(variables=4, values=64)
    free.learn(data)
    torch.testing.assert_close(free(counts), counts / counts.sum(-1, keepdim=True), atol=1e-6, rtol=0)
    tied = Backoff.Config(bins=8, weight=1e9).build(variables=4, values=64)
    tied.learn(data)
    rows = tied(counts)
    torch.testing.assert_close(rows.sum(-1), torch.ones(4, 3))
    ratio = rows / tied.within  # within a bin all rows are proportional to the shared shares
    for b in range(int(tied.bin_of.max()) + 1):
        inside = ratio[..., tied.bin_of == b]
        torch.testing.assert_close(inside, inside[..., :1].expand_as(inside), rtol=1e-4, atol=0)


def test_no_value_is_impossible():
    data = torch.zeros(100, 2, dtype=torch.uint8)
    part = Backoff.Config(bins=16, weight=64).build(variables=2, values=256)
    part.learn(data)
    rows = part(torch.zeros(2, 5, 256))
    assert float(rows.min()) > 1e-7
    assert float(rows[..., 0].min()) > 0.9
