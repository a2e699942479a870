"""Position-wise feed-forward layers: the plain two-matrix kind and the gated kinds.

A parent that takes either holds a field of type `FeedForward`, a choice by `kind`.
"""

from typing import Annotated, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from encyclo.nn.part import Part, PartConfig

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared", "silu", "sigmoid", "tanh", "identity"]


def activate(x: Float[Tensor, "*shape"], name: Activation) -> Float[Tensor, "*shape"]:
    """An activation by name; `gelu` is the exact erf form, `quick_gelu` is x * sigmoid(1.702 x)."""
    match name:
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "quick_gelu":
            return x * (1.702 * x).sigmoid()
        case "relu":
            return F.relu(x)
        case "relu_squared":
            return F.relu(x).square()
        case "silu":
            return F.silu(x)
        case "sigmoid":
            return x.sigmoid()
        case "tanh":
            return x.tanh()
        case "identity":
            return x


def hidden_width(dim: int, hidden: int | None, ratio: float, multiple_of: int = 1) -> int:
    """The hidden width: `hidden` where given, else ratio * dim, rounded up to a multiple."""
    width = hidden if hidden is not None else int(ratio * dim)
    return -(-width // multiple_of) * multiple_of


class Mlp(Part):
    """Two matrices with an activation between: W2 a(W1 x + b1) + b2 (Vaswani et al. 2017, eq. 2).

    Args:
        dim: width of the input, and of the output where `out_dim` is not given.
    """

    class Config(PartConfig):
        """`hidden` wins over `ratio`; `dropout` falls on the hidden values."""

        kind: Literal["mlp"] = "mlp"
        ratio: float = Field(4.0, gt=0, description="hidden width as a multiple of dim")
        hidden: int | None = Field(None, ge=1, description="hidden width itself")
        multiple_of: int = Field(1, ge=1, description="the hidden width is rounded up to a multiple of this")
        activation: Activation = "gelu"
        bias: bool = True
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, config: Config, *, dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.config = config
        hidden = hidden_width(dim, config.hidden, config.ratio, config.multiple_of)
        self.wi = nn.Linear(dim, hidden, bias=config.bias)
        self.wo = nn.Linear(hidden, out_dim or dim, bias=config.bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        """Each position by itself."""
        hidden = activate(self.wi(x), self.config.activation)
        if self.config.dropout and self.training:
            hidden = F.dropout(hidden, self.config.dropout)
        out: Tensor = self.wo(hidden)
        return out


_GATES: dict[str, Activation] = {
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
    "swiglu": "silu",
    "reglu": "relu",
    "glu": "sigmoid",
    "bilinear": "identity",
}


class Glu(Part):
    """A gated feed-forward: W_o (a(g) * u) + b_o with [g, u] = W_gu x (Shazeer 2020, arXiv 2002.05202, eq. 5-6).

    One matrix `wi` makes both halves, the gate first. The kind names the gate's activation: gelu (geglu, geglu_tanh),
    silu (swiglu), relu (reglu), sigmoid (glu), none (bilinear).

    Args:
        dim: width of the input, and of the output where `out_dim` is not given.
    """

    class Config(PartConfig):
        """`hidden` (or ratio * dim) is the width of each half; `dropout` falls on the gated values."""

        kind: Literal["geglu", "geglu_tanh", "swiglu", "reglu", "glu", "bilinear"] = "geglu"
        ratio: float = Field(4.0, gt=0, description="hidden width as a multiple of dim")
        hidden: int | None = Field(None, ge=1, description="hidden width itself")
        multiple_of: int = Field(1, ge=1, description="the hidden width is rounded up to a multiple of this")
        gate_bias: bool = Field(False, description="bias of the gate and up matrix")
        bias: bool = Field(True, description="bias of the output matrix")
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, config: Config, *, dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.config = config
        hidden = hidden_width(dim, config.hidden, config.ratio, config.multiple_of)
        self.wi = nn.Linear(dim, 2 * hidden, bias=config.gate_bias)
        self.wo = nn.Linear(hidden, out_dim or dim, bias=config.bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        """Each position by itself."""
        gate, up = self.wi(x).chunk(2, dim=-1)
        hidden = activate(gate, _GATES[self.config.kind]) * up
        if self.config.dropout and self.training:
            hidden = F.dropout(hidden, self.config.dropout)
        out: Tensor = self.wo(hidden)
        return out


FeedForward = Annotated[Mlp.Config | Glu.Config, Field(discriminator="kind")]
"""Either kind of feed-forward, chosen by `kind`."""
