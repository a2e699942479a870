"""Two halves are the whole, on every kind of decoder, with gradients where they belong."""

import pytest
import torch

from encyclo.errors import InputError
from encyclo.nn.split_decoder import SplitDecoder, decoder_layers

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
