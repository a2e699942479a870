"""HiFi-GAN's generator (Kong et al. 2020, arXiv 2010.05646) and its mirror, HiFi-Codec's encoder (arXiv 2305.02765)."""

from collections.abc import Iterator
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from encyclo.nn.part import Part, PartConfig

__all__ = ["HifiganEncoder", "HifiganGenerator", "ResidualBlock"]

SLOPE = 0.1
"""Of the leaky ReLUs; the last one has torch's default, 0.01 (so in the authors' code)."""


class ResidualBlock(Part):
    """HiFi-GAN's residual block "1": for each dilation d, x <- x + Conv_k(lrelu(Conv_{k,d}(lrelu(x)))), same length."""

    class Config(PartConfig):
        """Kernel and dilations."""

        kernel: int = Field(3, ge=1, description="odd")
        dilations: tuple[PositiveInt, ...] = Field((1, 3, 5), min_length=1)

        @model_validator(mode="after")
        def _odd(self) -> "ResidualBlock.Config":
            if self.kernel % 2 == 0:
                raise ValueError(f"kernel {self.kernel} is even: 'same' padding needs an odd one")
            return self

    def __init__(self, config: Config, *, channels: int) -> None:
        super().__init__()
        k = config.kernel
        self.dilated = nn.ModuleList(
            nn.Conv1d(channels, channels, k, dilation=d, padding=d * (k - 1) // 2) for d in config.dilations
        )
        self.plain = nn.ModuleList(nn.Conv1d(channels, channels, k, padding=(k - 1) // 2) for _ in config.dilations)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b c t"]:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class _StackConfig(PartConfig):
    """What encoder and generator share."""

    rates: tuple[PositiveInt, ...] = Field(
        (8, 5, 4, 2), min_length=1, description="of the generator, first stage first; the encoder reverses"
    )
    kernels: tuple[PositiveInt, ...] = Field((16, 11, 8, 4), description="one per rate; kernel - rate must be even")
    blocks: tuple[ResidualBlock.Config, ...] = Field(
        (ResidualBlock.Config(kernel=3), ResidualBlock.Config(kernel=7), ResidualBlock.Config(kernel=11)), min_length=1
    )
    init_std: float | None = Field(0.01, gt=0, description="of strided and last convolutions; None: torch's default")

    @model_validator(mode="after")
    def _lengths(self) -> "_StackConfig":
        if len(self.rates) != len(self.kernels) or not self.rates:
            raise ValueError(f"{len(self.rates)} rates for {len(self.kernels)} kernels")
        for rate, kernel in zip(self.rates, self.kernels, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(f"kernel {kernel} at rate {rate}: kernel - rate must be even and not negative")
        return self

    @property
    def hop(self) -> int:
        """Samples per frame."""
        hop = 1
        for rate in self.rates:
            hop *= rate
        return hop


class HifiganGenerator(Part):
    """Frames to wave: [b, dim, t] -> [b, 1, t * hop], values in (-1, 1).

    Conv 7, then for each rate u a transposed convolution that halves the channels and a mean over residual blocks of
    several kernel sizes; leaky ReLU, Conv 7, tanh. Defaults: V1 with HiFi-Codec's rates.
    """

    class Config(_StackConfig):
        """Rates, kernels, blocks and width."""

        kind: Literal["hifigan"] = "hifigan"
        channels: int = Field(512, ge=1, description="width before the first stage; halves with each")

        @model_validator(mode="after")
        def _halves(self) -> "HifiganGenerator.Config":
            if self.channels % 2 ** len(self.rates):
                raise ValueError(f"channels {self.channels} cannot be halved {len(self.rates)} times")
            return self

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.first = nn.Conv1d(dim, width, 7, padding=3)
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.rates, config.kernels, strict=True):
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2))
            width //= 2
            self.blocks.append(nn.ModuleList(block.build(channels=width) for block in config.blocks))
        self.last = nn.Conv1d(width, 1, 7, padding=3)
        self.init_own()

    def init_own(self) -> None:
        _draw([*self.ups, self.last], self.config.init_std)

    @property
    def from_latent(self) -> nn.Conv1d:
        """The layer that reads the frames."""
        return self.first

    @property
    def context(self) -> int:
        """Frames to either side that a sample can depend on: with so much overlap, decoding in pieces is exact."""
        c = self.config
        reach, scale = 3.0, 1.0
        for rate, kernel in zip(c.rates, c.kernels, strict=True):
            reach += (kernel - 1) / rate / scale  # a transposed convolution reads ceil(kernel / rate) frames
            scale *= rate
            reach += max(sum((d + 1) * (b.kernel - 1) / 2 for d in b.dilations) for b in c.blocks) / scale
        return int(reach + 3 / scale) + 1

    def forward(self, x: Float[Tensor, "b d t"]) -> Float[Tensor, "b 1 n"]:
        x = self.first(x)
        for up, blocks in zip(self.ups, self.blocks, strict=True):
            x = up(F.leaky_relu(x, SLOPE))
            x = reduce(torch.add, [block(x) for block in _list(blocks)]) / len(_list(blocks))
        return torch.tanh(self.last(F.leaky_relu(x)))


class HifiganEncoder(Part):
    """Wave to frames: [b, 1, n] -> [b, dim, n / hop]; n must be a multiple of the hop.

    The generator's mirror: Conv 7, then for each rate u (last first) a strided convolution that doubles the channels
    and the residual blocks (largest kernel first) under a running sum that is normalised *inside* the sum:
    s <- GN(block_0(h)), s <- GN(s + block_j(h)), h <- s / J; leaky ReLU, Conv 3 (not weight-normed).
    """

    class Config(_StackConfig):
        """Rates, kernels, blocks, width and norm."""

        kind: Literal["hifigan"] = "hifigan"
        channels: int = Field(32, ge=1, description="width after the first convolution; doubles with each stage")
        norm: Literal["group", "none"] = Field(
            "group", description="group: the published GroupNorm; none (not published): local, so exact in pieces"
        )
        group: int = Field(16, ge=1, description="channels in one group of the GroupNorm")
        eps: float = 1e-6

        @model_validator(mode="after")
        def _groups(self) -> "HifiganEncoder.Config":
            if self.norm == "group" and (2 * self.channels) % self.group:
                raise ValueError(f"channels {2 * self.channels} are not a multiple of the group of {self.group}")
            return self

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.first = nn.Conv1d(1, width, 7, padding=3)
        self.downs, self.blocks, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(reversed(config.rates), reversed(config.kernels), strict=True):
            self.downs.append(nn.Conv1d(width, 2 * width, kernel, rate, padding=(kernel - rate) // 2))
            width *= 2
            self.blocks.append(nn.ModuleList(block.build(channels=width) for block in reversed(config.blocks)))
            self.norms.append(
                nn.ModuleList(
                    nn.GroupNorm(width // config.group, width, eps=config.eps)
                    if config.norm == "group"
                    else nn.Identity()
                    for _ in config.blocks
                )
            )
        self.last = nn.Conv1d(width, dim, 3, padding=1)
        self.init_own()

    def init_own(self) -> None:
        _draw([*self.downs, self.last], self.config.init_std)

    def weight_normed(self) -> Iterator[nn.Module]:
        """The layers that carry weight normalisation in training: all convolutions but the last."""
        return (m for m in self.modules() if isinstance(m, nn.Conv1d) and m is not self.last)

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.config.hop

    @property
    def to_latent(self) -> nn.Conv1d:
        """The layer that makes the frames."""
        return self.last

    @property
    def context(self) -> int | None:
        """Frames to either side that a frame can depend on; None (the whole input) with GroupNorm."""
        c = self.config
        if c.norm == "group":
            return None
        reach, scale = 3.0, 1.0  # in samples
        for rate, kernel in zip(reversed(c.rates), reversed(c.kernels), strict=True):
            reach += kernel * scale
            scale *= rate
            reach += scale * max(sum((d + 1) * (b.kernel - 1) / 2 for d in b.dilations) for b in c.blocks)
        return int((reach + scale) / scale) + 1

    def forward(self, wave: Float[Tensor, "b 1 n"]) -> Float[Tensor, "b d t"]:
        x = self.first(wave)
        for down, blocks, norms in zip(self.downs, self.blocks, self.norms, strict=True):
            x = down(F.leaky_relu(x, SLOPE))
            chain = list(zip(_list(blocks), _list(norms), strict=True))
            total = chain[0][1](chain[0][0](x))
            for block, norm in chain[1:]:
                total = norm(total + block(x))
            x = total / len(chain)
        frames: Tensor = self.last(F.leaky_relu(x))
        return frames


def _list(modules: nn.Module) -> list[nn.Module]:
    assert isinstance(modules, nn.ModuleList)
    return list(modules)


def _draw(layers: list[nn.Module], std: float | None) -> None:
    if std is None:
        return
    for layer in layers:
        assert isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
        nn.init.normal_(layer.weight, 0.0, std)
