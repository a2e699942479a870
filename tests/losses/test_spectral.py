"""Spectral losses: zero at equality, the published weighting, differentiable at silence."""

import pytest
import torch
from pydantic import ValidationError

from encyclo.losses.spectral import MelLoss, StftLoss
from encyclo.tokens.mel import LogMel


def test_zero_for_equal_waves_and_positive_otherwise() -> None:
    wave = 0.1 * torch.randn(2, 4000)
    for loss in (MelLoss.Config().build(), StftLoss.Config().build()):
        assert float(loss(wave, wave)) == 0
        assert float(loss(wave, 0.5 * wave)) > 0


def test_halving_the_wave_costs_ln_two_at_each_weight() -> None:
    wave = 0.1 * torch.randn(1, 8000)
    config = MelLoss.Config(
        weights=(45.0, 1.0), resolutions=(LogMel.Config(bands=20), LogMel.Config(n_fft=512, hop=120, bands=10))
    )
    value = float(config.build()(wave, wave / 2))
    assert value == pytest.approx(46 * 0.6931, rel=1e-3)


def test_published_weights() -> None:
    config = MelLoss.Config()
    assert config.weights == (45.0, 1.0, 1.0)
    assert [(front.n_fft, front.hop, front.bands) for front in config.resolutions] == [
        (1024, 240, 80),
        (512, 120, 80),
        (256, 60, 80),
    ]
    with pytest.raises(ValidationError, match="2 weights for 3"):
        MelLoss.Config(weights=(1.0, 1.0))


def test_gradient_is_finite_at_silence() -> None:
    wave = torch.zeros(1, 4000, requires_grad=True)
    for loss in (MelLoss.Config().build(), StftLoss.Config().build()):
        (gradient,) = torch.autograd.grad(loss(0.1 * torch.randn(1, 4000), wave), wave)
        assert torch.isfinite(gradient).all()
