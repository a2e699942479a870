import numpy as np
import pytest
import torch

from encyclo.errors import InputError
from encyclo.nn.sincos import sincos_1d, sincos_2d


def test_one_dimension_by_its_formula() -> None:
    made = sincos_1d(torch.tensor([0.0, 3.0]), 4)
    angles = [3.0, 3.0 / 100]  # 10000 ** (-i / 2), i = 0, 1
    torch.testing.assert_close(made[0], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(made[1], torch.tensor([*np.sin(angles), *np.cos(angles)], dtype=torch.float32))


def test_interleaved_has_the_same_values_in_turn() -> None:
    positions = torch.arange(5.0)
    halves, turns = sincos_1d(positions, 6), sincos_1d(positions, 6, interleaved=True)
    assert torch.equal(turns[:, 0::2], halves[:, :3])
    assert torch.equal(turns[:, 1::2], halves[:, 3:])


def test_two_dimensions_by_their_formula() -> None:
    """Four quarters: sines and cosines of one coordinate, then of the other (MAE: column first; CAE: row first)."""
    rows, columns, dim = 3, 5, 16
    made = {first: sincos_2d((rows, columns), dim, first=first).view(rows, columns, dim) for first in ("row", "column")}
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
    for r in range(rows):
        for c in range(columns):
            by_row, by_column = ([*np.sin(p * omega), *np.cos(p * omega)] for p in (r, c))
            np.testing.assert_allclose(made["row"][r, c], by_row + by_column, atol=1e-6)
            np.testing.assert_allclose(made["column"][r, c], by_column + by_row, atol=1e-6)


def test_the_first_half_tells_the_row_or_the_column() -> None:
    made = sincos_2d((2, 3), 8, first="row").view(2, 3, 8)
    assert torch.equal(made[1, 0, :4], made[1, 2, :4])
    assert torch.equal(made[0, 2, 4:], made[1, 2, 4:])
    assert not torch.equal(made[0, 0, :4], made[1, 0, :4])
    other = sincos_2d((2, 3), 8, first="column").view(2, 3, 8)
    assert torch.equal(other, torch.cat((made[..., 4:], made[..., :4]), -1))


def test_widths_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(InputError, match="dim=6"):
        sincos_2d((2, 2), 6)
    with pytest.raises(InputError, match="dim=5"):
        sincos_1d(torch.arange(2.0), 5)
