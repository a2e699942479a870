import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from encyclo.metrics.substitution import (
    gap_at_equal_sparsity,
    pareto_picture,
    recovered,
    reference_losses,
    stand_in,
    substituted_loss,
)
from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.sparse_dictionary import SparseDictionary


def view() -> DecoderView:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return DecoderView(LlamaForCausalLM(config).eval())


def test_the_loss_of_the_model_is_that_of_the_library() -> None:
    model, ids = view(), torch.randint(0, 30, (3, 12))
    logits = model.model(input_ids=ids).logits[:, 1:-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 2:].flatten())
    assert substituted_loss(model, ids, {}, batch=2) == pytest.approx(float(expected), rel=1e-5)


def test_a_perfect_substitute_costs_nothing_and_zeroing_is_the_reference() -> None:
    model, ids = view(), torch.randint(0, 30, (3, 12))
    references = reference_losses(model, ids, [0, 1])
    same = substituted_loss(model, ids, {0: lambda x, y: y})
    assert same == pytest.approx(references["ce_model"], rel=1e-6)
    assert recovered(references["ce_model"], references) == pytest.approx(100.0) or math.isnan(recovered(1, references))
    assert recovered(1.5, {"ce_model": 1.0, "ce_zero": 2.0}) == pytest.approx(50.0)
    assert math.isnan(recovered(1.0, {"ce_model": 2.0, "ce_zero": 1.0}))


@torch.no_grad()
def test_a_dictionary_stands_in_for_all_but_the_first_position() -> None:
    dictionary: SparseDictionary = SparseDictionary.Config(expansion=2).build(dim=4)
    x, y = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    made = stand_in(dictionary)(x, y)
    torch.testing.assert_close(made[:, 0], y[:, 0])
    torch.testing.assert_close(made[:, 1:], dictionary(x[:, 1:]))
    torch.testing.assert_close(stand_in(dictionary, autoencode=True)(x, y)[:, 1:], dictionary(y[:, 1:]))


def test_curves_are_compared_at_equal_sparsity_only() -> None:
    ours, theirs = [(10.0, 3.1), (100.0, 3.0)], [(20.0, 3.2), (200.0, 3.1)]
    told = gap_at_equal_sparsity(ours, theirs)
    assert (told["shared_l0_low"], told["shared_l0_high"]) == (pytest.approx(20), pytest.approx(100))
    # both fall by 0.1 per decade, and theirs stands higher by 0.1 + 0.1 log10(2)
    assert told["gap"] == pytest.approx(-(0.1 + 0.1 * math.log10(2)), rel=1e-6)
    assert told["worst_gap"] == pytest.approx(told["gap"])
    assert all(math.isnan(v) for v in gap_at_equal_sparsity(ours, [(200.0, 3.0), (900.0, 2.9)]).values())
    assert all(math.isnan(v) for v in gap_at_equal_sparsity(ours, [(20.0, 3.0)]).values())
    assert pareto_picture({"a": ours, "b": theirs}, 2.9).content.startswith(b"<?xml")
