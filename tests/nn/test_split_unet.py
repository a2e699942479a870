import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from encyclo.errors import InputError
from encyclo.nn.split_unet import SplitUNet


def plain_unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=4,
    ).eval()


def text_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


@torch.no_grad()
def test_the_two_halves_make_the_whole() -> None:
    unet, x, labels = plain_unet(), torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    split = SplitUNet(unet)
    whole = unet(x, 7, class_labels=labels).sample
    halves = split.decode(split.encode(x, 7, {"class_labels": labels}), 7, {"class_labels": labels})
    torch.testing.assert_close(halves, whole, rtol=0, atol=0)
    torch.testing.assert_close(unet(x, 7, class_labels=labels).sample, whole, rtol=0, atol=0)  # it is left as it was


@torch.no_grad()
def test_text_conditions_and_odd_sizes() -> None:
    unet, x, text = text_unet(), torch.randn(2, 4, 9, 7), torch.randn(2, 5, 12)
    split = SplitUNet(unet)
    told = {"encoder_hidden_states": text}
    whole = unet(x, 11, **told).sample
    torch.testing.assert_close(split.decode(split.encode(x, 11, told), 11, told), whole, rtol=0, atol=0)


@torch.no_grad()
def test_residuals_of_a_controlnet_are_added_once() -> None:
    unet, x, text = text_unet(), torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    split = SplitUNet(unet)
    outputs = split.encode(x, 3, {"encoder_hidden_states": text}).outputs
    skips = (outputs[0], *outputs[1][1], *outputs[2][1])
    told = {
        "encoder_hidden_states": text,
        "down_block_additional_residuals": tuple(torch.randn_like(s) for s in skips),
        "mid_block_additional_residual": torch.randn_like(outputs[-1]),
    }
    whole = unet(x, 3, **told).sample
    torch.testing.assert_close(split.decode(split.encode(x, 3, told), 3, told), whole, rtol=0, atol=0)


@torch.no_grad()
def test_several_steps_are_decoded_at_once_each_with_its_own_time() -> None:
    unet, x, text = text_unet(), torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    split, told = SplitUNet(unet), {"encoder_hidden_states": torch.randn(2, 5, 12)}
    told["encoder_hidden_states"] = text
    features = split.encode(x, 40, told)
    together = split.decode(features, torch.tensor([40, 30, 20]), told)
    alone = torch.cat([split.decode(features, t, told) for t in (40, 30, 20)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[:2], together[2:4]), "the decoder must see its own time step"


@torch.no_grad()
def test_the_decoder_sees_the_latent_only_through_the_features() -> None:
    unet = plain_unet()
    split, told = SplitUNet(unet), {"class_labels": torch.tensor([1, 2])}
    features = split.encode(torch.randn(2, 3, 8, 8), 9, told)
    before = split.decode(features, 5, told)
    features.sample.fill_(float("nan"))
    torch.testing.assert_close(split.decode(features, 5, told), before, rtol=0, atol=0)


def test_a_network_without_halves_is_refused() -> None:
    with pytest.raises(InputError, match="has no 'conv_in'"):
        SplitUNet(nn.Linear(2, 2))
