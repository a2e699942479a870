import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter

from encyclo.nn.feed_forward import FeedForward, Glu, Mlp, activate, hidden_width


def test_mlp_is_two_matrices_with_an_activation_between() -> None:
    layer = Mlp.Config(ratio=3).build(dim=4)
    x = torch.randn(2, 5, 4)
    hidden = F.gelu(x @ layer.wi.weight.T + layer.wi.bias)
    torch.testing.assert_close(layer(x), hidden @ layer.wo.weight.T + layer.wo.bias)
    assert layer.wi.weight.shape == (12, 4)


@pytest.mark.parametrize(
    ("kind", "gate"),
    [("geglu", F.gelu), ("swiglu", F.silu), ("reglu", F.relu), ("glu", torch.sigmoid), ("bilinear", lambda x: x)],
)
def test_glu_gates_the_second_half_by_the_first(kind: str, gate: object) -> None:
    layer = TypeAdapter(FeedForward).validate_python({"kind": kind, "hidden": 6}).build(dim=4, out_dim=3)
    x = torch.randn(7, 4)
    first, second = layer.wi.weight[:6], layer.wi.weight[6:]
    wanted = (gate(x @ first.T) * (x @ second.T)) @ layer.wo.weight.T + layer.wo.bias
    torch.testing.assert_close(layer(x), wanted)
    assert layer.wi.bias is None


def test_geglu_uses_the_exact_error_function() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    torch.testing.assert_close(activate(x, "gelu"), x * (1 + torch.erf(x / 2**0.5)) / 2)


def test_dropout_falls_in_training_only() -> None:
    layer = Glu.Config(hidden=64, dropout=0.5).build(dim=8)
    x = torch.randn(3, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_hidden_width_is_rounded_up() -> None:
    assert hidden_width(768, None, 8 / 3, 64) == 2048
    assert hidden_width(10, 7, 4.0) == 7
