"""Two halves are the whole, on every kind of decoder, with gradients where they belong."""

import pytest
import torch

from encyclo.errors import InputError
from encyclo.nn.split_decoder import SplitDecoder, StateCache, decoder_layers, head_inputs

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 50, "num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 4}
MODELS = {
    "llama": dict(**SMALL, intermediate_size=24, num_key_value_heads=2),
    "mistral": dict(**SMALL, intermediate_size=24, num_key_value_heads=2, sliding_window=4),
    "qwen2": dict(
        **SMALL,
        intermediate_size=24,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=3,
        max_window_layers=2,
    ),
    "gpt2": {"vocab_size": 50, "n_layer": 4, "n_embd": 16, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
    "gemma": dict(**SMALL, intermediate_size=24, num_key_value_heads=2, head_dim=4),
    "gpt_neox": dict(**SMALL, intermediate_size=24),
}


def small(kind):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **MODELS[kind])
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("upper", [1, 3, 4])
def test_halves_make_the_whole(kind, upper):
    model = small(kind)
    split = SplitDecoder(model, upper)
    ids = torch.randint(0, 50, (3, 9))
    expected = model(input_ids=ids, output_hidden_states=True)
    lower = split.lower(ids)
    assert torch.allclose(lower, expected.hidden_states[4 - upper], atol=1e-6)
    assert torch.allclose(split.upper(lower), expected.hidden_states[-1], atol=1e-5)
    assert torch.allclose(split.whole(ids), expected.hidden_states[-1], atol=1e-6)
    # and the model is left as it was
    assert torch.equal(model(input_ids=ids).logits, expected.logits)


def test_gradients_stay_above():
    model = small("llama")
    split = SplitDecoder(model, 2)
    split.upper(split.lower(torch.randint(0, 50, (2, 5)))).sum().backward()
    layers = decoder_layers(model)[1]
    assert [layer.mlp.up_proj.weight.grad is not None for layer in layers] == [False, False, True, True]


def test_too_many_layers_are_refused():
    with pytest.raises(InputError, match="4 layers"):
        SplitDecoder(small("llama"), 5)


def test_remembered_states_are_the_same_and_are_not_computed_twice(monkeypatch):
    model = small("llama")
    split = SplitDecoder(model, 2)
    cache = StateCache(split, 1)
    rows = [[1, 2, 3], [4], [5, 6, 7, 8], [4]]
    first = cache.lower(rows)
    assert first.shape == (4, 4, 16)
    for row, states in zip(rows, first, strict=True):
        assert torch.allclose(states[: len(row)], split.lower(torch.tensor([row]))[0], atol=1e-6)
        assert not states[len(row) :].any()
    monkeypatch.setattr(split, "lower", None)
    assert torch.equal(cache.lower(rows), first)
    assert torch.equal(cache.lower([[4]])[0, 0], first[1, 0])


def test_without_room_nothing_is_remembered():
    cache = StateCache(SplitDecoder(small("llama"), 2), 0)
    assert torch.equal(cache.lower([[1, 2]]), cache.lower([[1, 2]]))
    assert not cache._kept


def test_what_enters_the_head():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertForMaskedLM(config).eval()
    ids = torch.randint(0, 30, (2, 5))
    head = model.get_output_embeddings()
    states = head_inputs(model, input_ids=ids)
    assert torch.allclose(states @ head.weight.T + head.bias, model(input_ids=ids).logits, atol=1e-5)
    plain = small("llama")
    assert torch.allclose(plain.lm_head(head_inputs(plain, input_ids=ids)), plain(input_ids=ids).logits, atol=1e-5)
