"""Ranking quality per query: nDCG, reciprocal rank, recall, average precision.

The definitions are trec_eval's: DCG is the sum of gain / log2(rank + 1), ranks from 1; nDCG divides it by the best
that the judgements allow. A query without relevant documents scores 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "Judgements",
    "RetrievalTask",
    "average_precision",
    "gains_at",
    "ndcg",
    "rank",
    "recall",
    "reciprocal_rank",
]


class Judgements(NamedTuple):
    """Which documents are right for which queries, as parallel lists of one entry a pair."""

    queries: Int[Tensor, " r"]
    documents: Int[Tensor, " r"]
    gains: Float[Tensor, " r"]
    """How relevant; above 0 counts as relevant."""

    @classmethod
    def single(cls, documents: Int[Tensor, " q"]) -> "Judgements":
        """One right document a query."""
        return cls(torch.arange(len(documents)), documents, torch.ones(len(documents)))


class RetrievalTask(NamedTuple):
    """Queries, a pool of documents, and which of them are right."""

    queries: list[str]
    documents: list[str]
    right: Judgements

    @classmethod
    def from_pairs(
        cls, queries: Sequence[str], documents: Sequence[str], *, most_queries: int, most_documents: int
    ) -> "RetrievalTask":
        """A task from pairs: a pool of the first pairs' documents, asked with the first queries.

        Equal documents stand in the pool once. Where a query has several documents in the pool, all are right.

        Args:
            queries, documents: pair i is right; give them in the order in which they are to be taken.
            most_queries: distinct queries to ask.
            most_documents: distinct documents in the pool.
        """
        pool: dict[str, int] = {}
        asked: dict[str, int] = {}
        for query, document in zip(queries, documents, strict=True):
            if document not in pool and len(pool) == most_documents:
                continue
            pool.setdefault(document, len(pool))
            if len(asked) < most_queries:
                asked.setdefault(query, len(asked))
        pairs = sorted(
            {
                (asked[query], pool[document])
                for query, document in zip(queries, documents, strict=True)
                if query in asked and document in pool
            }
        )
        right = Judgements(
            torch.tensor([q for q, _ in pairs], dtype=torch.int64),
            torch.tensor([d for _, d in pairs], dtype=torch.int64),
            torch.ones(len(pairs)),
        )
        return cls(list(asked), list(pool), right)


def rank(scores: Float[Tensor, "q d"], k: int | None = None) -> Int[Tensor, "q k"]:
    """Documents by falling score; among equals the earlier document comes first, so that ties are no luck."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order if k is None else order[:, :k]


def gains_at(ranked: Int[Tensor, "q k"], right: Judgements) -> Float[Tensor, "q k"]:
    """The gain found at each rank.

    Args:
        ranked: document numbers by rank; a negative number marks an empty place and gains nothing.
        right: the judgements.
    """
    if right.documents.numel() == 0 or ranked.numel() == 0:
        return torch.zeros(ranked.shape)
    span = int(max(int(ranked.max()), int(right.documents.max()))) + 1
    keys, order = (right.queries * span + right.documents).sort()
    wanted = torch.arange(ranked.shape[0]).unsqueeze(1) * span + ranked
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    found = (keys[place] == wanted) & (ranked >= 0)
    return right.gains[order][place].float() * found


def _discounts(k: int) -> Float[Tensor, " k"]:
    return 1.0 / torch.log2(torch.arange(2, k + 2, dtype=torch.float32))


def ndcg(ranked: Int[Tensor, "q n"], right: Judgements, k: int = 10) -> Float[Tensor, " q"]:
    """Normalised discounted cumulative gain at k, per query."""
    gains = gains_at(ranked[:, :k], right)
    found = (gains * _discounts(gains.shape[1])).sum(dim=1)
    best = torch.zeros(ranked.shape[0])
    # the best order: each query's gains falling; two stable sorts make (query, -gain)
    by_gain = right.gains.argsort(descending=True, stable=True)
    order = by_gain[right.queries[by_gain].argsort(stable=True)]
    queries, gain = right.queries[order], right.gains[order].float()
    first = torch.searchsorted(queries.contiguous(), queries.contiguous())
    place = torch.arange(len(queries)) - first
    kept = place < k
    best.index_add_(0, queries[kept], gain[kept] * _discounts(k)[place[kept]])
    return torch.where(best > 0, found / best.clamp(min=1e-12), 0.0)


def reciprocal_rank(ranked: Int[Tensor, "q n"], right: Judgements, k: int = 10) -> Float[Tensor, " q"]:
    """1 / rank of the first relevant document among the first k, 0 where there is none; its mean is MRR@k."""
    relevant = gains_at(ranked[:, :k], right) > 0
    first = relevant.float().argmax(dim=1)
    return torch.where(relevant.any(dim=1), 1.0 / (first + 1), 0.0)


def recall(ranked: Int[Tensor, "q n"], right: Judgements, k: int = 10) -> Float[Tensor, " q"]:
    """Share of a query's relevant documents among the first k."""
    found = (gains_at(ranked[:, :k], right) > 0).sum(dim=1)
    return found / _relevant(ranked.shape[0], right).clamp(min=1)


def average_precision(ranked: Int[Tensor, "q n"], right: Judgements, k: int | None = None) -> Float[Tensor, " q"]:
    """Mean over a query's relevant documents of the precision at their rank (0 for those not found)."""
    relevant = (gains_at(ranked if k is None else ranked[:, :k], right) > 0).float()
    precision = relevant.cumsum(dim=1) / torch.arange(1, relevant.shape[1] + 1)
    return (precision * relevant).sum(dim=1) / _relevant(ranked.shape[0], right).clamp(min=1)


def _relevant(queries: int, right: Judgements) -> Int[Tensor, " q"]:
    return torch.bincount(right.queries[right.gains > 0], minlength=queries)[:queries]
