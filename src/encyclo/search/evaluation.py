"""How well sparse vectors find what they should: tasks made of pairs, ranked by the exact index, and what smaller
vectors cost."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from encyclo.config import Config
from encyclo.errors import InputError
from encyclo.metrics.retrieval import RetrievalTask, ndcg, reciprocal_rank
from encyclo.search.exact import ExactIndex
from encyclo.search.hits import Hits
from encyclo.search.vectors import SparseVectors

if TYPE_CHECKING:
    from encyclo.data import Splits

__all__ = ["Evaluation", "exact_hits", "exact_index", "judge", "products", "pruning_table", "sample_task", "sharpness"]


class Evaluation(Config):
    """What a retriever is asked: held-out pairs, and a second set that nothing was trained on."""

    queries: int = 200
    documents: int = 800
    query_tokens: int = 32
    document_tokens: int = 128
    query_terms: int = 128
    """Terms kept of a query, so that no arm wins by being dense."""
    document_terms: int = 256
    zero_shot: str | None = None
    """A further set of pairs, as for `encyclo.data.load`."""
    zero_shot_queries: int = 100
    zero_shot_documents: int = 400
    zero_shot_words: int = 16
    """Words that every arm sees of a document of the further set."""

    def tasks(self, data: "Splits") -> dict[str, RetrievalTask]:
        """By prefix of its metrics: the held-out pairs, and the further set where there is one."""
        from encyclo.data import load

        made = {"": sample_task(data.test, self.queries, self.documents)}
        if self.zero_shot is not None:
            further = load(self.zero_shot, "pair")
            made["zero_shot_"] = sample_task(
                further.test, self.zero_shot_queries, self.zero_shot_documents, self.zero_shot_words
            )
        return made

    def capped(self, queries: SparseVectors, documents: SparseVectors) -> tuple[SparseVectors, SparseVectors]:
        """Both sides cut to the terms that count."""
        return queries.top(self.query_terms), documents.top(self.document_terms)


def sample_task(rows: Any, queries: int, documents: int, words: int | None = None) -> RetrievalTask:
    """A task of pairs in a fixed random order, because neighbours in a set are often about the same thing.

    Args:
        rows: a table with the columns `query` and `document`.
        queries, documents: most of each.
        words: keep so many words of a document; None keeps all.

    Raises:
        InputError: no pairs.
    """
    count = len(rows)
    if count == 0:
        raise InputError("there are no held-out pairs to evaluate on: give more pairs, or a folder with a test split")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()[: 4 * (queries + documents)]
    chosen = rows.select(order)
    texts = [" ".join(text.split()[:words]) for text in chosen["document"]]
    return RetrievalTask.from_pairs(chosen["query"], texts, most_queries=queries, most_documents=documents)


def exact_index(vectors: SparseVectors, bits: Literal[8, 32] = 32) -> ExactIndex:
    """An exact index over some documents."""
    index = ExactIndex.Config(bits=bits).build(vocabulary=vectors.vocabulary)
    index.add(vectors)
    return index


def exact_hits(queries: SparseVectors, documents: SparseVectors, k: int = 10) -> Hits:
    """The k best documents of each query, by inverted lists."""
    return exact_index(documents).search(queries, k)


def judge(hits: Hits, task: RetrievalTask) -> tuple[Float[Tensor, " q"], dict[str, float]]:
    """nDCG@10 of each query, and the means of nDCG@10 and MRR@10."""
    each = ndcg(hits.documents, task.right)
    return each, {
        "ndcg@10": float(each.mean()),
        "mrr@10": float(reciprocal_rank(hits.documents, task.right).mean()),
    }


def sharpness(queries: SparseVectors, documents: SparseVectors, task: RetrievalTask) -> list[tuple[float, float]]:
    """The sparsity-quality curve: (mean terms kept of a document, nDCG@10), both sides cut to the same number."""
    points = []
    for k in (4, 8, 16, 32, 64, 128, 256):
        kept = documents.top(k)
        points.append((float(kept.sizes.float().mean()), judge(exact_hits(queries.top(k), kept), task)[1]["ndcg@10"]))
    return points


def products(queries: SparseVectors, documents: SparseVectors) -> float:
    """Expected multiplications to score one document for one query: sum over terms of p(query) * p(document)."""
    return float((queries.probabilities() * documents.probabilities()).sum())


def pruning_table(queries: SparseVectors, documents: SparseVectors, task: RetrievalTask) -> list[dict[str, Any]]:
    """Quality and size for top-k terms, thresholds and 8-bit weights of documents; queries stay whole."""
    settings: dict[str, Callable[[SparseVectors], SparseVectors]] = {"all": lambda v: v}
    settings |= {f"top {k}": (lambda v, k=k: v.top(k)) for k in (256, 128, 64, 32, 16)}
    settings |= {f"above {t:g}": (lambda v, t=t: v.above(t)) for t in (0.1, 0.3, 1.0)}
    settings |= {"8 bits": lambda v: v.eight_bit(), "top 64, 8 bits": lambda v: v.top(64).eight_bit()}
    rows = []
    for name, smaller in settings.items():
        kept = smaller(documents)
        rows.append(
            {
                "documents": name,
                **{key: round(value, 4) for key, value in judge(exact_hits(queries, kept), task)[1].items()},
                "active_document": round(float(kept.sizes.float().mean()), 1),
                "flops": round(products(queries, kept), 3),
                "index_bytes": exact_index(kept, 8 if "8 bits" in name else 32).bytes,
            }
        )
    return rows
