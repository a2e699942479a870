"""The decoder of the NeRV family: convolutions and pixel shuffles from a small grid to a frame, and its exact size."""

import math
from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from encyclo.errors import InputError
from encyclo.nn.part import Part, PartConfig

__all__ = ["NervBlock", "NervDecoder", "choose_strides", "solve_width", "usual_size"]

_MOST_WIDTH = 1 << 16


class NervBlock(Part):
    """y = PixelShuffle_s(GELU(conv_k(x))): C -> C' channels, s times the height and the width (NeRV, fig. 2).

    The papers write the GELU behind the shuffle. It works on each number alone, so the order changes nothing but
    speed: the convolution's output is still in the cache.
    """

    def __init__(self, config: Any, *, dim: int, dim_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out * stride**2, kernel, padding=(kernel - 1) // 2)
        self.stride = stride

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """The enlarged map, channels last."""
        weight, bias, s = self.conv.weight, self.conv.bias, self.stride
        if s == 1:
            return functional.gelu(self.conv(x))
        assert bias is not None
        # Output channels (row, column, c) in place of the shuffle's (c, row, column): then the shuffle moves whole runs
        # of s c numbers and costs a third.
        weight = weight.unflatten(0, (-1, s * s)).transpose(0, 1).flatten(0, 1)
        bias = bias.unflatten(0, (-1, s * s)).T.flatten()
        hidden = functional.gelu(functional.conv2d(x, weight, bias, padding=self.conv.padding))
        rows = hidden.permute(0, 2, 3, 1).unflatten(3, (s, -1)).transpose(2, 3)
        b, h, _, w, run = rows.shape
        return rows.reshape(b, h * s, w * s, run // s).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class NervDecoder(Part):
    """Codes or embeddings -> frames in [0, 1] (HNeRV, arXiv 2304.02633, section 3.2).

    A 1x1 convolution to c_2 channels (rearranged to a larger grid where `grow` says so) and a GELU; blocks
    i = 0 .. n-1 with kernels k_i = min(K_min + 2 i, K_max) and widths C_(i+1) = max(round(C_i / r), C_low); a 3x3
    convolution to three channels and 0.5 tanh(.) + 0.5. No normalisation; torch's own initial values.

    The defaults are HNeRV's rebalanced layout. NeRV's is `reduce=2, kernels=(3, 3), grow=(first height, first width)`
    on a 1x1 grid.
    """

    class Config(PartConfig):
        """Numbers of the decoder, and what follows from them: its size and its cost."""

        width: int = Field(68, ge=1, le=_MOST_WIDTH, description="c_2, channels of the first grid")
        strides: tuple[int, ...] = (5, 4, 4, 2, 2)
        reduce: float = Field(1.2, gt=0, description="r, ratio of neighbouring widths")
        lowest: int = Field(12, ge=1, description="C_low, least width")
        kernels: tuple[int, int] = Field((1, 5), description="K_min and K_max, odd")
        grow: tuple[int, int] = Field((1, 1), description="rows and columns that the 1x1 layer makes of each place")
        channels: int = Field(3, ge=1)

        @model_validator(mode="after")
        def _possible(self) -> "NervDecoder.Config":
            if not self.strides or min(*self.strides, *self.grow) < 1:
                raise ValueError("strides and grow must be at least 1, and one stride at least is needed")
            if any(k < 1 or k % 2 == 0 for k in self.kernels):
                raise ValueError(f"kernels {self.kernels} must be odd: an even one would shift the picture")
            return self

        @property
        def enlargement(self) -> tuple[int, int]:
            """Rows and columns of pixels for each place of the input grid."""
            total = math.prod(self.strides)
            return self.grow[0] * total, self.grow[1] * total

        def layers(self, dim: int) -> Iterator[tuple[str, int, int, int, int]]:
            """Every convolution as (name, input channels, output channels, kernel, rows of its input per input row).

            The last entry is the enlargement of the height at that layer, `grow` left aside: the layer works on
            (h grow_h e) x (w grow_w e) places for an input of h x w.
            """
            yield "stem", dim, self.width * self.grow[0] * self.grow[1], 1, 0
            width, enlarged = self.width, 1
            for index, stride in enumerate(self.strides):
                kernel = min(self.kernels[0] + 2 * index, self.kernels[1])
                after = max(round(width / self.reduce), self.lowest)
                yield f"block {index}", width, after * stride**2, kernel, enlarged
                width, enlarged = after, enlarged * stride
            yield "head", width, self.channels, 3, enlarged

        def sizes(self, dim: int) -> dict[str, int]:
            """True number of parameters of each layer, biases included."""
            return {name: out * (inner * kernel**2 + 1) for name, inner, out, kernel, _ in self.layers(dim)}

        def size(self, dim: int) -> int:
            """True number of parameters."""
            return sum(self.sizes(dim).values())

        def multiplications(self, dim: int, grid: tuple[int, int]) -> dict[str, int]:
            """Multiply-accumulates of each layer for one input grid of `grid` rows and columns."""
            grown = grid[0] * self.grow[0] * grid[1] * self.grow[1]
            return {
                name: inner * out * kernel**2 * (grown * enlarged**2 if enlarged else grid[0] * grid[1])
                for name, inner, out, kernel, enlarged in self.layers(dim)
            }

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        (_, _, first, _, _), *blocks, (_, last, channels, _, _) = config.layers(dim)
        self.stem = nn.Conv2d(dim, first, 1)
        self.blocks = nn.ModuleList(
            NervBlock(None, dim=inner, dim_out=out // stride**2, kernel=kernel, stride=stride)
            for (_, inner, out, kernel, _), stride in zip(blocks, config.strides, strict=True)
        )
        self.head = nn.Conv2d(last, channels, 3, padding=1)

    def forward(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Frames in [0, 1], larger than the input grid by `config.enlargement`."""
        hidden = functional.gelu(self.stem(codes))
        rows, columns = self.config.grow
        if rows * columns > 1:
            b, _, h, w = hidden.shape
            split = hidden.reshape(b, self.config.width, rows, columns, h, w)
            hidden = split.permute(0, 1, 4, 2, 5, 3).reshape(b, self.config.width, h * rows, w * columns)
        for block in self.blocks:
            hidden = block(hidden)
        return (2 * self.head(hidden)).sigmoid()  # type: ignore[no-any-return]  # 0.5 tanh(x) + 0.5 in one pass


def solve_width(
    config: NervDecoder.Config, *, dim: int, budget: int, embeddings: int = 0, slack: float = 0.01
) -> NervDecoder.Config:
    """The decoder whose true size, embeddings included, meets a budget: c_2 as HNeRV's code finds it.

    c_2 is the positive root, rounded down, of a c^2 + b c - (budget - embeddings) = 0 with
    a = (1 / r) sum_i r^(-2 i) s_i^2 k_i^2 and b the 1x1 layer's weights a channel. HNeRV counts that layer as 3x3
    (b = 9 d q^2), which is a leftover but gives the published widths; with an oblong `grow` (NeRV) it counts as what it
    is. The equation leaves out biases, the head and the least width C_low, so c_2 is stepped down until the
    true count exceeds the budget by no more than the share `slack` (the published models exceed theirs by up to 1 %).

    Args:
        config: all but `width`, which is replaced.
        dim: channels of the embeddings (or of the frame code).
        budget: scalars in all.
        embeddings: scalars of all frames' embeddings.
        slack: tolerated excess, a share of the budget.

    Raises:
        InputError: a budget that the embeddings alone use up, or that no decoder fits into.
    """
    left = budget - embeddings
    smallest = config.replace(width=1).size(dim)
    if left <= 0:
        raise InputError(
            f"size={budget}: the embeddings alone take {embeddings} numbers; raise it above {embeddings + smallest}"
        )
    taps = 9 if config.grow[0] == config.grow[1] else 1
    kernels = [min(config.kernels[0] + 2 * i, config.kernels[1]) for i in range(len(config.strides))]
    a = sum(
        config.reduce ** (-2 * i) * (s * k) ** 2 for i, (s, k) in enumerate(zip(config.strides, kernels, strict=True))
    )
    a /= config.reduce
    b = taps * dim * config.grow[0] * config.grow[1]
    width = min(max(int((-b + math.sqrt(b * b + 4 * a * left)) / (2 * a)), 1), _MOST_WIDTH)
    while width > 0:
        chosen = config.replace(width=width)
        if embeddings + chosen.size(dim) <= budget * (1 + slack):
            return chosen
        width -= 1
    raise InputError(
        f"size={budget}: the smallest decoder takes {embeddings + smallest} numbers with the embeddings; raise it"
    )


def usual_size(pixels: int) -> int:
    """1.5 million numbers for Big Buck Bunny's 108 million pixels, with their 0.8th power: about 54,000 at 80x160."""
    share: float = (pixels / (132 * 640 * 1280)) ** 0.8
    return round(1.5e6 * share)


def choose_strides(height: int, width: int, *, places: int = 8) -> tuple[int, ...]:
    """Strides whose grid has about `places` places for a frame of this size, with little padding.

    Every product P that factors into strides of 2 to 5 is weighed: the share of padding up to the next multiples of P
    plus 0.1 |log2(grid places / `places`)|. Its strides fall, end in 2 and are as few as possible. This gives the
    papers' 5,4,4,2,2 for 640x1280, 5,4,3,2,2 for 480x960 and 5,4,4,3,2 for 960x1920.

    Raises:
        InputError: a frame without pixels.
    """
    if height < 1 or width < 1:
        raise InputError(f"a frame of {width}x{height} pixels has nothing to code")
    best: tuple[float, tuple[int, ...]] = (math.inf, (2,))
    for product, strides in _stride_products(max(height, width)).items():
        rows, columns = -(-height // product), -(-width // product)
        padding = rows * columns * product**2 / (height * width) - 1
        cost = padding + 0.1 * abs(math.log2(rows * columns / places))
        best = min(best, (cost, strides))
    return best[1]


def _stride_products(most: int) -> dict[int, tuple[int, ...]]:
    """For each product up to `most` (at least 2), its best strides: falling, the last 2, the fewest, large first."""
    found: dict[int, tuple[int, ...]] = {2: (2,)}
    todo: list[tuple[int, ...]] = [(2,)]
    while todo:
        strides = todo.pop()
        for first in range(strides[0], 6):
            longer = (first, *strides)
            product = math.prod(longer)
            if product > most:
                continue
            todo.append(longer)
            old = found.get(product)
            if old is None or (len(longer), [-s for s in longer]) < (len(old), [-s for s in old]):
                found[product] = longer
    return found
