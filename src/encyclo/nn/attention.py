"""Dense multi-head attention, within a sequence and across two."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from encyclo.errors import InputError
from encyclo.nn.part import Part, PartConfig

__all__ = ["CrossAttention", "SelfAttention"]

Bias = Literal["all", "qv", "none"]
"""Which of query, key and value have a bias. A key's bias changes no attention weight, so BEiT and CAE leave it out."""


class SelfAttention(Part):
    """Multi-head scaled dot-product attention of a sequence with itself (Vaswani et al. 2017, section 3.2.2).

    The projections of query, key and value are one matrix [3 * heads * head_dim, dim], in this order.
    """

    class Config(PartConfig):
        """Heads, their width, and which projections have biases."""

        heads: int = 12
        head_dim: int | None = None
        """None: dim / heads."""
        bias: Bias = "all"
        out_bias: bool = True
        dropout: float = 0.0
        """Of the attention weights, in training."""

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        self.inner = config.heads * _head_dim(config.heads, config.head_dim, dim)
        self.qkv = nn.Linear(dim, 3 * self.inner, bias=config.bias == "all")
        if config.bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(self.inner))
            self.v_bias = nn.Parameter(torch.zeros(self.inner))
        self.proj = nn.Linear(self.inner, dim, bias=config.out_bias)

    def init_own(self) -> None:
        """Zero biases of query and value where they stand alone."""
        if self.config.bias == "qv":
            nn.init.zeros_(self.q_bias)
            nn.init.zeros_(self.v_bias)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        mask: Bool[Tensor, "#b #h #n n"] | Float[Tensor, "#b #h #n n"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """Attend.

        Args:
            x: the sequence.
            mask: True (or 0) where a query may look at a key, False (or -inf) where not; float values are added to the
                scores.
            causal: each token sees itself and what stands before it; not together with `mask`.
        """
        bias: Tensor | None = self.qkv.bias
        if self.config.bias == "qv":
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        batch, length, _ = x.shape
        qkv = functional.linear(x, self.qkv.weight, bias)
        query, key, value = qkv.view(batch, length, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=causal,
            dropout_p=self.config.dropout if self.training else 0.0,
        )
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, self.inner))
        return out


class CrossAttention(Part):
    """Multi-head attention of queries over the keys and values of another sequence.

    Keys and values are given apart, because some models add positions to the keys alone.
    """

    class Config(SelfAttention.Config):
        """As for self-attention."""

    def __init__(self, config: Config, *, dim: int, source_dim: int | None = None) -> None:
        """`dim` is the width of queries and result, `source_dim` that of keys and values (None: the same)."""
        super().__init__()
        self.config = config
        self.inner = config.heads * _head_dim(config.heads, config.head_dim, dim)
        source = source_dim or dim
        self.q = nn.Linear(dim, self.inner, bias=config.bias != "none")
        self.k = nn.Linear(source, self.inner, bias=config.bias == "all")
        self.v = nn.Linear(source, self.inner, bias=config.bias != "none")
        self.proj = nn.Linear(self.inner, dim, bias=config.out_bias)

    def forward(
        self,
        query: Float[Tensor, "b n d"],
        key: Float[Tensor, "b m s"],
        value: Float[Tensor, "b m s"] | None = None,
        *,
        mask: Bool[Tensor, "#b #h #n m"] | Float[Tensor, "#b #h #n m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Attend; `value` None takes the keys as values, `mask` is as in `SelfAttention`."""
        value = key if value is None else value
        batch, length, _ = query.shape
        q, k, v = (
            layer(x).view(batch, x.shape[1], self.config.heads, -1).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        dropout = self.config.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, self.inner))
        return out


def _head_dim(heads: int, head_dim: int | None, dim: int) -> int:
    if head_dim is not None:
        return head_dim
    if heads < 1 or dim % heads:
        raise InputError(f"heads={heads} does not divide the width {dim}: choose a divisor or give head_dim")
    return dim // heads
