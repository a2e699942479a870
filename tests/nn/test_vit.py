import math

import pytest
import torch
from transformers import BeitConfig, BeitModel, ViTConfig, ViTModel

from encyclo.errors import InputError
from encyclo.nn.part import materialise, parameter_count
from encyclo.nn.vit import ViT, ViTBlocks


def copy_block(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Weights of a transformers layer: its matrices come in the order query, key, value, output, up, down."""
    q, k, v, out, up, down = (m for m in theirs.modules() if isinstance(m, torch.nn.Linear))
    ours.norm1.load_state_dict(theirs.layernorm_before.state_dict())
    ours.norm2.load_state_dict(theirs.layernorm_after.state_dict())
    ours.attn.qkv.weight.copy_(torch.cat((q.weight, k.weight, v.weight)))
    if ours.attn.qkv.bias is not None:
        ours.attn.qkv.bias.copy_(torch.cat((q.bias, k.bias, v.bias)))
    else:
        assert k.bias is None
        ours.attn.q_bias.copy_(q.bias)
        ours.attn.v_bias.copy_(v.bias)
    ours.attn.proj.load_state_dict(out.state_dict())
    ours.mlp.wi.load_state_dict(up.state_dict())
    ours.mlp.wo.load_state_dict(down.state_dict())


def layers_of(model: torch.nn.Module) -> torch.nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))


def copy_embeddings(ours: ViT, theirs: torch.nn.Module) -> None:
    ours.cls.copy_(theirs.cls_token)
    ours.positions.copy_(theirs.position_embeddings[0])
    ours.patch_embed.proj.load_state_dict(theirs.patch_embeddings.projection.state_dict())


def randomise(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


SIZES = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SMALL = {"image_size": 8, "patch": 4, "dim": 16, "positions": "learned"}


@torch.no_grad()
def test_it_is_the_vit_of_transformers() -> None:
    torch.manual_seed(0)
    theirs = ViTModel(ViTConfig(**SIZES, layer_norm_eps=1e-12), add_pooling_layer=False).eval()
    randomise(theirs)
    blocks = ViTBlocks.Config(depth=2, heads=2, eps=1e-12, mlp={"kind": "mlp", "ratio": 2.0})
    ours = ViT.Config(**SMALL, blocks=blocks).build().eval()
    for block, layer in zip(ours.blocks.blocks, layers_of(theirs), strict=True):
        copy_block(block, layer)
    ours.blocks.norm.load_state_dict(theirs.layernorm.state_dict())
    copy_embeddings(ours, theirs.embeddings)
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(ours(images), theirs(images).last_hidden_state, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_is_the_beit_of_transformers() -> None:
    torch.manual_seed(0)
    theirs = BeitModel(
        BeitConfig(
            **SIZES,
            layer_norm_eps=1e-6,
            layer_scale_init_value=0.1,
            use_absolute_position_embeddings=True,
            use_relative_position_bias=False,
            use_shared_relative_position_bias=False,
        ),
        add_pooling_layer=False,
    ).eval()
    randomise(theirs)
    blocks = ViTBlocks.Config(
        depth=2, heads=2, bias="qv", layer_scale=0.1, final_norm=False, mlp={"kind": "mlp", "ratio": 2.0}
    )
    ours = ViT.Config(**SMALL, blocks=blocks).build().eval()
    for block, layer in zip(ours.blocks.blocks, layers_of(theirs), strict=True):
        copy_block(block, layer)
        block.scale1.gamma.copy_(layer.lambda_1)
        block.scale2.gamma.copy_(layer.lambda_2)
    copy_embeddings(ours, theirs.embeddings)
    images = torch.randn(3, 3, 8, 8)
    expected = theirs(images, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=1e-5)


def small(**changes: object) -> ViT:
    return ViT.Config(
        image_size=8, patch=2, channels=1, dim=16, blocks=ViTBlocks.Config(depth=2, heads=2), **changes
    ).build()


def test_keeping_all_patches_in_any_order_is_the_same() -> None:
    torch.manual_seed(0)
    vit, images = small(), torch.randn(2, 1, 8, 8)
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    whole, shuffled = vit(images), vit(images, order)
    torch.testing.assert_close(shuffled[:, 0], whole[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        shuffled[:, 1:], whole[:, 1:].gather(1, order[..., None].expand(-1, -1, 16)), atol=1e-5, rtol=1e-5
    )


def test_patches_that_are_not_kept_are_not_seen() -> None:
    vit, images = small(), torch.randn(1, 1, 8, 8)
    changed = images.clone()
    changed[..., 4:, :] = 5.0  # patches 8..15
    keep = torch.arange(8)[None]
    assert torch.equal(vit(images, keep), vit(changed, keep))


def test_the_rate_of_drop_path_rises_over_the_blocks() -> None:
    blocks = ViTBlocks.Config(depth=3, heads=2, drop_path=0.2).build(dim=8)
    assert [block.drop_path.rate for block in blocks.blocks] == pytest.approx([0.0, 0.1, 0.2])


def test_weights_are_drawn_as_said() -> None:
    torch.manual_seed(0)
    xavier = ViTBlocks.Config(depth=1, heads=2).build(dim=128)
    bound = math.sqrt(6 / (128 + 3 * 128))
    assert float(xavier.blocks[0].attn.qkv.weight.abs().max()) == pytest.approx(bound, rel=0.01)
    normal = ViTBlocks.Config(depth=2, heads=2, init="trunc_normal").build(dim=128)
    assert float(normal.blocks[1].mlp.wo.weight.abs().max()) == pytest.approx(0.02, rel=0.01)
    rescaled = ViTBlocks.Config(depth=2, heads=2, init="trunc_normal_rescaled").build(dim=128)
    assert float(rescaled.blocks[0].mlp.wo.weight.abs().max()) == pytest.approx(0.02 / math.sqrt(2), rel=0.01)
    assert float(rescaled.blocks[1].attn.proj.weight.abs().max()) == pytest.approx(0.02 / 2, rel=0.01)
    assert float(rescaled.blocks[1].mlp.wi.weight.abs().max()) == pytest.approx(0.02, rel=0.01)


def test_a_part_built_on_meta_is_given_positions_and_weights() -> None:
    with torch.device("meta"):
        empty = small()
    torch.manual_seed(0)
    made = materialise(empty)
    assert torch.equal(made.positions, small().positions)
    assert torch.isfinite(made(torch.randn(1, 1, 8, 8))).all()
    assert float(made.blocks.blocks[0].attn.qkv.weight.abs().sum()) > 0


def test_the_published_base_size() -> None:
    with torch.device("meta"):
        base = ViT.Config(blocks=ViTBlocks.Config(bias="qv", layer_scale=0.1)).build()
    assert parameter_count(base) == 85_656_576


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="10x8"):
        small()(torch.zeros(1, 1, 10, 8))
    with pytest.raises(InputError, match="patches of 3"):
        ViT.Config(image_size=8, patch=3).build()
