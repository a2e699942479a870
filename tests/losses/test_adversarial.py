"""Adversarial losses against closed forms; feature matching."""

import math

import pytest
import torch

from encyclo.losses.adversarial import Hinge, LeastSquares, NonSaturating, feature_matching
from encyclo.nn.discriminator import Verdict


def verdicts(*scores: float) -> list[Verdict]:
    return [Verdict(torch.full((2, 3), score), [torch.full((2, 4), score)]) for score in scores]


def test_least_squares() -> None:
    loss = LeastSquares()
    assert float(loss.discriminator(verdicts(1.0, 0.5), verdicts(0.0, -2.0))) == pytest.approx(0 + 0.25 + 0 + 4)
    assert float(loss.generator(verdicts(1.0, -1.0))) == pytest.approx(0 + 4)


def test_hinge() -> None:
    loss = Hinge()
    assert float(loss.discriminator(verdicts(2.0, 0.5), verdicts(-2.0, 0.0))) == pytest.approx(0 + 0.5 + 0 + 1)
    assert float(loss.generator(verdicts(2.0, -0.5))) == pytest.approx(-1.5)


def test_non_saturating() -> None:
    loss = NonSaturating()
    softplus = math.log1p(math.exp(-2.0))
    assert float(loss.discriminator(verdicts(2.0), verdicts(-2.0))) == pytest.approx(2 * softplus)
    assert float(loss.generator(verdicts(2.0))) == pytest.approx(softplus)


def test_feature_matching_sums_over_layers_and_nets_and_spares_the_real_side() -> None:
    real = [Verdict(torch.zeros(1), [torch.ones(2, 3, requires_grad=True), 4 * torch.ones(5)])]
    fake = [Verdict(torch.zeros(1), [torch.zeros(2, 3, requires_grad=True), 2 * torch.ones(5)])]
    loss = feature_matching(real, fake)
    assert float(loss.detach()) == pytest.approx(1 + 2)
    loss.backward()
    assert real[0].features[0].grad is None
    assert fake[0].features[0].grad is not None
    assert float(feature_matching(real, fake, relative=True).detach()) == pytest.approx(1 + 0.5)
