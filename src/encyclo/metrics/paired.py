"""Two systems on the same items: the mean difference and its standard error."""

import math
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

__all__ = ["Difference", "paired_difference"]


class Difference(NamedTuple):
    """Mean of a paired difference and its standard error."""

    mean: float
    error: float

    @property
    def ratio(self) -> float:
        """The mean in standard errors; 0 where all pairs are equal."""
        if self.error == 0:
            return 0.0 if self.mean == 0 else math.copysign(math.inf, self.mean)
        return self.mean / self.error


def paired_difference(ours: Float[Tensor, " n"], theirs: Float[Tensor, " n"]) -> Difference:
    """Mean of ours - theirs over the same items, with the standard error of that mean."""
    difference = ours.double() - theirs.double()
    return Difference(float(difference.mean()), float(difference.std() / math.sqrt(len(difference))))
