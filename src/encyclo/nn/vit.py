"""The vision transformer: pre-norm blocks, and patches plus positions plus blocks."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from encyclo.errors import InputError
from encyclo.nn.attention import Bias, SelfAttention
from encyclo.nn.drop_path import DropPath, drop_path_rates
from encyclo.nn.feed_forward import FeedForward, Mlp
from encyclo.nn.layer_scale import LayerScale
from encyclo.nn.part import Part, PartConfig
from encyclo.nn.patch import PatchEmbed, gather_tokens, grid_of
from encyclo.nn.sincos import sincos_2d

__all__ = ["Init", "ViT", "ViTBlock", "ViTBlocks", "draw_weights"]

Init = Literal["xavier", "trunc_normal", "trunc_normal_rescaled"]
"""How the matrices of a stack are drawn; biases are 0 and norms 1 in each.

xavier: uniform, over each matrix as it lies (query, key and value as one). trunc_normal: standard deviation 0.02, cut
off at one deviation (BEiT, CAE). trunc_normal_rescaled: the same, then the last matrix of each residual branch in
block l = 1, 2, ... divided by sqrt(2 l) (BEiT).
"""


def draw_weights(module: nn.Module, init: Init) -> None:
    """Draw every linear layer below `module`, reset its norms; rescaling is the stack's own affair."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            if init == "xavier":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.02, b=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


def rescale(block: Any, number: int) -> None:
    """Divide the last matrix of each residual branch of block `number` (from 1) by sqrt(2 number)."""
    with torch.no_grad():
        for matrix in (block.attn.proj, block.mlp.wo):
            matrix.weight.div_(math.sqrt(2 * number))


class ViTBlock(Part):
    """A pre-norm transformer block (Dosovitskiy et al. 2021, eq. 2-3), with LayerScale and stochastic depth on demand.

    x + s1 * Attention(LN1(x)), then x + s2 * MLP(LN2(x)); s1 and s2 are the LayerScale factors.
    """

    class Config(PartConfig):
        """Heads, biases, feed-forward, norms and LayerScale of a block."""

        heads: int = Field(12, ge=1)
        bias: Bias = "all"
        layer_scale: float | None = Field(None, description="first value of the LayerScale factors; None: none")
        mlp: FeedForward = Mlp.Config()
        eps: float = Field(1e-6, gt=0, description="of the norms")
        attention_dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, config: Config, *, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        attention = SelfAttention.Config(heads=config.heads, bias=config.bias, dropout=config.attention_dropout)
        self.norm1 = nn.LayerNorm(dim, eps=config.eps)
        self.attn = attention.build(dim=dim)
        self.norm2 = nn.LayerNorm(dim, eps=config.eps)
        self.mlp = config.mlp.build(dim=dim)
        scale = LayerScale.Config(init=config.layer_scale) if config.layer_scale is not None else None
        self.scale1 = scale.build(dim=dim) if scale else nn.Identity()
        self.scale2 = scale.build(dim=dim) if scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        mask: Bool[Tensor, "#b #h #n n"] | Float[Tensor, "#b #h #n n"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """One block; `mask` and `causal` as in `SelfAttention`."""
        x = x + self.drop_path(self.scale1(self.attn(self.norm1(x), mask=mask, causal=causal)))
        out: Tensor = x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        return out


class ViTBlocks(Part):
    """A stack of blocks with stochastic depth rising linearly from 0, and a norm at its end."""

    class Config(ViTBlock.Config):
        """A block's numbers, how many there are, and how they are drawn."""

        depth: int = Field(12, ge=0)
        drop_path: float = Field(0.0, ge=0, lt=1, description="rate in the last block")
        final_norm: bool = True
        init: Init = "xavier"

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            ViTBlock(config, dim=dim, drop_path=rate) for rate in drop_path_rates(config.drop_path, config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.eps) if config.final_norm else nn.Identity()
        self.init_own()

    def init_own(self) -> None:
        """Draw the matrices as `config.init` says."""
        draw_weights(self, self.config.init)
        if self.config.init == "trunc_normal_rescaled":
            for number, block in enumerate(self.blocks, start=1):
                rescale(block, number)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        mask: Bool[Tensor, "#b #h #n n"] | Float[Tensor, "#b #h #n n"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """All blocks, then the norm."""
        for block in self.blocks:
            x = block(x, mask=mask, causal=causal)
        out: Tensor = self.norm(x)
        return out


class ViT(Part):
    """Patches, positions and a class token through a stack of blocks (Dosovitskiy et al. 2021).

    Can be given some of the patches only, as masked image modelling wants. The class token's sine-cosine position is 0.
    """

    class Config(PartConfig):
        """Image, patches, width, positions and blocks."""

        image_size: int = Field(224, ge=1, description="side of the square images in pixels")
        patch: int = Field(16, ge=1)
        channels: int = Field(3, ge=1)
        dim: int = Field(768, ge=1)
        cls_token: bool = True
        positions: Literal["sincos", "learned"] = "sincos"
        sincos_first: Literal["row", "column"] = "row"
        blocks: ViTBlocks.Config = ViTBlocks.Config()

    positions: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.grid = grid_of(config.image_size, config.image_size, config.patch)
        self.count = self.grid[0] * self.grid[1]
        self.patch_embed = PatchEmbed.Config(patch=config.patch, channels=config.channels).build(dim=config.dim)
        if config.cls_token:
            self.cls = nn.Parameter(torch.zeros(1, 1, config.dim))
        table = torch.zeros(int(config.cls_token) + self.count, config.dim)
        if config.positions == "learned":
            self.positions = nn.Parameter(table)
        else:
            self.register_buffer("positions", table, persistent=False)
        self.blocks = config.blocks.build(dim=config.dim)
        self.init_own()

    def init_own(self) -> None:
        """Draw class token and learned positions (truncated normal, 0.02), or fill in the fixed ones."""
        config = self.config
        if config.cls_token:
            nn.init.trunc_normal_(self.cls, std=0.02, a=-0.02, b=0.02)
        if config.blocks.init != "xavier":  # the patches are drawn as the rest is; Xavier is their own default
            nn.init.trunc_normal_(self.patch_embed.proj.weight, std=0.02, a=-0.02, b=0.02)
        if config.positions == "learned":
            nn.init.trunc_normal_(self.positions, std=0.02, a=-0.02, b=0.02)
            return
        with torch.no_grad():
            self.positions.zero_()
            self.positions[int(config.cls_token) :] = sincos_2d(self.grid, config.dim, first=config.sincos_first)

    def embed(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Every patch's embedding plus its position.

        Raises:
            InputError: images of another size or number of channels than configured.
        """
        side = self.config.image_size
        if tuple(images.shape[-2:]) != (side, side):
            raise InputError(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels, the model takes {side}x{side}: resize them"
            )
        embedded: Tensor = self.patch_embed(images)
        return embedded + self.positions[int(self.config.cls_token) :]

    def encode(self, tokens: Float[Tensor, "b k d"]) -> Float[Tensor, "b t d"]:
        """The blocks over embedded patches, the class token (where there is one) before them: t = k + 1 (or k)."""
        if self.config.cls_token:
            first = (self.cls + self.positions[:1]).expand(len(tokens), -1, -1)
            tokens = torch.cat((first, tokens), 1)
        encoded: Tensor = self.blocks(tokens)
        return encoded

    def forward(
        self, images: Float[Tensor, "b c h w"], keep: Int64[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Encode images.

        Args:
            images: normalised pixels.
            keep: indices of the patches to encode, image by image; None encodes all.

        Returns:
            The class token's vector (where there is one), then those of the patches, normed.
        """
        tokens = self.embed(images)
        return self.encode(tokens if keep is None else gather_tokens(tokens, keep))
