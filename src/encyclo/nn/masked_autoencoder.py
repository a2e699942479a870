"""The decoder half of a masked autoencoder: latents of visible patches in, a prediction for every patch out."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from encyclo.nn.part import Part, PartConfig
from encyclo.nn.sincos import sincos_2d
from encyclo.nn.vit import ViTBlocks

__all__ = ["MaskedDecoder"]


class MaskedDecoder(Part):
    """The light decoder of MAE (He et al. 2021, arXiv 2111.06377, section 3), over visible and mask tokens alike."""

    class Config(PartConfig):
        """Width and blocks; the published decoder is 512 wide and 8 deep."""

        dim: int = Field(512, ge=1)
        sincos_first: Literal["row", "column"] = "column"
        blocks: ViTBlocks.Config = ViTBlocks.Config(depth=8, heads=16)

    positions: Tensor

    def __init__(self, config: Config, *, encoder_dim: int, grid: tuple[int, int], out_dim: int) -> None:
        """`out_dim` values are predicted per patch."""
        super().__init__()
        self.config, self.grid = config, grid
        self.embed = nn.Linear(encoder_dim, config.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.register_buffer("positions", torch.zeros(1 + grid[0] * grid[1], config.dim), persistent=False)
        self.blocks = config.blocks.build(dim=config.dim)
        self.head = nn.Linear(config.dim, out_dim)
        self.init_own()

    def init_own(self) -> None:
        """Xavier-uniform matrices at both ends, mask token N(0, 0.02), fixed positions (class token: 0)."""
        for layer in (self.embed, self.head):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        with torch.no_grad():
            self.positions.zero_()
            self.positions[1:] = sincos_2d(self.grid, self.config.dim, first=self.config.sincos_first)

    def forward(self, latents: Float[Tensor, "b t e"], order: Int64[Tensor, "b n"]) -> Float[Tensor, "b n out"]:
        """Predict every patch.

        Args:
            latents: the class token's, then those of the t - 1 visible patches.
            order: all patches, the visible ones first, in the order of `latents`.

        Returns:
            One prediction a patch, in the image's order.
        """
        tokens = self.embed(latents)
        hidden = self.mask_token.expand(len(tokens), order.shape[1] - (tokens.shape[1] - 1), -1)
        shuffled = torch.cat((tokens[:, 1:], hidden), 1)
        patches = torch.empty_like(shuffled).scatter(1, order.unsqueeze(-1).expand_as(shuffled), shuffled)
        whole = torch.cat((tokens[:, :1], patches), 1) + self.positions
        out: Tensor = self.head(self.blocks(whole)[:, 1:])
        return out
