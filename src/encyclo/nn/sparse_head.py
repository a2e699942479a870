"""The SPLADE head: token states -> one weight per vocabulary entry, never holding [batch, tokens, vocabulary]."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from encyclo.nn.part import Part, PartConfig

__all__ = ["SparseHead", "max_logits"]


class _MaxLogits(torch.autograd.Function):
    """m_bj = max over pooled t of <h_bt, E_j>, with the vocabulary taken in chunks in both directions."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, matrix: Tensor, pooled: Tensor, chunk: int, centre: bool) -> Tensor:
        batch, length, _ = states.shape
        vocabulary = matrix.shape[0]
        hidden = ~pooled.unsqueeze(-1)
        exact = torch.promote_types(states.dtype, torch.float32)
        best = torch.empty(batch, vocabulary, dtype=exact, device=states.device)
        where = torch.empty(batch, vocabulary, dtype=torch.int32, device=states.device)
        middle = matrix.mean(dim=0) if centre else torch.zeros_like(matrix[0])
        for start in range(0, vocabulary, chunk):
            rows = (matrix[start : start + chunk] - middle).to(states.dtype)
            logits = (states.reshape(batch * length, -1) @ rows.T).view(batch, length, -1)
            value, index = logits.masked_fill_(hidden, -torch.inf).max(dim=1)
            best[:, start : start + chunk] = value
            where[:, start : start + chunk] = index
        # a text without pooled tokens has no terms: a finite floor keeps not-a-number out of what follows
        best.masked_fill_(~pooled.any(dim=1, keepdim=True), torch.finfo(exact).min)
        ctx.save_for_backward(states, matrix, where, middle)
        ctx.chunk, ctx.centre = chunk, centre
        return best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        states, matrix, where, middle = ctx.saved_tensors
        batch, length, dim = states.shape
        wants_states, wants_matrix = ctx.needs_input_grad[:2]
        flat = states.reshape(batch * length, dim).to(gradient.dtype)
        to_states = torch.zeros_like(flat) if wants_states else None
        to_matrix = torch.zeros_like(matrix, dtype=gradient.dtype) if wants_matrix else None
        offset = torch.arange(batch, device=states.device).unsqueeze(1) * length
        for start in range(0, matrix.shape[0], ctx.chunk):
            part = gradient[:, start : start + ctx.chunk]
            # only one position of each text and term takes the gradient, and none where the term is off
            b, j = part.nonzero(as_tuple=True)
            if b.numel() == 0:
                continue
            token = (offset + where[:, start : start + ctx.chunk])[b, j]
            picked = torch.sparse_coo_tensor(
                torch.stack((token, j)), part[b, j], (batch * length, part.shape[1]), check_invariants=False
            )
            if to_states is not None:
                to_states += torch.sparse.mm(picked, (matrix[start : start + ctx.chunk] - middle).to(part.dtype))
            if to_matrix is not None:
                to_matrix[start : start + ctx.chunk] = torch.sparse.mm(picked.t(), flat)
        if to_matrix is not None and ctx.centre:
            to_matrix -= to_matrix.mean(dim=0)  # each row moves the mean that is taken off all rows
        return (
            None if to_states is None else to_states.view_as(states).to(states.dtype),
            None if to_matrix is None else to_matrix.to(matrix.dtype),
            None,
            None,
            None,
        )


def max_logits(
    states: Float[Tensor, "b t d"],
    matrix: Float[Tensor, "v d"],
    pooled: Bool[Tensor, "b t"],
    *,
    chunk: int = 4096,
    centre: bool = False,
) -> Float[Tensor, "b v"]:
    """The largest logit of each vocabulary entry over the pooled tokens, in float32 (float64 of float64).

    Peak memory is [b, t, chunk] forward and [b, chunk] plus the active entries backward, whatever the vocabulary. The
    gradient goes to the one token that attained the maximum.

    Args:
        states: hidden states.
        matrix: output embeddings E; logits are x_tj = <h_t, E_j>.
        pooled: which tokens count. A text with none gets the smallest float, hence weight 0.
        chunk: vocabulary entries at a time.
        centre: score against E_j - mean(E), that is, take each token's mean logit off its logits.
    """
    width = int(pooled.sum(dim=1).max()) if pooled.numel() else 0
    if width < pooled.shape[1]:  # tokens that no text pools cost a row of logits each: leave them out
        order = pooled.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : max(width, 1)]
        states = torch.take_along_dim(states, order.unsqueeze(-1), dim=1)
        pooled = torch.take_along_dim(pooled, order, dim=1)
    made: Tensor = _MaxLogits.apply(states, matrix, pooled, chunk, centre)  # type: ignore[no-untyped-call]
    return made


class SparseHead(Part):
    """Term weights w_j = max_t log(1 + ReLU(x_tj + b_j)) over the pooled tokens t (SPLADE-max, Formal et al. 2021).

    As log(1 + ReLU(.)) rises with its argument and b_j does not depend on t, the maximum is taken over plain logits and
    the rest is applied once per entry.

    Args:
        config: see its fields.
        vocabulary: number of entries; needed for the bias only.
    """

    class Config(PartConfig):
        """How logits become weights."""

        chunk: int = 4096
        """Vocabulary entries scored at a time."""
        centre: bool = False
        """Take each token's mean logit off its logits. A language model's logits are defined only up to such a constant
        (softmax does not see it), which the threshold at zero would otherwise take for meaning."""
        bias: bool = False
        """Learn an offset per entry, added to its logit."""

    def __init__(self, config: Config, *, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.bias = torch.nn.Parameter(torch.zeros(vocabulary)) if config.bias else None

    def init_own(self) -> None:
        """The bias starts at zero."""
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def largest(
        self, states: Float[Tensor, "b t d"], matrix: Float[Tensor, "v d"], pooled: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b v"]:
        """The largest logit of each entry, before any bias."""
        return max_logits(states, matrix, pooled, chunk=self.config.chunk, centre=self.config.centre)

    @torch.no_grad()
    def calibrate(self, largest: Float[Tensor, "n v"], margin: float = 0.0) -> None:
        """Start the bias at -(mean + margin * deviation) of each term's largest logit over n texts.

        The logits of a language model are far above zero for every term; with this start a term is on where it is
        more likely than it usually is.
        """
        if self.bias is None:
            raise ValueError("only a head with a bias can be calibrated")
        self.bias.copy_(-(largest.mean(dim=0) + margin * largest.std(dim=0)))

    def forward(
        self,
        states: Float[Tensor, "b t d"],
        matrix: Float[Tensor, "v d"],
        pooled: Bool[Tensor, "b t"],
        offset: Float[Tensor, " v"] | None = None,
    ) -> Float[Tensor, "b v"]:
        """Weights [b, v], float32, none negative; a text without pooled tokens gets zeros.

        `offset` is the base model's own bias of the output matrix, where it has one.
        """
        logits = self.largest(states, matrix, pooled)
        if offset is not None:
            logits = logits + offset.float()
        if self.bias is not None:
            logits = logits + self.bias.float()
        return torch.log1p(torch.relu(logits))
