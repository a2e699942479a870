"""Fixed sine-cosine positions in one and two dimensions."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from encyclo.errors import InputError

__all__ = ["sincos_1d", "sincos_2d"]


def sincos_1d(
    positions: Float[Tensor, " n"], dim: int, *, base: float = 10000.0, interleaved: bool = False
) -> Float[Tensor, "n d"]:
    """Sine-cosine vectors of positions (Vaswani et al. 2017, section 3.5).

    With omega_i = base ** (-i / (dim / 2)), i = 0 .. dim/2 - 1: [sin(p omega), cos(p omega)] in two halves, or, with
    `interleaved`, sin and cos in turn as in that paper.

    Raises:
        InputError: an odd `dim`.
    """
    if dim % 2:
        raise InputError(f"dim={dim}: sine-cosine positions come in pairs, give an even width")
    # frequencies in float64: at large dim and n, float32 would lose the low bits of the angle
    omega = base ** (-torch.arange(dim // 2, dtype=torch.float64, device=positions.device) / (dim / 2))
    angle = positions.double()[:, None] * omega
    pair = torch.stack((angle.sin(), angle.cos()), -1) if interleaved else torch.stack((angle.sin(), angle.cos()), 1)
    return pair.reshape(len(positions), dim).float()


def sincos_2d(
    grid: tuple[int, int], dim: int, *, first: Literal["row", "column"] = "row", base: float = 10000.0
) -> Float[Tensor, "n d"]:
    """Positions of a grid of patches, row by row: one half of the width tells the row, the other the column.

    In each half the sines come first, then the cosines, so the width falls into four quarters.

    Args:
        grid: rows and columns.
        dim: a multiple of 4.
        first: which coordinate fills the first half. CAE and MoCo v3 have the row there, MAE the column; it
            matters only for weights trained with one of them.
        base: of the frequencies.

    Raises:
        InputError: a width that is not a multiple of 4.
    """
    if dim % 4:
        raise InputError(f"dim={dim}: two-dimensional sine-cosine positions need a multiple of 4")
    rows, columns = grid
    by_row = sincos_1d(torch.arange(rows, dtype=torch.float32), dim // 2, base=base)
    by_column = sincos_1d(torch.arange(columns, dtype=torch.float32), dim // 2, base=base)
    row_part = by_row[:, None].expand(rows, columns, dim // 2)
    column_part = by_column[None].expand(rows, columns, dim // 2)
    halves = (row_part, column_part) if first == "row" else (column_part, row_part)
    return torch.cat(halves, -1).reshape(rows * columns, dim)
