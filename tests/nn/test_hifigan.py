"""Encoder and generator: exact lengths, published counts, the normalised running sum, parity with transformers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from encyclo.nn.hifigan import HifiganEncoder, HifiganGenerator, ResidualBlock
from encyclo.nn.part import materialise, parameter_count
from encyclo.nn.weight_norm import fold_weight_norm, is_weight_normed, put_weight_norm

NARROW = {
    "rates": (5, 4, 4, 2),
    "kernels": (11, 8, 8, 4),
    "blocks": (ResidualBlock.Config(kernel=3, dilations=(1, 3)), ResidualBlock.Config(kernel=7, dilations=(1, 3))),
}
RATES = {
    "24k-320d": ((8, 5, 4, 2), (16, 11, 8, 4), 320),
    "24k-240d": ((8, 5, 3, 2), (16, 11, 7, 4), 240),
    "8k-160d": ((5, 4, 4, 2), (11, 8, 8, 4), 160),
}


def test_published_sizes() -> None:
    with torch.device("meta"):
        encoder, decoder = HifiganEncoder.Config().build(dim=512), HifiganGenerator.Config().build(dim=512)
    assert (parameter_count(encoder), parameter_count(decoder)) == (47_210_688, 15_343_233)
    put_weight_norm(encoder)
    put_weight_norm(decoder)
    assert (parameter_count(encoder), parameter_count(decoder)) == (47_228_960, 15_353_346)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("frames", [1, 2, 13])
def test_lengths_are_exact(name: str, frames: int) -> None:
    rates, kernels, hop = RATES[name]
    fields = {"rates": rates, "kernels": kernels, "blocks": (ResidualBlock.Config(dilations=(1,)),)}
    encoder = HifiganEncoder.Config(channels=4, group=4, **fields).build(dim=6)
    decoder = HifiganGenerator.Config(channels=32, **fields).build(dim=6)
    assert encoder.hop == decoder.config.hop == hop
    z = encoder(torch.randn(2, 1, frames * hop))
    assert z.shape == (2, 6, frames)
    assert decoder(z).shape == (2, 1, frames * hop)


def test_an_odd_kernel_margin_is_refused() -> None:
    with pytest.raises(ValidationError, match="must be even"):
        HifiganGenerator.Config(rates=(8, 5), kernels=(16, 10))
    with pytest.raises(ValidationError, match="2 rates for 1 kernels"):
        HifiganEncoder.Config(rates=(8, 5), kernels=(16,))


def test_residual_block_is_the_stated_chain() -> None:
    torch.manual_seed(0)
    block = ResidualBlock.Config(kernel=7, dilations=(1, 3)).build(channels=4)
    x = expected = torch.randn(2, 4, 30)
    for dilated, plain, d in zip(block.dilated, block.plain, (1, 3), strict=True):
        h = F.conv1d(F.leaky_relu(expected, 0.1), dilated.weight, dilated.bias, padding=3 * d, dilation=d)
        expected = expected + F.conv1d(F.leaky_relu(h, 0.1), plain.weight, plain.bias, padding=3)
    torch.testing.assert_close(block(x), expected)


def test_the_encoder_normalises_inside_the_sum_largest_kernel_first() -> None:
    torch.manual_seed(0)
    config = HifiganEncoder.Config(channels=8, group=8, rates=(4,), kernels=(8,), blocks=NARROW["blocks"])
    encoder = config.build(dim=5)
    with torch.no_grad():
        for norm in encoder.norms[0]:
            norm.weight.uniform_(0.5, 2.0)
    wave = torch.randn(2, 1, 40)
    h = encoder.downs[0](F.leaky_relu(encoder.first(wave), 0.1))
    blocks, norms = encoder.blocks[0], encoder.norms[0]
    assert [b.plain[0].kernel_size[0] for b in blocks] == [7, 3]
    assert norms[0].num_groups == 16 // 8
    assert norms[0].eps == 1e-6
    total = norms[1](norms[0](blocks[0](h)) + blocks[1](h))
    torch.testing.assert_close(encoder(wave), encoder.last(F.leaky_relu(total / 2, 0.01)))


def test_the_last_convolution_of_the_encoder_carries_no_weight_norm() -> None:
    encoder = put_weight_norm(HifiganEncoder.Config(channels=8, **NARROW).build(dim=4))
    assert not is_weight_normed(encoder.last)
    assert is_weight_normed(encoder.first)
    decoder = put_weight_norm(HifiganGenerator.Config(channels=32, **NARROW).build(dim=4))
    assert is_weight_normed(decoder.last)
    assert is_weight_normed(decoder.ups[0])


def test_weight_norm_changes_nothing_and_folds_back() -> None:
    torch.manual_seed(0)
    decoder = HifiganGenerator.Config(channels=32, init_std=None, **NARROW).build(dim=4)
    z = torch.randn(1, 4, 6)
    plain = decoder(z)
    names = set(decoder.state_dict())
    normed = put_weight_norm(copy.deepcopy(decoder))
    torch.testing.assert_close(normed(z), plain)
    up = normed.ups[0].parametrizations.weight
    assert up.original0.shape == (32, 1, 1)  # one gain per slice of the first dimension, transposed or not
    with torch.no_grad():
        up.original0.mul_(2.0)
    changed = normed(z)
    folded = fold_weight_norm(normed)
    assert set(folded.state_dict()) == names
    torch.testing.assert_close(folded(z), changed)
    torch.testing.assert_close(folded.ups[0].weight, 2 * decoder.ups[0].weight)


def test_initial_values() -> None:
    with torch.device("meta"):
        encoder = HifiganEncoder.Config(channels=8, **NARROW).build(dim=64)
    materialise(encoder)
    assert float(encoder.last.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert float(encoder.downs[3].weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert float(encoder.blocks[3][0].plain[0].weight.detach().std()) > 0.015  # torch's default


@pytest.mark.parametrize("frames", [40, 61])
def test_decoding_in_pieces_with_the_stated_context_is_exact(frames: int) -> None:
    torch.manual_seed(0)
    decoder = HifiganGenerator.Config(channels=32, init_std=None, **NARROW).build(dim=4).double().eval()
    z = torch.randn(1, 4, frames, dtype=torch.float64)
    whole, hop, c = decoder(z), 160, decoder.context
    begin, end = 18, 24
    low, high = max(0, begin - c), min(frames, end + c)
    piece = decoder(z[..., low:high])[..., (begin - low) * hop : (end - low) * hop]
    torch.testing.assert_close(piece, whole[..., begin * hop : end * hop], atol=1e-12, rtol=1e-10)


def test_encoding_in_pieces_is_exact_without_the_group_norm_only() -> None:
    torch.manual_seed(0)
    fields = {**NARROW, "blocks": (ResidualBlock.Config(kernel=3, dilations=(1, 3)),)}
    assert HifiganEncoder.Config(channels=8, **fields).build(dim=4).context is None
    encoder = HifiganEncoder.Config(channels=8, norm="none", init_std=None, **fields).build(dim=4).double()
    c = encoder.context
    assert c is not None
    wave = torch.randn(1, 1, 60 * 160, dtype=torch.float64)
    whole = encoder(wave)
    piece = encoder(wave[..., (25 - c) * 160 : (30 + c) * 160])[..., c : c + 5]
    torch.testing.assert_close(piece, whole[..., 25:30], atol=1e-12, rtol=1e-10)


def test_parity_with_transformers_hifigan() -> None:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(0)
    theirs = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=6,
            upsample_initial_channel=32,
            upsample_rates=[5, 4, 2],
            upsample_kernel_sizes=[11, 8, 4],
            normalize_before=False,
        )
    ).eval()
    ours = HifiganGenerator.Config(channels=32, rates=(5, 4, 2), kernels=(11, 8, 4), init_std=None).build(dim=6).eval()
    pairs = [
        (theirs.conv_pre, ours.first),
        (theirs.conv_post, ours.last),
        *zip(theirs.upsampler, ours.ups, strict=True),
    ]
    for block, mine in zip(theirs.resblocks, [b for stage in ours.blocks for b in stage], strict=True):
        pairs += [*zip(block.convs1, mine.dilated, strict=True), *zip(block.convs2, mine.plain, strict=True)]
    with torch.no_grad():
        for source, target in pairs:
            target.weight.copy_(torch.randn_like(target.weight) * 0.05)
            source.weight.copy_(target.weight)
            source.bias.copy_(target.bias)
        mel = torch.randn(2, 9, 6)
        torch.testing.assert_close(ours(mel.transpose(1, 2))[:, 0], theirs(mel))
