import pytest
import torch
from torch import nn

from encyclo.nn.latent_regressor import LatentRegressor, RegressorBlock
from encyclo.nn.part import parameter_count


def inputs(batch: int = 2, visible: int = 5, hidden: int = 3, dim: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(1)
    shapes = ((batch, visible, dim), (batch, visible, dim), (batch, hidden, dim))
    return [torch.randn(*shape) for shape in shapes]


@pytest.mark.parametrize("after", [True, False])
def test_a_block_is_its_equation(after: bool) -> None:
    torch.manual_seed(0)
    block = RegressorBlock.Config(heads=2, bias="qv", layer_scale=0.3, residual_after_norm=after).build(dim=8)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    q, source = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    p_q, p_k = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    a = q + block.scale1.gamma * block.attn(block.norm_q(q + p_q), block.norm_k(source + p_k), block.norm_v(source))
    b = block.norm2(a)
    expected = (b if after else a) + block.scale2.gamma * block.mlp(b)
    torch.testing.assert_close(block(q, source, p_q, p_k), expected)


def test_the_stack_feeds_queries_back_and_leaves_visible_latents_alone() -> None:
    regressor = LatentRegressor.Config(depth=2, heads=2, layer_scale=0.5).build(dim=8)
    visible, p_v, p_h = inputs()
    kept = visible.clone()
    query = regressor.mask_token.expand(2, 3, 8)
    for block in regressor.blocks:
        query = block(query, torch.cat((visible, query), 1), p_h, torch.cat((p_v, p_h), 1))
    torch.testing.assert_close(regressor(visible, p_v, p_h), regressor.norm(query))
    assert torch.equal(visible, kept)


def test_the_order_of_patches_does_not_matter() -> None:
    regressor = LatentRegressor.Config(depth=2, heads=2, layer_scale=0.5).build(dim=8)
    visible, p_v, p_h = inputs()
    out = regressor(visible, p_v, p_h)
    by_visible, by_hidden = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([2, 0, 1])
    shuffled = regressor(visible[:, by_visible], p_v[:, by_visible], p_h[:, by_hidden])
    torch.testing.assert_close(shuffled, out[:, by_hidden], atol=1e-5, rtol=1e-5)


def test_queries_at_one_place_get_one_answer() -> None:
    regressor = LatentRegressor.Config(depth=1, heads=2, layer_scale=0.5).build(dim=8)
    visible, p_v, p_h = inputs()
    same = p_h[:, :1].expand(-1, 3, -1)
    out = regressor(visible, p_v, same)
    torch.testing.assert_close(out[:, 0], out[:, 2])


def test_the_published_base_size() -> None:
    with torch.device("meta"):
        base = LatentRegressor.Config(layer_scale=0.1).build(dim=768)
    assert parameter_count(base) == pytest.approx(28.37e6, rel=1e-3)
