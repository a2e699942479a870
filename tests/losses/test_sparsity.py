"""The penalties against hand-computed values and sentence-transformers; the ramp."""

import pytest
import torch

from encyclo.losses.sparsity import Sparsity, active, flops, l1, quadratic_ramp

WEIGHTS = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])


def test_by_hand():
    assert flops(WEIGHTS).item() == 2.0**2 + 0 + 1.0**2
    assert l1(WEIGHTS).item() == 3.0
    assert active(WEIGHTS).item() == 1.5


def test_flops_prefers_terms_that_texts_do_not_share():
    shared = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert l1(shared) == l1(apart)
    assert flops(shared).item() == 1.0
    assert flops(apart).item() == 0.5


def test_flops_is_that_of_sentence_transformers():
    losses = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
    torch.manual_seed(0)
    weights = torch.rand(6, 50)
    theirs = losses.FlopsLoss(model=None).compute_loss_from_embeddings(weights)
    assert flops(weights).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_ramp_rises_as_a_square_to_one():
    assert [quadratic_ramp(step, 4) for step in (0, 1, 2, 3, 4, 9)] == [0, 1 / 16, 1 / 4, 9 / 16, 1, 1]
    assert quadratic_ramp(0, 0) == 1


@pytest.mark.parametrize(("kind", "query", "document"), [("flops", 5.0, 5.0), ("l1", 3.0, 3.0)])
def test_both_sides_at_half_the_ramp(kind, query, document):
    part = Sparsity.Config(kind=kind, query=0.1, document=0.01, ramp=10).build()
    assert part(WEIGHTS, WEIGHTS, 0).item() == 0
    assert part(WEIGHTS, WEIGHTS, 5).item() == pytest.approx(0.25 * (0.1 * query + 0.01 * document))
    assert part(WEIGHTS, WEIGHTS, 50).item() == pytest.approx(0.1 * query + 0.01 * document)
