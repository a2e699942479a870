"""What every discriminator says, so that one adversarial loss serves waves, images and videos."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Verdict"]


class Verdict(NamedTuple):
    """What one (sub-)discriminator says of a batch."""

    score: Tensor
    """One number per judged place, of any shape [b, ...]."""
    features: list[Tensor]
    """Outputs of its hidden layers, for feature matching."""
