"""One learned query over a set of vectors."""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from encyclo.errors import InputError
from encyclo.nn.part import Part, PartConfig

__all__ = ["AttentivePool"]


class AttentivePool(Part):
    """Cross-attention of one learned query over tokens, with norms on query, key and value, no residual and no MLP.

    The pooling of attentive probing (CAE, section 4.2). With a single query nothing needs the keys and values of all
    tokens: the query is carried back through the key matrix, and values are projected after they are averaged,
    softmax(q_h (W_k x_i)) = softmax((W_k^T q_h) x_i) and sum_i a_i (W_v x_i) = W_v sum_i a_i x_i, which costs
    2 n d heads instead of 2 n d^2 multiplications. The key's bias is left out: it changes no weight.
    """

    class Config(PartConfig):
        """Heads, which must divide the width, and the epsilon of the norms."""

        heads: int = Field(12, ge=1)
        eps: float = Field(1e-6, gt=0)

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        if dim % config.heads:
            raise InputError(f"heads={config.heads} does not divide the width {dim}: choose a divisor")
        self.config = config
        self.query = nn.Parameter(torch.zeros(dim))
        self.norm_q = nn.LayerNorm(dim, eps=config.eps)
        self.norm_k = nn.LayerNorm(dim, eps=config.eps)
        self.norm_v = nn.LayerNorm(dim, eps=config.eps)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.init_own()

    def init_own(self) -> None:
        """Truncated normal (0.02) for the query, Xavier-uniform for the matrices, zero biases."""
        nn.init.trunc_normal_(self.query, std=0.02)
        for layer in (self.q, self.k, self.v, self.proj):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def weights(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n"]:
        """How much each head looks at each token."""
        return self._weights(self._normed(tokens))

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """One vector per set."""
        normed = self._normed(tokens)
        heads, width = self.config.heads, self.query.numel() // self.config.heads
        mean = self._weights(normed) @ normed
        mean = mean * self.norm_v.weight + self.norm_v.bias
        matrix = self.v.weight.view(heads, width, -1)
        mixed = torch.einsum("bhd,hwd->bhw", mean, matrix).flatten(1) + self.v.bias
        out: Tensor = self.proj(mixed)
        return out

    def _normed(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        # both norms see the same tokens: their common part once, gains and shifts where they are due
        return nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=self.config.eps)

    def _weights(self, normed: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n"]:
        heads, width = self.config.heads, self.query.numel() // self.config.heads
        query = self.q(self.norm_q(self.query)).view(heads, width)
        carried = torch.einsum("hw,hwd->hd", query, self.k.weight.view(heads, width, -1)) * self.norm_k.weight
        # the shift of the key's norm adds the same to every token's score: softmax does not see it
        scores: Tensor = (normed @ carried.T / width**0.5).transpose(1, 2)
        return scores.softmax(-1)
