"""Adversarial objectives on the outputs of any set of discriminators, and feature matching."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from encyclo.config import Config
from encyclo.nn.discriminator import Verdict

__all__ = ["Adversarial", "Hinge", "LeastSquares", "NonSaturating", "feature_matching"]


class LeastSquares(Config):
    """LSGAN (Mao et al. 2017, arXiv 1611.04076): real to 1, fake to 0."""

    kind: Literal["least-squares"] = "least-squares"

    def discriminator(self, real: Sequence[Verdict], fake: Sequence[Verdict]) -> Float[Tensor, ""]:
        """sum over sub-discriminators of mean (1 - D(x))^2 + mean D(y)^2."""
        return _total(
            [(1 - r.score).square().mean() + f.score.square().mean() for r, f in zip(real, fake, strict=True)]
        )

    def generator(self, fake: Sequence[Verdict]) -> Float[Tensor, ""]:
        """sum over sub-discriminators of mean (1 - D(y))^2."""
        return _total([(1 - f.score).square().mean() for f in fake])


class Hinge(Config):
    """Hinge loss (Lim & Ye 2017, arXiv 1705.02894)."""

    kind: Literal["hinge"] = "hinge"

    def discriminator(self, real: Sequence[Verdict], fake: Sequence[Verdict]) -> Float[Tensor, ""]:
        """sum over sub-discriminators of mean max(0, 1 - D(x)) + mean max(0, 1 + D(y))."""
        return _total(
            [F.relu(1 - r.score).mean() + F.relu(1 + f.score).mean() for r, f in zip(real, fake, strict=True)]
        )

    def generator(self, fake: Sequence[Verdict]) -> Float[Tensor, ""]:
        """sum over sub-discriminators of mean -D(y)."""
        return _total([-f.score.mean() for f in fake])


class NonSaturating(Config):
    """The original game (Goodfellow et al. 2014) with the non-saturating generator loss; scores are logits."""

    kind: Literal["non-saturating"] = "non-saturating"

    def discriminator(self, real: Sequence[Verdict], fake: Sequence[Verdict]) -> Float[Tensor, ""]:
        """sum over sub-discriminators of mean softplus(-D(x)) + mean softplus(D(y))."""
        return _total(
            [F.softplus(-r.score).mean() + F.softplus(f.score).mean() for r, f in zip(real, fake, strict=True)]
        )

    def generator(self, fake: Sequence[Verdict]) -> Float[Tensor, ""]:
        """sum over sub-discriminators of mean softplus(-D(y))."""
        return _total([F.softplus(-f.score).mean() for f in fake])


Adversarial = Annotated[LeastSquares | Hinge | NonSaturating, Field(discriminator="kind")]


def feature_matching(real: Sequence[Verdict], fake: Sequence[Verdict], *, relative: bool = False) -> Float[Tensor, ""]:
    """sum over sub-discriminators and layers of mean |f(x) - f(y)| (Larsen et al. 2016; HiFi-GAN eq. 8).

    Args:
        real, fake: verdicts on the same batch; no gradient reaches the real side.
        relative: divide each term by mean |f(x)| (EnCodec), so that no layer dominates by its scale.
    """
    terms = []
    for r, f in zip(real, fake, strict=True):
        for x, y in zip(r.features, f.features, strict=True):
            term = F.l1_loss(y, x.detach())
            terms.append(term / x.detach().abs().mean().clamp(min=1e-8) if relative else term)
    return _total(terms)


def _total(terms: list[Tensor]) -> Float[Tensor, ""]:
    return torch.stack([term.float() for term in terms]).sum()
