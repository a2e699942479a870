"""A learnable factor per channel on a residual branch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encyclo.nn.part import Part, PartConfig

__all__ = ["LayerScale"]


class LayerScale(Part):
    """y = gamma * x with one gamma a channel, small at first (Touvron et al. 2021, arXiv 2103.17239, eq. 3)."""

    class Config(PartConfig):
        """The first value of every factor."""

        init: float = 1e-5

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.init_own()

    def init_own(self) -> None:
        """All factors at `init`."""
        nn.init.constant_(self.gamma, self.config.init)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Scale the channels."""
        return x * self.gamma
