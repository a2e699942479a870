"""Trees over variables that lose the least information: Chow & Liu 1968, "Approximating discrete probability
distributions with dependence trees"."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

__all__ = ["Tree", "chow_liu_tree", "maximum_spanning_tree", "mutual_information", "soft_bins"]


def soft_bins(values: int, bins: int, width: float) -> Float[Tensor, "values bins"]:
    """How much of each value lies in each bin: a Gaussian around the value, rows summing to 1.

    Args:
        values: size of the alphabet; value v stands at (v + 1/2) / values, bin b at (b + 1/2) / bins.
        bins: with bins >= values every value has a bin of its own.
        width: standard deviation of the Gaussian in units of a bin's breadth.
    """
    if bins >= values:
        return torch.eye(values)
    at = (torch.arange(values) + 0.5) / values
    centres = (torch.arange(bins) + 0.5) / bins
    return torch.softmax(-0.5 * ((at[:, None] - centres) * bins / width) ** 2, dim=1)


def mutual_information(
    data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"],
    *,
    values: int,
    bins: int = 32,
    width: float = 0.5,
    weights: Float[Tensor, " n"] | None = None,
    block_bytes: int = 1 << 28,
) -> Float[Tensor, "d d"]:
    """I(X_i; X_j) in nats between all pairs of columns, from soft-binned joint histograms.

    I = H_i + H_j - H_ij with H the entropies of the binned columns; the diagonal holds H_i. Done as blocks of one large
    matrix product of the binned data with itself, so time grows with n (d bins)^2.

    Args:
        data: numbers 0..values-1.
        values, bins, width: see `soft_bins`.
        weights: of the rows; None weighs them alike.
        block_bytes: memory for one block of joint histograms.
    """
    table = soft_bins(values, bins, width).to(data.device)
    d, k = data.shape[1], table.shape[1]
    share = torch.full((len(data),), 1 / len(data)) if weights is None else weights / weights.sum()
    binned = table[data.long()].flatten(1)
    marginal = (share.to(data.device) @ binned).view(d, k)
    entropy = _entropy(marginal).sum(1)
    scaled = binned * share.to(data.device)[:, None]
    out = torch.empty(d, d, device=data.device)
    rows = max(1, block_bytes // (4 * k * k * d))
    for start in range(0, d, rows):
        stop = min(d, start + rows)
        # the matrix is symmetric: only what stands right of the block's first column
        joint = scaled[:, start * k : stop * k].T @ binned[:, start * k :]
        joint = _entropy(joint).view(stop - start, k, d - start, k).sum((1, 3))
        out[start:stop, start:] = entropy[start:stop, None] + entropy[start:] - joint
    upper = out.triu(1).clamp_(min=0)
    whole: Tensor = upper + upper.T + torch.diag(entropy)
    return whole


def _entropy(p: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    out: Tensor = -torch.special.xlogy(p, p)
    return out


def maximum_spanning_tree(weights: Float[Tensor, "d d"]) -> Int64[np.ndarray, " edges 2"]:
    """The d-1 edges of a spanning tree of greatest total weight (Prim), the same on every machine for equal weights.

    Among weights that differ by less than 1e-5 of the largest (pixels that hardly ever change have next to no
    information about any other) the partner is spread over the tree, so that no node collects them all.
    """
    w = weights.detach().cpu().double().numpy()
    d = len(w)
    spread = (np.arange(d)[:, None] * 40503 + np.arange(d) * 30011) % 65521
    w = w + w.max(initial=1.0) * 1e-5 * (spread + spread.T) / (2 * 65521)
    best, partner = w[0].copy(), np.zeros(d, dtype=np.int64)
    outside = np.ones(d, dtype=np.bool_)
    outside[0] = False
    edges = np.empty((d - 1, 2), dtype=np.int64)
    for step in range(d - 1):
        new = int(np.argmax(np.where(outside, best, -np.inf)))
        edges[step] = partner[new], new
        outside[new] = False
        nearer = outside & (w[new] > best)
        best[nearer], partner[nearer] = w[new][nearer], new
    return edges


@dataclass(frozen=True, eq=False)
class Tree:
    """A rooted tree over variables 0..d-1, given by each one's parent (the root's is -1)."""

    parent: Int64[np.ndarray, " d"]

    def __post_init__(self) -> None:
        if (self.parent < 0).sum() != 1 or len(self.levels) == 0 or sum(map(len, self.levels)) != len(self.parent):
            raise ValueError("the parents given form no single rooted tree")

    @classmethod
    def from_edges(cls, edges: Int64[np.ndarray, "edges 2"], d: int) -> "Tree":
        """The undirected tree of these edges, rooted at its centre: the middle of a longest path, least depth."""
        first = int(np.argmax(_distances(edges, d, 0)[0]))
        distance, parent = _distances(edges, d, first)
        node = int(np.argmax(distance))
        for _ in range(int(distance[node]) // 2):
            node = int(parent[node])
        return cls(_distances(edges, d, node)[1])

    @classmethod
    def balanced(cls, d: int) -> "Tree":
        """The binary heap over d variables: a stand-in where sizes matter and data do not."""
        return cls(np.concatenate([[-1], (np.arange(1, d) - 1) // 2]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.parent)

    @cached_property
    def root(self) -> int:
        """The variable without a parent."""
        return int(np.flatnonzero(self.parent < 0)[0])

    @cached_property
    def children(self) -> list[list[int]]:
        """Of each variable, in ascending order."""
        out: list[list[int]] = [[] for _ in range(len(self.parent))]
        for child, parent in enumerate(self.parent.tolist()):
            if parent >= 0:
                out[parent].append(child)
        return out

    @cached_property
    def levels(self) -> list[list[int]]:
        """Variables by depth; within a level by parent, in the order of the level above."""
        out, front = [], np.flatnonzero(self.parent < 0).tolist()
        while front:
            out.append(front)
            front = [child for node in front for child in self.children[node]]
        return out

    @cached_property
    def sizes(self) -> Int64[np.ndarray, " d"]:
        """Number of variables in each one's subtree, itself included."""
        out = np.ones(len(self.parent), dtype=np.int64)
        for level in reversed(self.levels[1:]):
            np.add.at(out, self.parent[level], out[level])
        return out

    @cached_property
    def order(self) -> list[int]:
        """Depth first, at every variable the heavier subtree first and the variable itself last (section 3.2).

        This is the depth-first order of the vtree in which a variable joins the union of its subtrees from the right,
        and each subtree joins the union of the heavier ones from the right: its left part is always the heavier.
        """
        out: list[int] = []
        stack = [(self.root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                out.append(node)
                continue
            stack.append((node, True))
            stack += [(child, False) for child in reversed(self.heavier_first(node))]
        return out

    def heavier_first(self, node: int) -> list[int]:
        """A variable's children, the one with most variables below it first."""
        return sorted(self.children[node], key=lambda child: (-int(self.sizes[child]), child))


def chow_liu_tree(information: Float[Tensor, "d d"]) -> Tree:
    """The maximum spanning tree of pairwise mutual information, rooted at its centre."""
    d = information.shape[0]
    return Tree.from_edges(maximum_spanning_tree(information), d)


def _distances(
    edges: Int64[np.ndarray, "edges 2"], d: int, start: int
) -> tuple[Int64[np.ndarray, " d"], Int64[np.ndarray, " d"]]:
    """Distance of every node from `start` along the tree, and its predecessor (-1 at the start)."""
    neighbours: list[list[int]] = [[] for _ in range(d)]
    for a, b in edges.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    distance = np.full(d, -1, dtype=np.int64)
    parent = np.full(d, -1, dtype=np.int64)
    distance[start], front = 0, [start]
    while front:
        following = []
        for node in front:
            for other in neighbours[node]:
                if distance[other] < 0:
                    distance[other], parent[other] = distance[node] + 1, node
                    following.append(other)
        front = following
    if (distance < 0).any():
        raise ValueError("the edges do not join all variables")
    return distance, parent
