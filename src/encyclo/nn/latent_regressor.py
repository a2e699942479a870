"""Predicting hidden latents from visible ones by cross-attention."""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from encyclo.nn.attention import Bias, CrossAttention
from encyclo.nn.drop_path import DropPath, drop_path_rates
from encyclo.nn.layer_scale import LayerScale
from encyclo.nn.part import Part
from encyclo.nn.vit import ViTBlock, ViTBlocks, draw_weights, rescale

__all__ = ["LatentRegressor", "RegressorBlock"]


class RegressorBlock(Part):
    """One block of the latent contextual regressor (CAE, section 3.2; the order of norms is the published code's).

    With queries q, positions p_q and p_k, and keys-values kv:
    a = q + g1 * CrossAttention(LN_q(q + p_q), LN_k(kv + p_k), LN_v(kv)); b = LN_2(a); q' = b + g2 * MLP(b).
    The second residual starts behind LN_2; with `residual_after_norm` off it starts before it (a + g2 * MLP(b)), as in
    an ordinary pre-norm block.
    """

    class Config(ViTBlock.Config):
        """A ViT block's numbers, and where the second residual starts."""

        residual_after_norm: bool = True

    def __init__(self, config: Config, *, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        attention = CrossAttention.Config(heads=config.heads, bias=config.bias, dropout=config.attention_dropout)
        self.norm_q = nn.LayerNorm(dim, eps=config.eps)
        self.norm_k = nn.LayerNorm(dim, eps=config.eps)
        self.norm_v = nn.LayerNorm(dim, eps=config.eps)
        self.attn = attention.build(dim=dim)
        self.norm2 = nn.LayerNorm(dim, eps=config.eps)
        self.mlp = config.mlp.build(dim=dim)
        scale = LayerScale.Config(init=config.layer_scale) if config.layer_scale is not None else None
        self.scale1 = scale.build(dim=dim) if scale else nn.Identity()
        self.scale2 = scale.build(dim=dim) if scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        query: Float[Tensor, "b m d"],
        source: Float[Tensor, "b s d"],
        query_positions: Float[Tensor, "b m d"],
        source_positions: Float[Tensor, "b s d"],
    ) -> Float[Tensor, "b m d"]:
        """The queries, one step further; positions go to queries and keys, not to values."""
        attended = self.attn(
            self.norm_q(query + query_positions), self.norm_k(source + source_positions), self.norm_v(source)
        )
        before = query + self.drop_path(self.scale1(attended))
        normed = self.norm2(before)
        start = normed if self.config.residual_after_norm else before
        out: Tensor = start + self.drop_path(self.scale2(self.mlp(normed)))
        return out


class LatentRegressor(Part):
    """Latents of hidden patches, predicted from those of the visible ones (CAE, section 3.2).

    Queries start as one shared mask token. In each block keys and values are the visible latents and the present
    queries; the visible latents themselves never change.
    """

    class Config(ViTBlocks.Config):
        """A stack's numbers; by default as in the paper's base model, 4 blocks with biases on query and value."""

        depth: int = Field(4, ge=1)
        bias: Bias = "qv"
        residual_after_norm: bool = True

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        block = RegressorBlock.Config(**{name: getattr(config, name) for name in RegressorBlock.Config.model_fields})
        self.blocks = nn.ModuleList(
            block.build(dim=dim, drop_path=rate) for rate in drop_path_rates(config.drop_path, config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.eps) if config.final_norm else nn.Identity()
        self.init_own()

    def init_own(self) -> None:
        """Draw the matrices as `config.init` says, and the mask token (truncated normal 0.02)."""
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        draw_weights(self, self.config.init)
        if self.config.init == "trunc_normal_rescaled":
            for number, block in enumerate(self.blocks, start=1):
                rescale(block, number)

    def forward(
        self,
        visible: Float[Tensor, "b v d"],
        visible_positions: Float[Tensor, "b v d"],
        hidden_positions: Float[Tensor, "b m d"],
    ) -> Float[Tensor, "b m d"]:
        """Predict.

        Args:
            visible: latents of the visible patches, without the class token.
            visible_positions, hidden_positions: fixed positions of both sets.

        Returns:
            One latent for each hidden patch.
        """
        query = self.mask_token.expand(len(visible), hidden_positions.shape[1], -1)
        source_positions = torch.cat((visible_positions, hidden_positions), 1)
        for block in self.blocks:
            query = block(query, torch.cat((visible, query), 1), hidden_positions, source_positions)
        out: Tensor = self.norm(query)
        return out
