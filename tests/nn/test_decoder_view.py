"""Watching and replacing the MLPs of decoders of many families, and refusing to trace what would not add up."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from encyclo.errors import InputError
from encyclo.nn.decoder_view import DecoderView

SIZE: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 32,
}  # fmt: skip
GROUPED = {**SIZE, "num_key_value_heads": 2, "pad_token_id": 0}
EXACT: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(**GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "phi3": lambda: transformers.Phi3Config(**GROUPED),
    "starcoder2": lambda: transformers.Starcoder2Config(**GROUPED),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=50, n_embd=24, n_layer=3, n_head=4, n_positions=32),
    "neox": lambda: transformers.GPTNeoXConfig(**SIZE),
    "neox one after the other": lambda: transformers.GPTNeoXConfig(**SIZE, use_parallel_residual=False),
}
WATCHED: dict[str, Any] = {
    "gemma": lambda: transformers.GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, head_dim=8),
    "phi": lambda: transformers.PhiConfig(**{**SIZE, "hidden_size": 32}),
    "bloom": lambda: transformers.BloomConfig(vocab_size=50, hidden_size=24, n_layer=3, n_head=4),
}


def made(config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that are not trivial
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def ids() -> torch.Tensor:
    return torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", [*EXACT, *WATCHED])
@torch.no_grad()
def test_mlps_are_found_watched_and_replaced(family: str) -> None:
    model = made({**EXACT, **WATCHED}[family]())
    view = DecoderView(model)
    assert view.exact == (family in EXACT)
    assert len(view.layers) == 3
    plain = model(input_ids=ids()).logits
    inputs, outputs = view.harvest(ids(), [1])[1]
    assert inputs.shape == outputs.shape == (2, 9, model.config.hidden_size)
    again: list[torch.Tensor] = []
    with view.replaced({1: lambda x, y: again.append(x) or y}):
        torch.testing.assert_close(model(input_ids=ids()).logits, plain)
    torch.testing.assert_close(again[0], inputs)  # stopping early changes nothing
    with view.replaced({1: lambda x, y: torch.zeros_like(y)}):
        assert not torch.allclose(model(input_ids=ids()).logits, plain)
    torch.testing.assert_close(model(input_ids=ids()).logits, plain)


@pytest.mark.parametrize("family", list(EXACT))
@torch.no_grad()
def test_a_traced_stream_is_the_sum_of_its_parts(family: str) -> None:
    view = DecoderView(made(EXACT[family]()))
    trace = view.trace(ids()[0])
    torch.testing.assert_close(
        trace.embedding + trace.attention_out.sum(0) + trace.mlp_out.sum(0), trace.final, rtol=1e-4, atol=1e-5
    )
    layer = view.layers[1]
    torch.testing.assert_close(
        layer.attend(trace.patterns[1], layer.norm_in.module(trace.before[1])),
        trace.attention_out[1],
        rtol=1e-4,
        atol=1e-5,
    )
    short = view.trace(ids()[0], 2)
    torch.testing.assert_close(short.mlp_out, trace.mlp_out[:2])
    assert short.logits.numel() == 0


@pytest.mark.parametrize("family", [*EXACT, "gemma"])
@torch.no_grad()
def test_a_norm_is_linear_with_its_scale_held(family: str) -> None:
    view = DecoderView(made({**EXACT, **WATCHED}[family]()))
    norm, x, u = view.layers[1].norm_mlp, torch.randn(5, 24), torch.randn(24)
    expected = norm.module(x) @ u
    torch.testing.assert_close((norm.pull(u, x) * x).sum(1) + norm.bias_term(u), expected, rtol=1e-3, atol=1e-3)


def test_blocks_that_are_more_than_a_sum_are_refused() -> None:
    scaled = DecoderView(made(transformers.GraniteConfig(**GROUPED, residual_multiplier=0.5)))
    with pytest.raises(InputError, match="would not add up"):
        scaled.trace(ids()[0])
    with pytest.raises(InputError, match="not known"):
        DecoderView(made(WATCHED["gemma"]())).trace(ids()[0])
    with pytest.raises(InputError, match="no MLPs are found"):
        DecoderView(made(transformers.MambaConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2, state_size=4)))
