"""The three families: published sizes, shapes, foldings, the spectrogram, restart from `meta`."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from encyclo.nn.part import materialise, parameter_count
from encyclo.nn.wave_discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiStftDiscriminator,
    PeriodDiscriminator,
    ScaleDiscriminator,
    StftDiscriminator,
    WaveDiscriminators,
)

TINY = WaveDiscriminators.Config(
    period=MultiPeriodDiscriminator.Config(periods=(2, 3), each=PeriodDiscriminator.Config(channels=(4, 8))),
    scale=MultiScaleDiscriminator.Config(
        scales=3, each=ScaleDiscriminator.Config(layers=((8, 15, 1, 1), (8, 41, 2, 4), (8, 5, 1, 1)))
    ),
    stft=MultiStftDiscriminator.Config(n_ffts=(128, 64), each=StftDiscriminator.Config(filters=4)),
)


def test_published_sizes() -> None:
    with torch.device("meta"):
        families = WaveDiscriminators.Config().build().families
    counts = {name: parameter_count(family) for name, family in families.items()}
    assert counts == {"period": 41_105_770, "scale": 29_618_821, "stft": 472_490}


@pytest.mark.parametrize("samples", [400, 401, 1000])
def test_one_verdict_per_sub_discriminator(samples: int) -> None:
    verdicts = TINY.build()(torch.randn(2, 1, samples))
    assert len(verdicts) == 2 + 3 + 2
    for verdict in verdicts:
        assert verdict.score.shape[0] == 2
        assert verdict.features
        assert torch.isfinite(verdict.score).all()


def test_a_period_net_sees_samples_of_one_phase_only() -> None:
    torch.manual_seed(0)
    net = PeriodDiscriminator.Config(channels=(4, 8)).build(period=5).double()
    wave = torch.randn(1, 1, 200, dtype=torch.float64, requires_grad=True)
    score = net(wave).score.reshape(1, -1, 5)
    score[..., 2].sum().backward()
    assert wave.grad is not None
    touched = wave.grad[0, 0].reshape(-1, 5).abs().sum(0) > 0
    assert touched.tolist() == [False, False, True, False, False]


def test_scales_halve_by_average_pooling() -> None:
    net = TINY.build().families["scale"]
    lengths = [verdict.features[0].shape[-1] for verdict in net(torch.randn(1, 1, 400))]
    assert lengths == [400, 201, 101]  # pooled by 4 with stride 2 and padding 2


def test_the_complex_spectrogram_is_normalised_and_not_centred() -> None:
    net = StftDiscriminator.Config(filters=4).build(n_fft=64)
    time = torch.arange(640) / 64
    wave = torch.cos(2 * torch.pi * 8 * time)[None, None]
    z = net.spectrogram(wave)
    assert z.shape == (1, 2, (640 - 64) // 16 + 1, 33)
    power = z.square().sum(1)[0, 3]
    assert int(power.argmax()) == 8
    window = torch.hann_window(64)
    assert float(power[8]) == pytest.approx(float((window.sum() / 2) ** 2 / window.square().sum()), rel=1e-4)


def test_features_of_the_first_scale_are_spectrally_normed() -> None:
    families = TINY.build().families
    norms = [type(net.layers[0].parametrizations.weight[0]).__name__ for net in families["scale"].each]
    assert norms == ["_SpectralNorm", "_WeightNorm", "_WeightNorm"]


def test_builds_on_meta_and_is_materialised() -> None:
    with torch.device("meta"):
        built = TINY.build()
    made = materialise(built)
    verdicts = made(torch.randn(1, 1, 500))
    assert all(torch.isfinite(v.score).all() and v.score.abs().max() < 100 for v in verdicts)


def test_no_family_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no family"):
        WaveDiscriminators.Config(period=None, scale=None, stft=None).build()


@pytest.mark.parametrize(
    "make",
    [
        lambda: MultiPeriodDiscriminator.Config(periods=(2, 0)),
        lambda: MultiStftDiscriminator.Config(n_ffts=(130,)),
        lambda: ScaleDiscriminator.Config(layers=((8, 15, 0, 1),)),
        lambda: StftDiscriminator.Config(dilations=(-1,)),
    ],
)
def test_impossible_sizes_are_refused_by_the_configuration(make: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        make()
