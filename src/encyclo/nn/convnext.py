"""ConvNeXt: a convolutional encoder in stages, each a strided convolution and some blocks (Liu et al. 2022)."""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from encyclo.nn.drop_path import DropPath, drop_path_rates
from encyclo.nn.layer_scale import LayerScale
from encyclo.nn.part import Part, PartConfig

__all__ = ["ChannelNorm", "ConvNeXt", "ConvNeXtBlock"]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of an image batch, at each place apart.

    The normalisation runs on the channels-last view, so that nothing is copied where the input is stored that way.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The normalised batch."""
        last = input.permute(0, 2, 3, 1)
        return functional.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class ConvNeXtBlock(Part):
    """y = x + gamma * W_2 GELU(W_1 LN(depthwise_k(x))), the linear layers at each place (arXiv 2201.03545, fig. 4)."""

    class Config(PartConfig):
        """Numbers of a block."""

        kernel: int = Field(7, ge=1, description="side of the depthwise convolution, odd")
        expansion: int = Field(4, ge=1)
        layer_scale: LayerScale.Config | None = LayerScale.Config(init=1e-6)
        eps: float = Field(1e-6, gt=0)

        @model_validator(mode="after")
        def _odd(self) -> "ConvNeXtBlock.Config":
            if self.kernel % 2 == 0:
                raise ValueError(f"kernel {self.kernel} is even, the image would shift: give an odd one")
            return self

    def __init__(self, config: Config, *, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, config.kernel, padding=config.kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=config.eps)
        self.expand = nn.Linear(dim, config.expansion * dim)
        self.project = nn.Linear(config.expansion * dim, dim)
        self.scale: nn.Module = nn.Identity()
        if config.layer_scale is not None:
            self.scale = config.layer_scale.build(dim=dim)
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The block's output, of the input's shape."""
        hidden = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        hidden = self.scale(self.project(functional.gelu(self.expand(hidden))))
        out: Float[Tensor, "b c h w"] = x + self.drop_path(hidden.permute(0, 3, 1, 2))
        return out


class ConvNeXt(Part):
    """Images -> feature maps, smaller by the product of the strides.

    Stage 1 begins with a convolution of kernel and stride s_1 and a channel norm, each later stage i with a channel
    norm and a convolution of kernel and stride s_i; blocks follow. There is no norm at the end. The defaults are
    ConvNeXt-T's backbone; any strides do, so that the same part is the encoder of HNeRV.

    All weights start as a truncated normal of deviation 0.02, all biases at 0.
    """

    class Config(PartConfig):
        """Numbers of the encoder, one entry a stage."""

        strides: tuple[int, ...] = (4, 2, 2, 2)
        depths: tuple[int, ...] = (3, 3, 9, 3)
        dims: tuple[int, ...] = (96, 192, 384, 768)
        block: ConvNeXtBlock.Config = ConvNeXtBlock.Config()
        drop_path: float = Field(0.0, ge=0, lt=1, description="rate of the last block; the rates rise linearly from 0")
        channels: int = Field(3, ge=1)

        @model_validator(mode="after")
        def _one_entry_a_stage(self) -> "ConvNeXt.Config":
            if not len(self.strides) == len(self.depths) == len(self.dims) > 0:
                counts = f"{len(self.strides)} strides, {len(self.depths)} depths and {len(self.dims)} dims"
                raise ValueError(f"{counts}: give one of each a stage")
            if min(*self.strides, *self.dims) < 1 or min(self.depths) < 0:
                raise ValueError("strides and dims must be at least 1, depths at least 0")
            return self

    def __init__(self, config: Config, **_: Any) -> None:
        super().__init__()
        self.config = config
        rates = iter(drop_path_rates(config.drop_path, sum(config.depths)))
        before = config.channels
        self.stages = nn.ModuleList()
        for index, (stride, depth, dim) in enumerate(zip(config.strides, config.depths, config.dims, strict=True)):
            down = nn.Conv2d(before, dim, stride, stride=stride)
            eps = config.block.eps
            first = [down, ChannelNorm(dim, eps=eps)] if index == 0 else [ChannelNorm(before, eps=eps), down]
            blocks = [config.block.build(dim=dim, drop_path=next(rates)) for _ in range(depth)]
            self.stages.append(nn.Sequential(*first, *blocks))
            before = dim
        self.init_own()

    def init_own(self) -> None:
        """Truncated normal weights of deviation 0.02 and zero biases in all convolutions and linear layers."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Feature maps of the last stage.

        Args:
            images: height and width must be multiples of the product of the strides; channels-last is fastest.
        """
        hidden: torch.Tensor = images
        for stage in self.stages:
            hidden = stage(hidden)
        return hidden
