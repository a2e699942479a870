"""Which patches a masked image model hides: the same number in every image, drawn on the CPU from a generator."""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Int64
from pydantic import Field
from torch import Tensor

from encyclo.config import Config
from encyclo.errors import InputError

__all__ = ["BlockMask", "Mask", "RandomMask", "block_mask", "count_of", "random_mask", "split_mask"]


def count_of(ratio: float, patches: int) -> int:
    """How many of `patches` a ratio hides, rounded to the nearest.

    Raises:
        InputError: a ratio that hides no patch or all of them.
    """
    hidden = round(ratio * patches)
    if not 0 < hidden < patches:
        raise InputError(f"mask ratio {ratio:g} hides {hidden} of {patches} patches: some must be hidden, some visible")
    return hidden


def _check(hidden: int, patches: int) -> None:
    if not 0 < hidden < patches:
        raise InputError(f"{hidden} hidden of {patches} patches: some must be hidden, some visible")


def random_mask(
    batch: int, patches: int, hidden: int, *, generator: torch.Generator | None = None
) -> Bool[Tensor, "b n"]:
    """Exactly `hidden` patches of each image, each set equally likely (He et al. 2021, section 3).

    Args:
        batch: images.
        patches: per image.
        hidden: of them to hide.
        generator: of the CPU, so that seeds agree across devices; None takes torch's global one.

    Returns:
        True where a patch is hidden.

    Raises:
        InputError: no patch or all patches hidden.
    """
    _check(hidden, patches)
    order = torch.rand(batch, patches, generator=generator).argsort(1)
    return torch.zeros(batch, patches, dtype=torch.bool).scatter_(1, order[:, :hidden], True)


def block_mask(
    batch: int,
    grid: tuple[int, int],
    hidden: int,
    *,
    min_block: int = 16,
    aspect: float = 0.3,
    attempts: int = 10,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "b n"]:
    """Exactly `hidden` patches of each image, in rectangles (Bao et al. 2021, arXiv 2106.08254, algorithm 1).

    For each image, again and again: an area, uniform between `min_block` and what remains to be hidden, and an aspect
    ratio, log-uniform in [aspect, 1 / aspect], give a rectangle at a uniform place; it is taken if it is
    smaller than the grid on both sides and hides between 1 and that many new patches. After `attempts` refusals in a
    row the rest is made up of single patches, drawn uniformly. All images of a batch are worked on at once.

    Args:
        batch: images.
        grid: rows and columns of patches.
        hidden: patches to hide in each image.
        min_block: smallest area in patches.
        aspect: smallest height / width.
        attempts: refused rectangles in a row before single patches fill up the rest.
        generator: of the CPU, so that seeds agree across devices; None takes torch's global one.

    Returns:
        True where a patch is hidden, row by row.

    Raises:
        InputError: no patch or all patches hidden.
    """
    rows, columns = grid
    _check(hidden, rows * columns)
    row, column = torch.arange(rows), torch.arange(columns)
    mask = torch.zeros(batch, rows, columns, dtype=torch.bool)
    left = torch.full((batch,), hidden)
    going = torch.ones(batch, dtype=torch.bool)
    while bool(going.any()):
        # as many tries as may fail in a row, all from the same state: the first that will do is taken, the rest never
        # happened; an image of whose tries none will do is through
        draw = torch.rand(4, attempts, batch, generator=generator)
        area = min_block + draw[0] * (left - min_block)
        stretch = torch.exp((draw[1] - 0.5) * -math.log(aspect))  # the root of the aspect ratio
        root = area.sqrt()
        height, width = (root * stretch).round(), (root / stretch).round()
        top, start = (
            (draw[2] * (rows - height + 1)).long()[..., None],
            (draw[3] * (columns - width + 1)).long()[..., None],
        )
        down = (row >= top) & (row < top + height[..., None])
        across = (column >= start) & (column < start + width[..., None])
        block = down[..., :, None] & across[..., None, :]
        fresh = (block & ~mask).sum((-2, -1))
        fits = (height >= 1) & (width >= 1) & (height < rows) & (width < columns) & (fresh >= 1) & (fresh <= left)
        first = fits.int().argmax(0)
        going = going & fits.any(0) & (left > 0)
        taken = block[first, torch.arange(batch)] & going[:, None, None]
        mask |= taken
        left = hidden - mask.sum((-2, -1))
    flat = mask.flatten(1)
    # hidden patches come first, the others in random order: the first `hidden` of them are the mask
    order = (torch.rand(flat.shape, generator=generator) + (~flat).float()).argsort(1)
    return torch.zeros_like(flat).scatter_(1, order[:, :hidden], True)


def split_mask(mask: Bool[Tensor, "b n"]) -> tuple[Int64[Tensor, "b v"], Int64[Tensor, "b m"]]:
    """The indices of the visible and of the hidden patches, each in the image's order.

    Raises:
        InputError: images with different numbers of hidden patches, or with none or all hidden.
    """
    counts = mask.sum(1)
    if len(counts) and int(counts.min()) != int(counts.max()):
        raise InputError(
            f"masks in one batch hide {int(counts.min())} to {int(counts.max())} patches: hide the same number in all"
        )
    hidden = int(counts[0]) if len(counts) else 1
    _check(hidden, mask.shape[1])
    order = mask.int().argsort(dim=1, stable=True)
    return order[:, : mask.shape[1] - hidden], order[:, mask.shape[1] - hidden :]


class RandomMask(Config):
    """Patches hidden one by one."""

    kind: Literal["random"] = "random"
    ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches that is hidden")

    def draw(self, batch: int, grid: tuple[int, int], generator: torch.Generator | None = None) -> Bool[Tensor, "b n"]:
        """A mask per image; see `random_mask`."""
        patches = grid[0] * grid[1]
        return random_mask(batch, patches, count_of(self.ratio, patches), generator=generator)


class BlockMask(Config):
    """Patches hidden in rectangles."""

    kind: Literal["block"] = "block"
    ratio: float = Field(0.5, gt=0, lt=1, description="share of the patches that is hidden")
    min_block: int = Field(16, ge=1, description="smallest rectangle in patches")
    aspect: float = Field(0.3, gt=0, le=1, description="smallest height / width; the largest is its inverse")
    attempts: int = Field(10, ge=1)

    def draw(self, batch: int, grid: tuple[int, int], generator: torch.Generator | None = None) -> Bool[Tensor, "b n"]:
        """A mask per image; see `block_mask`."""
        return block_mask(
            batch,
            grid,
            count_of(self.ratio, grid[0] * grid[1]),
            min_block=self.min_block,
            aspect=self.aspect,
            attempts=self.attempts,
            generator=generator,
        )


Mask = Annotated[RandomMask | BlockMask, Field(discriminator="kind")]
"""Either way of hiding, chosen by `kind`."""
