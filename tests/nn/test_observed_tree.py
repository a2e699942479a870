"""The plain Chow-Liu tree and independent variables."""

import itertools
import math

import numpy as np
import torch

from encyclo.nn.backoff import Backoff
from encyclo.nn.chow_liu import Tree
from encyclo.nn.observed_tree import ObservedTree

TREE = Tree(np.array([1, -1, 1, 2]))


def learned(bins, data, weight=1e-6, own=1e-6, tree=TREE, values=3):
    part = ObservedTree.Config(parent_bins=bins, backoff=Backoff.Config(weight=weight, own=own)).build(
        tree=tree, values=values
    )
    part.learn(data)
    return part


def test_it_is_a_distribution():
    data = torch.randint(0, 3, (50, 4), generator=torch.Generator().manual_seed(0))
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    for bins in (1, 2, 3):
        part = learned(bins, data, weight=1.0, own=1.0)
        assert math.isclose(float(part.log_likelihood(every).exp().sum()), 1.0, rel_tol=1e-5)


def test_without_smoothing_it_is_counting():
    data = torch.randint(0, 3, (500, 4), generator=torch.Generator().manual_seed(0))
    data[:, 3] = data[:, 2]
    part = learned(3, data)
    x = data[:1]
    p1 = (data[:, 1] == x[0, 1]).double().mean()
    want = math.log(p1)
    for child, parent in ((0, 1), (2, 1), (3, 2)):
        both = ((data[:, child] == x[0, child]) & (data[:, parent] == x[0, parent])).double().mean()
        want += math.log(both / (data[:, parent] == x[0, parent]).double().mean())
    assert math.isclose(float(part.log_likelihood(x)[0]), want, rel_tol=1e-4)


def test_one_bin_is_independence():
    data = torch.randint(0, 3, (500, 4), generator=torch.Generator().manual_seed(0))
    part = learned(1, data)
    want = sum(math.log((data[:, i] == data[7, i]).double().mean()) for i in range(4))
    assert math.isclose(float(part.log_likelihood(data[7:8])[0]), want, rel_tol=1e-4)


def test_a_dependence_pays():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (2000, 1), generator=generator)
    data = x.expand(-1, 4).contiguous()
    assert float(learned(3, data).log_likelihood(data).mean()) > float(learned(1, data).log_likelihood(data).mean()) + 3
