"""ConvNeXt against the block of transformers, and HNeRV's encoder by its count."""

import pytest
import torch

from encyclo.nn.convnext import ChannelNorm, ConvNeXt, ConvNeXtBlock
from encyclo.nn.part import materialise, parameter_count


def test_the_block_equals_transformers() -> None:
    modeling = pytest.importorskip("transformers.models.convnext.modeling_convnext")
    from transformers import ConvNextConfig

    theirs = modeling.ConvNextLayer(ConvNextConfig(layer_scale_init_value=0.3), dim=6).eval()
    ours = ConvNeXtBlock.Config().build(dim=6)
    names = {
        "depthwise": "dwconv",
        "norm": "layernorm",
        "expand": "pwconv1",
        "project": "pwconv2",
        "scale.gamma": "layer_scale_parameter",
    }
    state = theirs.state_dict()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            key = next(new + name.removeprefix(old) for old, new in names.items() if name.startswith(old))
            state[key].normal_(std=0.3)
            parameter.copy_(state[key])
    theirs.load_state_dict(state)
    x = torch.randn(2, 6, 9, 11)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(ours(last), theirs(x), atol=1e-5)


def test_the_backbone_equals_transformers() -> None:
    from transformers import ConvNextConfig, ConvNextModel

    theirs = ConvNextModel(ConvNextConfig(depths=[1, 2, 1, 1], hidden_sizes=[4, 6, 8, 10])).eval()
    ours = ConvNeXt.Config(depths=(1, 2, 1, 1), dims=(4, 6, 8, 10)).build()

    def blockwise(key: str) -> bool:
        return ".layers." in key

    theirs_down = [v for k, v in theirs.state_dict().items() if "downsampling" in k or "embeddings" in k]
    theirs_blocks = [v for k, v in theirs.state_dict().items() if blockwise(k)]
    ours_down = [
        p
        for k, p in ours.named_parameters()
        if not any(part in k for part in ("depthwise", "expand", "project", "gamma")) and ".norm." not in k
    ]
    assert sum(v.numel() for v in theirs_down) == sum(p.numel() for p in ours_down)
    assert sum(v.numel() for v in theirs_blocks) + sum(v.numel() for v in theirs_down) == parameter_count(ours)


def test_hnervs_encoder_has_its_published_size() -> None:
    config = ConvNeXt.Config(strides=(5, 4, 4, 2, 2), depths=(1,) * 5, dims=(64, 64, 64, 64, 16))
    with torch.device("meta"):
        encoder = config.build()
    assert parameter_count(encoder) == 306_160
    assert parameter_count(ConvNeXt.Config().build()) == 27_818_592  # ConvNeXt-T without its final norm and classifier


def test_each_stage_shrinks_by_its_stride() -> None:
    encoder = ConvNeXt.Config(strides=(5, 2, 2), depths=(1, 0, 2), dims=(8, 6, 4)).build()
    assert encoder(torch.randn(2, 3, 40, 60)).shape == (2, 4, 2, 3)


def test_the_channel_norm_is_a_layer_norm_at_each_place() -> None:
    norm, x = ChannelNorm(5, eps=1e-6), torch.randn(2, 5, 3, 4)
    out = norm(x)
    assert torch.allclose(out.mean(1), torch.zeros(2, 3, 4), atol=1e-6)
    assert torch.allclose(out.var(1, unbiased=False), torch.ones(2, 3, 4), atol=1e-3)


def test_initial_values_also_from_meta() -> None:
    config = ConvNeXt.Config(strides=(4, 2), depths=(1, 1), dims=(32, 32))
    with torch.device("meta"):
        part = config.build()
    for encoder in (config.build(), materialise(part)):
        assert isinstance(encoder, ConvNeXt)
        for name, p in encoder.named_parameters():
            if name.endswith("gamma"):
                assert bool((p == 1e-6).all())
            elif p.ndim > 1:
                assert float(p.std()) == pytest.approx(0.02, rel=0.3) and float(p.abs().max()) <= 2
            elif "norm" not in name and p.ndim == 1 and not name.endswith("weight"):
                assert not p.any()


def test_wrong_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="give one of each a stage"):
        ConvNeXt.Config(strides=(4, 2))
    with pytest.raises(ValueError, match="even"):
        ConvNeXtBlock.Config(kernel=4)
