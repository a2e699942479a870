"""Conditional distributions over many ordered values from few counts: shared bins behind each row of counts."""

import torch
from jaxtyping import Float, Int, Int64, UInt8
from pydantic import Field
from torch import Tensor

from encyclo.nn.part import Part, PartConfig

__all__ = ["Backoff", "equal_mass_bins"]


def equal_mass_bins(histogram: Float[Tensor, " values"], bins: int) -> Int64[Tensor, " values"]:
    """The bin of each value: runs of neighbouring values of about equal mass; a value that outweighs a bin has its own.

    The lowest value, which most pixels of most drawings have, is always alone.
    """
    share = (histogram / histogram.sum()).tolist()
    fair = sum(share[1:]) / max(bins - 1, 1)
    out, now, filled = [], 0, 0.0
    for value, mass in enumerate(share):
        if value == 1 or (value > 1 and filled + mass / 2 >= fair):
            now, filled = now + 1, 0.0
        out.append(now)
        filled += mass
    return torch.tensor(out)


class Backoff(Part):
    """Counts -> probabilities, each row backed off to a row that shares what neighbouring values have in common.

    A row n of counts becomes (n + weight s) / (sum(n) + weight), where s is coarse: s(v) = b(bin of v) w(v), with b the
    row's own counts by bin (and `own` counts of the variable's whole histogram), w the share of v within its bin over
    all variables. With 256 values and 4,000 images most cells of n are empty; none of s is. Interpolation with a
    coarser model is Jelinek & Mercer 1980, with a pseudo-count for its weight.
    """

    class Config(PartConfig):
        """How strongly rows are backed off; chosen on validation data."""

        bins: int = Field(16, ge=2, description="bins of about equal mass; at least as many as values: one each")
        weight: float = Field(64.0, gt=0, description="pseudo-count of the shared row, for each row")
        own: float = Field(1.0, gt=0, description="pseudo-count of the variable's histogram in the row's bins")

    def __init__(self, config: Config, *, variables: int, values: int) -> None:
        super().__init__()
        self.config = config
        self.bin_of: Tensor
        self.within: Tensor
        self.histograms: Tensor
        self.register_buffer("bin_of", torch.zeros(values, dtype=torch.int64), persistent=False)
        self.register_buffer("within", torch.full((values,), 1 / values), persistent=False)
        self.register_buffer("histograms", torch.ones(variables, 1), persistent=False)

    def learn(self, data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"]) -> None:
        """Take bins, shares within bins and the variables' histograms from training data."""
        values = len(self.within)
        counts = torch.zeros(data.shape[1], values, device=data.device)
        counts.scatter_add_(1, data.T.long(), torch.ones((), device=data.device).expand(data.T.shape))
        total = counts.sum(0)
        bins = torch.arange(values) if values <= self.config.bins else equal_mass_bins(total.cpu(), self.config.bins)
        self.bin_of = bins.to(data.device)
        count = int(bins.max()) + 1
        smooth = total + 0.5  # values that were never seen keep a share
        self.within = smooth / self._binned(smooth[None], count)[0][self.bin_of]
        overall = self._binned(smooth[None], count) / smooth.sum()
        self.histograms = (self._binned(counts, count) + overall) / (len(data) + 1)

    def _binned(self, rows: Float[Tensor, "*n values"], count: int) -> Float[Tensor, "*n bins"]:
        member = torch.nn.functional.one_hot(self.bin_of.long(), count).to(rows.dtype)
        return rows @ member

    def forward(self, counts: Float[Tensor, "d rows values"]) -> Float[Tensor, "d rows values"]:
        """Probabilities of the values for each row; rows sum to 1.

        Args:
            counts: of the values (last), by variable, in the order of the variables given to `learn`.
        """
        config, n = self.config, self.histograms.shape[1]
        coarse = self._binned(counts, n) + config.own * self.histograms[:, None]
        coarse = coarse / coarse.sum(-1, keepdim=True)
        shared = coarse[..., self.bin_of] * (config.weight * self.within)
        rows = shared.add_(counts)
        return rows.div_(rows.sum(-1, keepdim=True))
