"""What a loss function hands to the trainer."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Loss(NamedTuple):
    """A mean together with how many items it is the mean of.

    The trainer averages losses of micro-batches and processes by `weight` (masked tokens, say), so that a step is the
    same however its batch was split.
    """

    value: Float[Tensor, ""]
    weight: Float[Tensor, ""] | float = 1.0
    logs: Mapping[str, Tensor | float] = {}
