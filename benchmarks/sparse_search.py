"""Exact sparse search beside numpy, scipy, Seismic, bm25s and Qdrant's local mode: latency with recall beside it.

    python benchmarks/sparse_search.py [--documents 100000] [--queries 200] [--out FILE.json]

Documents are synthetic but shaped like SPLADE's: about 100 terms each of a vocabulary of 30,522, drawn from one of 400
topics and from a background by Zipf's law; queries have 5 to 40 terms. All arms answer the same queries, one at a time,
on one thread, interleaved query by query in a random order, so that all meet the same load of the machine and the same
state of its caches. Recall is the share of the true ten best documents that an arm found.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.sparse import csr_matrix

from encyclo.errors import InputError
from encyclo.experiment import environment
from encyclo.search.exact import ExactIndex
from encyclo.search.qdrant import QdrantIndex
from encyclo.search.seismic import SeismicIndex
from encyclo.search.vectors import SparseVectors

VOCABULARY, TOPICS, K = 30_522, 400, 10
SEISMIC = ((5, 0.9), (8, 1.0), (10, 0.9), (20, 0.8))
"""Terms of a query that Seismic follows, and its heap factor."""


def synthetic(count: int, terms: tuple[int, int], seed: int) -> csr_matrix:
    """Rows of `terms` (low, high) draws: 70 % from the row's topic, the rest from a background by Zipf's law."""
    world = np.random.default_rng(0)
    topic_terms = world.integers(0, VOCABULARY, (TOPICS, 300))
    background = 1 / np.arange(1, VOCABULARY + 1) ** 0.7
    names = world.permutation(VOCABULARY)
    random = np.random.default_rng(seed)
    sizes = random.integers(terms[0], terms[1] + 1, count)
    rows = np.repeat(np.arange(count), sizes)
    topic = random.integers(0, TOPICS, count)
    inside = topic_terms[topic[rows], np.minimum(random.exponential(80, len(rows)).astype(int), 299)]
    outside = names[random.choice(VOCABULARY, len(rows), p=background / background.sum())]
    columns = np.where(random.random(len(rows)) < 0.7, inside, outside)
    weights = (random.gamma(2.0, 0.4, len(rows)) + 0.05).astype(np.float32)
    table = csr_matrix((weights, (rows, columns)), shape=(count, VOCABULARY))
    table.sum_duplicates()
    table.sort_indices()
    return table


def vectors(table: csr_matrix) -> SparseVectors:
    """The same rows as the library holds them."""
    return SparseVectors(
        torch.from_numpy(table.indptr.astype(np.int64)),
        torch.from_numpy(table.indices.astype(np.int32)),
        torch.from_numpy(table.data),
        table.shape[1],
    )


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """What is made, and the seconds it took."""
    began = time.perf_counter()
    made = make()
    return made, time.perf_counter() - began


class NumpyLists:
    """The plain way: one scatter-add a term, then a partial sort."""

    def __init__(self, table: csr_matrix) -> None:
        self.columns = table.tocsc()
        self.count = table.shape[0]

    def scores(self, terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
        scores = np.zeros(self.count, dtype=np.float32)
        starts, documents, values = self.columns.indptr, self.columns.indices, self.columns.data
        for term, weight in zip(terms, weights, strict=True):
            a, b = starts[term], starts[term + 1]
            scores[documents[a:b]] += weight * values[a:b]
        return scores

    def __call__(self, terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
        scores = self.scores(terms, weights)
        best = np.argpartition(scores, -K)[-K:]
        return best[np.argsort(-scores[best], kind="stable")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--qdrant", type=int, default=3_000, help="documents of the local-mode arm; 0: leave it out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/sparse_search.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)

    table, asked = synthetic(options.documents, (100, 140), 1), synthetic(options.queries, (5, 40), 2)
    rows, queries = vectors(table), vectors(asked)
    parts = [(asked.indices[a:b], asked.data[a:b]) for a, b in zip(asked.indptr[:-1], asked.indptr[1:], strict=True)]
    singles = [queries.take(torch.tensor([i])) for i in range(len(queries))]
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731

    builds: dict[str, float] = {}
    _, builds["scipy tocsc"] = timed(table.tocsc)
    plain, builds["numpy inverted lists"] = timed(lambda: NumpyLists(table))
    transposed, builds["scipy sparse x sparse"] = timed(lambda: table.T.tocsr())

    def exact(bits: int) -> ExactIndex:
        index = ExactIndex.Config(bits=bits).build(vocabulary=VOCABULARY)
        index.add(rows)
        return index

    ours, builds["exact"] = timed(lambda: exact(32))
    small, builds["exact, 8 bits"] = timed(lambda: exact(8))

    def scipy_best(i: int) -> np.ndarray:
        scores = (asked[i] @ transposed).toarray()[0]
        best = np.argpartition(scores, -K)[-K:]
        return best[np.argsort(-scores[best], kind="stable")]

    arms: dict[str, Callable[[int], Any]] = {
        "numpy inverted lists": lambda i: plain(*parts[i]),
        "scipy sparse x sparse": scipy_best,
        "exact": lambda i: ours.search(singles[i], K).documents[0],
        "exact, 8 bits": lambda i: small.search(singles[i], K).documents[0],
    }
    sizes = {"exact": ours.bytes, "exact, 8 bits": small.bytes}

    try:
        approximate = SeismicIndex.Config().build(vocabulary=VOCABULARY)
        approximate.add(rows)
        say("building Seismic (a minute or two) ...")
        _, builds["seismic"] = timed(approximate.build)
        numbers = [terms.astype(np.int32) for terms, _ in parts]
        for cut, heap in SEISMIC:
            through = SeismicIndex.Config(cut=cut, heap_factor=heap).build(vocabulary=VOCABULARY)
            through._index, through._count = approximate._index, approximate._count
            arms[f"seismic {cut}/{heap}, direct"] = lambda i, cut=cut, heap=heap: [
                document for _, document in approximate._index.search(numbers[i], parts[i][1], K, cut, heap, 0, True)
            ]
            arms[f"seismic {cut}/{heap}, encyclo"] = lambda i, index=through: index.search(singles[i], K).documents[0]
    except InputError:
        say("pyseismic-lsr is not installed: its arms are left out")

    truth = [set(plain(*part).tolist()) for part in parts]
    latencies: dict[str, list[float]] = {name: [] for name in arms}
    recalls = {
        name: float(np.mean([len(truth[i] & {int(d) for d in arm(i)}) / K for i in range(len(parts))]))
        for name, arm in arms.items()
    }
    off = 0.0  # the largest relative error of the exact index's scores
    for i, part in enumerate(parts):
        hits = ours.search(singles[i], K)
        right = np.sort(plain.scores(*part))[::-1][:K]
        error = float(np.abs(hits.scores[0].numpy() / right - 1).max())
        off = max(error, off) if error == error else float("nan")
    shuffled = np.random.default_rng(3)
    for turn in range(options.rounds):
        say(f"round {turn + 1} of {options.rounds}")
        for i in range(len(parts)):
            # in another order every time: an arm that follows one with the same lists finds them in the cache
            for name in shuffled.permutation(list(arms)).tolist():
                arm = arms[name]
                began = time.perf_counter()
                arm(i)
                latencies[name].append(time.perf_counter() - began)

    try:
        import bm25s

        # its documents are the same, each term written once a unit of weight; its scores are its own
        corpus = [
            np.repeat(table.indices[a:b], np.ceil(table.data[a:b]).astype(int)).tolist()
            for a, b in zip(table.indptr[:-1], table.indptr[1:], strict=True)
        ]
        words = bm25s.tokenization.Tokenized(ids=corpus, vocab={str(i): i for i in range(VOCABULARY)})
        library = bm25s.BM25()
        _, builds["bm25s (own scores)"] = timed(lambda: library.index(words, show_progress=False))
        latencies["bm25s (own scores)"] = []
        for terms, _ in parts:
            ids = terms.tolist()
            began = time.perf_counter()
            scores = library.get_scores_from_ids(ids)
            best = np.argpartition(scores, -K)[-K:]
            best[np.argsort(-scores[best])]
            latencies["bm25s (own scores)"].append(time.perf_counter() - began)
    except ImportError:
        say("bm25s is not installed: its arm is left out")

    if options.qdrant:
        try:
            few = rows.take(torch.arange(min(options.qdrant, len(rows))))
            local = QdrantIndex.Config().build(vocabulary=VOCABULARY)
            name = f"qdrant local mode, {len(few):,} documents"
            _, builds[name] = timed(lambda: local.add(few))
            same = ExactIndex.Config().build(vocabulary=VOCABULARY)
            same.add(few)
            beside = f"exact, {len(few):,} documents"
            latencies[name], latencies[beside] = [], []
            agree = []
            for one in singles[:30]:
                began = time.perf_counter()
                found = local.search(one, K)
                middle = time.perf_counter()
                expected = same.search(one, K)
                latencies[name].append(middle - began)
                latencies[beside].append(time.perf_counter() - middle)
                agree.append(len({*found.documents[0].tolist()} & {*expected.documents[0].tolist()}) / K)
            recalls[name], recalls[beside] = float(np.mean(agree)), 1.0
        except ValueError as error:
            say(str(error))

    def middle(name: str) -> float:
        return float(np.median(latencies[name]))

    table_out = {
        name: {
            "build_seconds": builds.get(name, builds.get(name.split(" ")[0])),
            "p50_ms": 1e3 * middle(name),
            "p99_ms": 1e3 * float(np.percentile(values, 99)),
            "recall@10": recalls.get(name),
            "bytes": sizes.get(name),
        }
        for name, values in latencies.items()
    }
    ratios = {
        "exact / numpy, p50": middle("exact") / middle("numpy inverted lists"),
        "exact build / tocsc": builds["exact"] / builds["scipy tocsc"],
    }
    for cut, heap in SEISMIC:
        direct, through_us = f"seismic {cut}/{heap}, direct", f"seismic {cut}/{heap}, encyclo"
        if direct in latencies:
            ratios[f"numpy / seismic {cut}/{heap}, p50"] = middle("numpy inverted lists") / middle(through_us)
            ratios[f"exact / seismic {cut}/{heap}, p50"] = middle("exact") / middle(through_us)
            ratios[f"seismic {cut}/{heap}: encyclo / direct, p50"] = middle(through_us) / middle(direct)
    for name in latencies:
        if name.startswith("qdrant"):
            ratios["qdrant local mode / exact at equal documents, p50"] = middle(name) / middle(beside)
    record = {
        "documents": options.documents,
        "queries": options.queries,
        "rounds": options.rounds,
        "entries_a_document": table.nnz / options.documents,
        "terms_a_query": asked.nnz / options.queries,
        "postings_a_query": float(np.mean([np.diff(plain.columns.indptr)[terms].sum() for terms, _ in parts])),
        "arms": table_out,
        "exact_score_error": off,
        "ratios": ratios,
        "environment": environment(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, row in table_out.items():
        recall = "-" if row["recall@10"] is None else f"{row['recall@10']:.4f}"
        print(f"{name:40s} p50 {row['p50_ms']:8.3f} ms  p99 {row['p99_ms']:8.3f} ms  recall@10 {recall}")
    for name, value in ratios.items():
        print(f"{name:52s} {value:.3f}")
    print(f"{'largest relative error of exact scores':52s} {off:.1e}")


if __name__ == "__main__":
    main()
