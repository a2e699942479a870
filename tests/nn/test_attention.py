import pytest
import torch
from torch import nn

from encyclo.errors import InputError
from encyclo.nn.attention import CrossAttention, SelfAttention


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None = None):
    """Attention written out, for projected q, k, v [b, n, d]."""
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    scores = split(q) @ split(k).transpose(-1, -2) / (q.shape[-1] // heads) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ split(v)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("bias", ["all", "qv", "none"])
def test_self_attention_is_its_formula(bias: str) -> None:
    torch.manual_seed(0)
    layer = SelfAttention.Config(heads=2, bias=bias).build(dim=8)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(3, 5, 8)
    q, k, v = (x @ w.T for w in layer.qkv.weight.chunk(3))
    if bias == "all":
        q, k, v = (value + b for value, b in zip((q, k, v), layer.qkv.bias.chunk(3), strict=True))
    if bias == "qv":
        q, v = q + layer.q_bias, v + layer.v_bias
    torch.testing.assert_close(layer(x), layer.proj(reference(q, k, v, 2)))


def test_masks_and_causality_hide_keys() -> None:
    torch.manual_seed(0)
    layer = SelfAttention.Config(heads=2).build(dim=8)
    x = torch.randn(1, 4, 8)
    lower = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(layer(x, causal=True), layer(x, mask=lower))
    additive = torch.zeros(1, 1, 4, 4).masked_fill(~lower, -torch.inf)
    torch.testing.assert_close(layer(x, mask=additive), layer(x, mask=lower))
    changed = x.clone()
    changed[:, -1] = 0
    torch.testing.assert_close(layer(changed, causal=True)[:, :3], layer(x, causal=True)[:, :3])


def test_the_bias_of_a_key_changes_nothing() -> None:
    torch.manual_seed(0)
    layer = SelfAttention.Config(heads=2, bias="all").build(dim=8)
    x = torch.randn(1, 4, 8)
    before = layer(x)
    with torch.no_grad():
        layer.qkv.bias[8:16] += 3.0
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("bias", ["all", "qv", "none"])
def test_cross_attention_is_its_formula(bias: str) -> None:
    torch.manual_seed(0)
    layer = CrossAttention.Config(heads=2, bias=bias, head_dim=3).build(dim=8, source_dim=4)
    query, key, value = torch.randn(2, 5, 8), torch.randn(2, 7, 4), torch.randn(2, 7, 4)
    expected = layer.proj(reference(layer.q(query), layer.k(key), layer.v(value), 2))
    torch.testing.assert_close(layer(query, key, value), expected)
    assert (layer.k.bias is None) == (bias != "all")
    assert (layer.q.bias is None) == (bias == "none")


def test_cross_attention_agrees_with_torch() -> None:
    torch.manual_seed(0)
    ours = CrossAttention.Config(heads=4).build(dim=16)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((ours.q.weight, ours.k.weight, ours.v.weight)))
        theirs.in_proj_bias.copy_(torch.cat((ours.q.bias, ours.k.bias, ours.v.bias)))
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    query, key = torch.randn(2, 3, 16), torch.randn(2, 6, 16)
    torch.testing.assert_close(ours(query, key), theirs(query, key, key)[0])


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="heads=3"):
        SelfAttention.Config(heads=3).build(dim=8)
