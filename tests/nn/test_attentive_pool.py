import pytest
import torch

from encyclo.errors import InputError
from encyclo.nn.attention import CrossAttention
from encyclo.nn.attentive_pool import AttentivePool


def test_it_is_cross_attention_of_one_query() -> None:
    torch.manual_seed(0)
    pool = AttentivePool.Config(heads=2).build(dim=8)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    plain = CrossAttention.Config(heads=2, bias="qv").build(dim=8)
    plain.load_state_dict({name: pool.state_dict()[name] for name in plain.state_dict()})
    tokens = torch.randn(3, 6, 8)
    query = pool.norm_q(pool.query).expand(3, 1, 8)
    expected = plain(query, pool.norm_k(tokens), pool.norm_v(tokens))[:, 0]
    torch.testing.assert_close(pool(tokens), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pool.weights(tokens).sum(-1), torch.ones(3, 2))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match="heads=3"):
        AttentivePool.Config(heads=3).build(dim=8)
