"""Trees over the variables themselves: the plain Chow-Liu tree, and independent variables as its least case."""

import torch
from jaxtyping import Float, Int, Int64, UInt8
from pydantic import Field
from torch import Tensor, nn

from encyclo.nn.backoff import Backoff, equal_mass_bins
from encyclo.nn.chow_liu import Tree
from encyclo.nn.part import Part, PartConfig

__all__ = ["ObservedTree"]


class ObservedTree(Part):
    """p(x) = p(x_root) prod_i p(x_i | bin of x_parent(i)), tables by counting (Chow & Liu 1968).

    With one parent bin the variables are independent. Rows are backed off as the hidden tree's are.
    """

    class Config(PartConfig):
        """Size and smoothing of the tables."""

        parent_bins: int = Field(16, ge=1, description="bins of the parent's value; 1: independent variables")
        backoff: Backoff.Config = Backoff.Config()

    def __init__(self, config: Config, *, tree: Tree, values: int) -> None:
        super().__init__()
        self.config = config
        d, bins = len(tree), min(config.parent_bins, values)
        self.table = nn.Parameter(torch.full((d, bins, values), 1 / values), requires_grad=False)
        self.bin_of: Tensor
        self.parent: Tensor
        self.register_buffer("bin_of", torch.zeros(values, dtype=torch.int64))
        self.register_buffer("parent", torch.from_numpy(tree.parent.copy()))
        self.backoff = config.backoff.build(variables=d, values=values)

    def learn(self, data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"]) -> None:
        """Count the tables on training data."""
        d, bins, values = self.table.shape
        histogram = torch.bincount(data.flatten().long(), minlength=values).float()
        if bins == values:
            self.bin_of.copy_(torch.arange(values))
        elif bins > 1:
            self.bin_of.copy_(equal_mass_bins(histogram.cpu(), bins).clamp(max=bins - 1))
        self.backoff.learn(data)
        rows = self._rows(data) * values + data.T.long()
        counts = torch.zeros(d, bins * values, device=data.device)
        counts.scatter_add_(1, rows, torch.ones((), device=data.device).expand(rows.shape))
        self.table.copy_(self.backoff(counts.view(d, bins, values)))

    def _rows(self, data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"]) -> Int64[Tensor, "d n"]:
        """The parent's bin of each variable in each sample; the root's is 0."""
        rows = self.bin_of[data.long()].T[self.parent.clamp(min=0)]
        return torch.where(self.parent[:, None] < 0, 0, rows)

    def log_likelihood(self, data: Int[Tensor, "n d"] | UInt8[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """ln p of each sample, in nats."""
        d, bins, values = self.table.shape
        rows = self._rows(data) * values + data.T.long()
        return self.table.view(d, bins * values).gather(1, rows).double().log().sum(0)
