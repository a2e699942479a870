"""SEANet: parity with transformers' EnCodec encoder and decoder, lengths."""

import pytest
import torch
from torch.nn.utils import parametrize

from encyclo.nn.seanet import SeanetDecoder, SeanetEncoder
from encyclo.nn.weight_norm import fold_weight_norm


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("samples", [640, 645])
def test_parity_with_transformers(causal: bool, samples: int) -> None:
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    theirs = EncodecModel(
        EncodecConfig(
            num_filters=4,
            upsampling_ratios=[5, 4, 2],
            hidden_size=8,
            codebook_dim=8,
            codebook_size=16,
            num_residual_layers=2,
            use_causal_conv=causal,
            target_bandwidths=[3.0],
        )
    ).eval()
    fold_weight_norm(theirs)
    assert not any(parametrize.is_parametrized(m) for m in theirs.modules())
    fields = {"rates": (5, 4, 2), "filters": 4, "residual_layers": 2, "causal": causal}
    encoder = SeanetEncoder.Config(**fields).build(dim=8).eval()
    decoder = SeanetDecoder.Config(**fields).build(dim=8).eval()
    encoder.load_state_dict(theirs.encoder.state_dict())
    decoder.load_state_dict(theirs.decoder.state_dict())
    wave = torch.randn(2, 1, samples)
    with torch.no_grad():
        z = encoder(wave)
        torch.testing.assert_close(z, theirs.encoder(wave))
        torch.testing.assert_close(decoder(z), theirs.decoder(z))
    assert z.shape[-1] == -(-samples // 40)
    assert encoder.hop == 40
    assert decoder(z).shape[-1] == z.shape[-1] * 40


def test_published_size() -> None:
    from transformers import EncodecConfig, EncodecModel

    with torch.device("meta"):
        theirs = EncodecModel(EncodecConfig())
        ours = [SeanetEncoder.Config().build(dim=128), SeanetDecoder.Config().build(dim=128)]
    gains = sum(p.numel() for n, p in theirs.named_parameters() if n.endswith("original0"))
    assert (
        sum(p.numel() for part in ours for p in part.parameters())
        == sum(p.numel() for p in theirs.parameters()) - gains
    )


def test_a_very_short_wave_is_padded() -> None:
    encoder = SeanetEncoder.Config(rates=(4,), filters=4).build(dim=4)
    assert encoder(torch.randn(1, 1, 3)).shape == (1, 4, 1)
