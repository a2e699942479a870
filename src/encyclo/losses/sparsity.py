"""Penalties that make representations sparse, and the ramp that lets them in."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from encyclo.nn.part import Part, PartConfig

__all__ = ["Sparsity", "active", "flops", "l1", "quadratic_ramp"]


def flops(weights: Float[Tensor, "n v"]) -> Float[Tensor, ""]:
    """FLOPS penalty (Paria et al. 2020, eq. 4): sum_j ((1/n) sum_i |w_ij|)^2.

    It smooths the number of products that scoring one text against another costs, and so presses hardest on terms that
    many texts share.
    """
    return weights.float().abs().mean(dim=0).square().sum()


def l1(weights: Float[Tensor, "n v"]) -> Float[Tensor, ""]:
    """Mean over texts of the sum of absolute weights."""
    return weights.float().abs().sum(dim=1).mean()


def quadratic_ramp(step: int, steps: int) -> float:
    """Factor of a penalty at a step (counted from 0): (step / steps)^2, and 1 from `steps` on."""
    return 1.0 if step >= steps else (step / steps) ** 2


class Sparsity(Part):
    """lambda_q R(Q) + lambda_d R(D), both let in quadratically over the first steps (SPLADE, section 3.2)."""

    class Config(PartConfig):
        """Strength per side, form and ramp."""

        kind: Literal["flops", "l1"] = "flops"
        query: float = Field(1e-3, ge=0)
        document: float = Field(1e-3, ge=0)
        ramp: int = Field(0, ge=0, description="steps until the full strength is reached; 0: at once")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, query: Float[Tensor, "n v"], document: Float[Tensor, "m v"], step: int) -> Float[Tensor, ""]:
        """The weighted penalty at a step."""
        penalty = flops if self.config.kind == "flops" else l1
        strength = quadratic_ramp(step, self.config.ramp)
        total: Tensor = strength * (self.config.query * penalty(query) + self.config.document * penalty(document))
        return total


def active(weights: Float[Tensor, "n v"]) -> Float[Tensor, ""]:
    """Mean number of non-zero entries of a text."""
    return torch.count_nonzero(weights, dim=1).float().mean()
