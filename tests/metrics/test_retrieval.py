"""Ranking metrics against closed forms and against trec_eval."""

import math

import pytest
import torch

from encyclo.metrics.retrieval import (
    Judgements,
    RetrievalTask,
    average_precision,
    gains_at,
    ndcg,
    rank,
    recall,
    reciprocal_rank,
)


def test_one_relevant_document_at_rank_three():
    ranked = torch.tensor([[7, 4, 9, 1]])
    right = Judgements.single(torch.tensor([9]))
    assert gains_at(ranked, right).tolist() == [[0, 0, 1, 0]]
    assert ndcg(ranked, right).item() == pytest.approx(1 / math.log2(4))
    assert reciprocal_rank(ranked, right).item() == pytest.approx(1 / 3)
    assert average_precision(ranked, right).item() == pytest.approx(1 / 3)
    assert recall(ranked, right, k=2).item() == 0
    assert recall(ranked, right, k=3).item() == 1


def test_beyond_the_cut_nothing_counts():
    ranked = torch.arange(20).unsqueeze(0)
    right = Judgements.single(torch.tensor([10]))
    assert ndcg(ranked, right, k=10).item() == 0
    assert reciprocal_rank(ranked, right, k=10).item() == 0
    assert reciprocal_rank(ranked, right, k=11).item() == pytest.approx(1 / 11)


def test_empty_places_and_unjudged_queries_score_zero():
    ranked = torch.tensor([[-1, -1], [0, 1]])
    right = Judgements(torch.tensor([0]), torch.tensor([0]), torch.tensor([1.0]))
    for metric in (ndcg, reciprocal_rank, recall, average_precision):
        assert metric(ranked, right).tolist() == [0, 0]
    nothing = Judgements(torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long), torch.tensor([]))
    assert ndcg(ranked, nothing).tolist() == [0, 0]


def test_ties_go_to_the_earlier_document():
    assert rank(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), 3).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_equals_trec_eval(seed):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    generator = torch.Generator().manual_seed(seed)
    queries, documents = 12, 40
    scores = torch.randn(queries, documents, generator=generator)
    gains = torch.randint(0, 4, (queries, documents), generator=generator) * (
        torch.rand(queries, documents, generator=generator) < 0.2
    )
    gains[0] = 0
    q, d = gains.nonzero(as_tuple=True)
    right = Judgements(q, d, gains[q, d].float())
    run = {str(i): {str(j): float(scores[i, j]) for j in range(documents)} for i in range(queries)}
    judged = {str(i): {str(j): int(gains[i, j]) for j in range(documents)} for i in range(queries)}
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recip_rank", "recall.10", "map"})
    expected = evaluator.evaluate(run)
    ranked = rank(scores)
    ours = {
        "ndcg_cut_10": ndcg(ranked, right, 10),
        "recip_rank": reciprocal_rank(ranked, right, documents),
        "recall_10": recall(ranked, right, 10),
        "map": average_precision(ranked, right),
    }
    for name, values in ours.items():
        for i in range(queries):
            assert values[i].item() == pytest.approx(expected[str(i)][name], abs=1e-6), (name, i)


def test_a_task_from_pairs():
    queries = ["a", "b", "a", "c", "d"]
    documents = ["one", "two", "three", "one", "four"]
    task = RetrievalTask.from_pairs(queries, documents, most_queries=2, most_documents=3)
    assert task.queries == ["a", "b"]
    assert task.documents == ["one", "two", "three"]
    assert list(zip(task.right.queries.tolist(), task.right.documents.tolist(), strict=True)) == [
        (0, 0),
        (0, 2),
        (1, 1),
    ]
    small = RetrievalTask.from_pairs(queries, documents, most_queries=9, most_documents=2)
    assert small.queries == ["a", "b", "c"]  # d's document did not fit into the pool, so d is not asked
    assert small.documents == ["one", "two"]
