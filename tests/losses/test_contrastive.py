"""InfoNCE: closed forms, false negatives, parity with a plain loop."""

import math

import pytest
import torch

from encyclo.losses.contrastive import InfoNCE, info_nce, same_text


def test_equal_scores_cost_the_logarithm_of_the_number_of_documents():
    assert info_nce(torch.zeros(4, 4)).item() == pytest.approx(math.log(4))
    assert info_nce(torch.zeros(4, 7)).item() == pytest.approx(math.log(7))


def test_by_hand_with_a_hard_negative_and_a_temperature():
    query, document, negative = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    loss = InfoNCE.Config(temperature=0.5).build()(query, document, negative)
    assert loss.item() == pytest.approx(-math.log(math.exp(6) / (math.exp(6) + math.exp(4))), rel=1e-5)


def test_a_perfect_margin_costs_nothing_and_a_single_pair_too():
    assert info_nce(torch.eye(5) * 1000).item() == pytest.approx(0, abs=1e-6)
    assert info_nce(torch.tensor([[3.0]])).item() == 0


def test_the_same_document_twice_is_no_negative():
    scores = torch.tensor([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    ignore = same_text(["a", "a", "b"], ["a", "a", "b"])
    assert ignore.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    expected = (2 * -math.log(math.exp(2) / (math.exp(2) + 1)) - math.log(math.e / (math.e + 2))) / 3
    assert info_nce(scores, ignore=ignore).item() == pytest.approx(expected, rel=1e-5)


def test_same_as_sentence_transformers():
    losses = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
    from sentence_transformers.util import dot_score

    torch.manual_seed(0)
    query, document, negative = torch.rand(5, 9), torch.rand(5, 9), torch.rand(5, 9)
    theirs = losses.SparseMultipleNegativesRankingLoss(model=None, scale=1.0, similarity_fct=dot_score)
    expected = theirs.compute_loss_from_embeddings([query, document, negative], None)
    assert InfoNCE.Config().build()(query, document, negative).item() == pytest.approx(expected.item(), rel=1e-5)
