"""Attention with linear biases: a penalty on distance in place of position embeddings (Press et al. 2022, arXiv
2108.12409)."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from encyclo.errors import InputError
from encyclo.nn.part import Part, PartConfig

LARGEST_TABLE = 2**32
"""Bytes that a table may take: 9,459 tokens with 12 heads."""


def alibi_slopes(heads: int) -> Float[Tensor, " heads"]:
    """The fixed slope of each head.

    For a power of two these are 2^(-8/H), 2^(-16/H), ..., 2^-8. For any other number they are the slopes of the largest
    power of two P below it, followed by the 1st, 3rd, 5th, ... slope of 2P.
    """
    power = 2 ** int(math.log2(heads))
    exponents = torch.arange(1, power + 1, dtype=torch.float64) * (-8 / power)
    more = torch.arange(1, 2 * power + 1, 2, dtype=torch.float64)[: heads - power] * (-4 / power)
    return (2.0 ** torch.cat([exponents, more])).float()


class Alibi(Part):
    """The symmetric bias -m_h |i - j| of an encoder, as a table that grows when a longer input arrives.

    Slopes and table are constants: never trained, never saved.

    Args:
        heads: number of attention heads H.
    """

    class Config(PartConfig):
        """The length to begin with."""

        kind: Literal["alibi"] = "alibi"
        starting_length: int = Field(512, ge=1, description="length for which the table is built at first")

    slopes: Tensor
    table: Tensor

    def __init__(self, config: Config, *, heads: int) -> None:
        super().__init__()
        self.config = config
        self.heads = heads
        self.register_buffer("slopes", torch.empty(heads), persistent=False)
        self.register_buffer(
            "table", torch.empty(heads, config.starting_length, config.starting_length), persistent=False
        )
        self.init_own()

    def init_own(self) -> None:
        """Slopes and table anew, of the present length."""
        with torch.no_grad():
            self.slopes.copy_(alibi_slopes(self.heads))
            self.table.copy_(self._bias(self.length))

    @property
    def length(self) -> int:
        """The longest input that the table holds now."""
        return self.table.shape[-1]

    def grow(self, length: int) -> bool:
        """Build the table anew if it is shorter than `length`; tells whether it was.

        Raises:
            InputError: a table larger than `LARGEST_TABLE`.
        """
        if length <= self.length:
            return False
        if 4 * self.heads * length**2 > LARGEST_TABLE:
            most = math.isqrt(LARGEST_TABLE // (4 * self.heads))
            raise InputError(f"a text of {length} tokens is too long, {most} is the most: cut it into parts")
        with torch.no_grad():
            self.table = self._bias(length).to(self.table)
        return True

    def forward(self, length: int) -> Float[Tensor, "heads length length"]:
        """The bias for inputs of up to `length` tokens, grown on demand."""
        self.grow(length)
        return self.table[:, :length, :length]

    def _bias(self, length: int) -> Float[Tensor, "heads length length"]:
        place = torch.arange(length, device=self.slopes.device, dtype=torch.float32)
        return -self.slopes.float()[:, None, None] * (place[:, None] - place).abs()
