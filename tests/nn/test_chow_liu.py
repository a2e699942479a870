"""Mutual information and the tree that keeps most of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree
from sklearn.metrics import mutual_info_score

from encyclo.nn.chow_liu import Tree, chow_liu_tree, maximum_spanning_tree, mutual_information, soft_bins


def test_with_a_bin_for_each_value_it_is_the_information_of_the_counts():
    data = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (200, 5)))
    data[:, 3] = (data[:, 0] + data[:, 3] // 3) % 4
    got = mutual_information(data, values=4, bins=4)
    for i in range(5):
        for j in range(5):
            assert got[i, j].item() == pytest.approx(mutual_info_score(data[:, i], data[:, j]), abs=1e-5)


def test_information_of_copies_and_of_independent_columns():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (4000, 1), generator=generator)
    other = torch.randint(0, 256, (4000, 1), generator=generator)
    got = mutual_information(torch.cat([x, 255 - x, other], 1), values=256, bins=8, width=0.05)
    assert got[0, 1].item() == pytest.approx(got[0, 0].item(), rel=1e-3)  # a copy tells everything
    assert got[0, 2].item() < 0.02
    assert torch.equal(got, got.T)


def test_blocks_change_nothing():
    data = torch.randint(0, 17, (100, 30), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    whole = mutual_information(data, values=17, bins=6)
    torch.testing.assert_close(whole, mutual_information(data, values=17, bins=6, block_bytes=1), atol=1e-5, rtol=0)


def test_weights_count_rows():
    data = torch.randint(0, 5, (40, 6), generator=torch.Generator().manual_seed(2))
    twice = torch.cat([data, data[:10]])
    weights = torch.ones(40)
    weights[:10] = 2
    torch.testing.assert_close(
        mutual_information(twice, values=5, bins=3),
        mutual_information(data, values=5, bins=3, weights=weights),
        atol=1e-5,
        rtol=0,
    )


def test_soft_bins_are_shares():
    table = soft_bins(256, 32, 0.5)
    assert table.shape == (256, 32)
    torch.testing.assert_close(table.sum(1), torch.ones(256))
    assert table.argmax(1)[[0, 7, 8, 255]].tolist() == [0, 0, 1, 31]
    assert torch.equal(soft_bins(4, 9, 0.5), torch.eye(4))


@given(st.integers(1, 25), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_spanning_tree_is_as_heavy_as_scipys(d, seed):
    w = np.random.default_rng(seed).random((d, d)) + 0.1
    w = np.triu(w, 1) + np.triu(w, 1).T
    edges = maximum_spanning_tree(torch.from_numpy(w))
    heaviest = -minimum_spanning_tree(np.triu(2.0 - w, 1)).sum() + 2.0 * (d - 1)
    assert w[edges[:, 0], edges[:, 1]].sum() == pytest.approx(heaviest, abs=1e-4 * d)
    tree = Tree.from_edges(edges, d)
    assert sorted(tree.order) == list(range(d))


def test_variables_without_information_do_not_all_hang_on_one():
    weights = torch.zeros(100, 100)
    tree = chow_liu_tree(weights)
    assert max(map(len, tree.children)) < 20


def test_the_root_is_the_centre():
    path = Tree.from_edges(np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6]]), 7)
    assert path.root == 3
    assert len(path.levels) == 4
    assert Tree.from_edges(np.array([[2, 0], [2, 1], [2, 3]]), 4).root == 2
    assert Tree.from_edges(np.zeros((0, 2), dtype=np.int64), 1).order == [0]


def test_order_and_sizes_by_hand():
    #       0
    #     /   \
    #    1     2
    #   / \     \
    #  3   4     5
    #  6,7 below 3
    tree = Tree(np.array([-1, 0, 0, 1, 1, 2, 3, 3]))
    assert tree.sizes.tolist() == [8, 5, 2, 3, 1, 1, 1, 1]
    assert tree.levels == [[0], [1, 2], [3, 4, 5], [6, 7]]
    assert tree.order == [6, 7, 3, 4, 1, 5, 2, 0]  # the heavier subtree first, the variable after its subtrees


@pytest.mark.parametrize("parent", [[0, 0], [-1, -1], [1, 0], [-1, 2, 1]])
def test_what_is_no_tree_is_refused(parent):
    with pytest.raises(ValueError, match="no single rooted tree"):
        Tree(np.array(parent))


def test_edges_that_do_not_join():
    with pytest.raises(ValueError, match="do not join"):
        Tree.from_edges(np.array([[0, 1]]), 3)


def test_a_known_tree_is_found_again():
    """Data drawn from a chain with strong links give the chain back."""
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(0, 4, (3000,), generator=generator)]
    for _ in range(9):
        flip = torch.rand(3000, generator=generator) < 0.2
        columns.append(torch.where(flip, torch.randint(0, 4, (3000,), generator=generator), columns[-1]))
    tree = chow_liu_tree(mutual_information(torch.stack(columns, 1), values=4, bins=4))
    pairs = {frozenset((i, int(p))) for i, p in enumerate(tree.parent) if p >= 0}
    assert pairs == {frozenset((i, i + 1)) for i in range(9)}
    assert tree.root in (4, 5)
