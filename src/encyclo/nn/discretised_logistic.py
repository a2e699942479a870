"""Mixtures of discretised logistics: smooth distributions over ordered whole numbers, one for each variable."""

import math

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor, nn

from encyclo.nn.part import Part, PartConfig

__all__ = ["DiscretisedLogistics"]

RARE = 1e-5
"""Mass of a whole number below which its logarithm is taken from the density: differences of sigmoids lose digits."""
QUICK = 10.0
"""Logarithms of breadths and weights are stored divided by this: so they move as fast as they must at the learning
rates of the networks before them."""
FLOOR = 1e-7
"""Least probability in `table`, before rows are made to sum to 1."""


class DiscretisedLogistics(Part):
    """p(v) = sum_k pi_k [s((v + 1/2 - mu_k) / b_k) - s((v - 1/2 - mu_k) / b_k)], s the sigmoid, v in 0..values-1.

    The outermost values take the tails. Independent variables, each with its own mixture: the factorised prior of
    integer discrete flows (Hoogeboom et al. 2019, arXiv 1905.07376, section 3.2; the mixture of Salimans et al. 2017,
    arXiv 1701.05517, section 2.1).
    """

    class Config(PartConfig):
        """Size of the mixtures."""

        components: int = Field(5, ge=1, description="logistics in each variable's mixture")

    def __init__(self, config: Config, *, variables: int, values: int) -> None:
        super().__init__()
        self.config, self.values = config, values
        shape = (variables, config.components)
        self.weight = nn.Parameter(torch.empty(shape))
        self.mean = nn.Parameter(torch.empty(shape))
        self.log_scale = nn.Parameter(torch.empty(shape))
        self.init_own()

    @torch.no_grad()
    def init_own(self) -> None:
        """Equal weights; means spread over the alphabet, in units of it; breadths that let neighbours overlap."""
        k = self.config.components
        self.weight.zero_()
        self.mean.copy_(((torch.arange(k) + 0.5) / k).expand_as(self.mean))
        self.log_scale.fill_(math.log(0.25 / k) / QUICK)

    def forward(self, values: Float[Tensor, "n variables"]) -> Float[Tensor, "n variables"]:
        """ln p of each number, with gradients to the parameters and to the numbers (which may be relaxed)."""
        breadth = (QUICK * self.log_scale).exp() * self.values
        at = values[..., None] - self.mean * self.values
        high, low = (at + 0.5) / breadth, (at - 0.5) / breadth
        middle = at / breadth
        inside = torch.sigmoid(high) - torch.sigmoid(low)
        density = middle - breadth.log() - 2 * nn.functional.softplus(middle)
        found = torch.where(inside > RARE, inside.clamp(min=RARE).log(), density)
        found = torch.where(values[..., None] < 0.5, nn.functional.logsigmoid(high), found)
        found = torch.where(values[..., None] > self.values - 1.5, nn.functional.logsigmoid(-low), found)
        return torch.logsumexp(found + torch.log_softmax(QUICK * self.weight, -1), -1)

    @torch.no_grad()
    def table(self) -> Float64[Tensor, "variables values"]:
        """Probabilities of all values in float64; rows sum to 1 and nothing is impossible."""
        breadth = (QUICK * self.log_scale.double()).exp() * self.values
        edges = torch.arange(1, self.values, dtype=torch.float64, device=self.mean.device) - 0.5
        below = torch.sigmoid((edges - self.mean.double()[..., None] * self.values) / breadth[..., None])
        share = torch.softmax(QUICK * self.weight.double(), -1)[:, None]
        below = (share @ below)[:, 0]
        ends = torch.zeros_like(below[:, :1])
        rows = torch.cat([ends, below, ends + 1], 1).diff(dim=1).clamp_(min=0) + FLOOR
        return rows / rows.sum(1, keepdim=True)
