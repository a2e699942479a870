"""Stochastic depth."""

from jaxtyping import Float
from torch import Tensor, nn

from encyclo.errors import InputError

__all__ = ["DropPath", "drop_path_rates"]


class DropPath(nn.Module):
    """Drop a residual branch for whole samples (Huang et al. 2016, arXiv 1603.09382).

    In training each sample's branch is zeroed with probability `rate` and otherwise divided by 1 - rate, so that its
    expectation is unchanged; in evaluation it passes untouched.

    Raises:
        InputError: a rate outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError(f"drop_path={rate}: give a probability in [0, 1)")
        self.rate = rate

    def forward(self, branch: Float[Tensor, "b *rest"]) -> Float[Tensor, "b *rest"]:
        """The branch with some samples zeroed."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        """The rate, in print."""
        return f"rate={self.rate:g}"


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates that rise linearly over the blocks from 0 to `last`."""
    return [last * block / (depth - 1) if depth > 1 else 0.0 for block in range(depth)]
