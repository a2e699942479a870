import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encyclo.errors import InputError
from encyclo.sampling.masks import BlockMask, RandomMask, block_mask, count_of, random_mask, split_mask


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 14),
    columns=st.integers(2, 14),
    share=st.floats(0.05, 0.95),
    min_block=st.integers(1, 20),
    batch=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_mask_hides_exactly_as_many(
    rows: int, columns: int, share: float, min_block: int, batch: int, seed: int
) -> None:
    hidden = min(max(1, round(share * rows * columns)), rows * columns - 1)
    generator = torch.Generator().manual_seed(seed)
    for mask in (
        random_mask(batch, rows * columns, hidden, generator=generator),
        block_mask(batch, (rows, columns), hidden, min_block=min_block, generator=generator),
    ):
        assert mask.shape == (batch, rows * columns)
        assert mask.sum(1).tolist() == [hidden] * batch
        visible, index = split_mask(mask)
        for row in range(batch):
            assert sorted(visible[row].tolist() + index[row].tolist()) == list(range(rows * columns))
            assert bool(mask[row, index[row]].all())
            assert not bool(mask[row, visible[row]].any())
            assert index[row].tolist() == sorted(index[row].tolist())


def test_a_seed_fixes_the_masks() -> None:
    for mask in (RandomMask(), BlockMask(min_block=4)):
        first, again = (mask.draw(8, (7, 7), torch.Generator().manual_seed(3)) for _ in range(2))
        other = mask.draw(8, (7, 7), torch.Generator().manual_seed(4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_random_masks_hide_all_patches_equally_often() -> None:
    mask = random_mask(20_000, 10, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mask.float().mean(0), torch.full((10,), 0.3), atol=0.015, rtol=0)


def test_block_masks_hang_together() -> None:
    """Hidden neighbours of hidden patches: far more than in random masks of the same size."""

    def together(mask: torch.Tensor) -> float:
        cells = mask.view(-1, 14, 14)
        return float(
            (cells[:, 1:] & cells[:, :-1]).float().mean() + (cells[:, :, 1:] & cells[:, :, :-1]).float().mean()
        )

    generator = torch.Generator().manual_seed(0)
    blocks = block_mask(200, (14, 14), 98, generator=generator)
    points = random_mask(200, 196, 98, generator=generator)
    assert together(blocks) > 1.5 * together(points)


def one_by_one(rows: int, columns: int, hidden: int, min_block: int, draws: random.Random) -> list[list[bool]]:
    """The rectangles of one image in the words of the algorithm, without the single patches at its end."""
    cells = [[False] * columns for _ in range(rows)]
    left, refused = hidden, 0
    while left and refused < 10:
        area = draws.uniform(min_block, left)
        ratio = math.exp(draws.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        refused += 1
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, start = draws.randint(0, rows - height), draws.randint(0, columns - width)
        inside = [(r, c) for r in range(top, top + height) for c in range(start, start + width)]
        fresh = [(r, c) for r, c in inside if not cells[r][c]]
        if 0 < len(fresh) <= left:
            left, refused = left - len(fresh), 0
            for r, c in fresh:
                cells[r][c] = True
    return cells


def test_block_masks_are_drawn_as_one_by_one() -> None:
    """The same share of each patch, and of each pair of neighbours, as from the plain loop."""
    rows, columns, hidden, count = 5, 6, 12, 4000
    draws = random.Random(0)
    plain = torch.tensor([one_by_one(rows, columns, hidden, 3, draws) for _ in range(count)])
    mask = block_mask(count, (rows, columns), hidden, min_block=3, generator=torch.Generator().manual_seed(0))
    ours = mask.view(-1, rows, columns)
    filled = (plain.sum((1, 2)) == hidden).float().mean()
    assert filled > 0.9, "nearly all are full without single patches"

    def shares(cells: torch.Tensor) -> torch.Tensor:
        pairs = [cells[:, 1:] & cells[:, :-1], cells[:, :, 1:] & cells[:, :, :-1]]
        return torch.cat([part.float().mean(0).flatten() for part in (cells, *pairs)])

    torch.testing.assert_close(shares(ours), shares(plain), atol=0.045, rtol=0)


def test_a_single_block_is_a_rectangle() -> None:
    """With the smallest area equal to what is to be hidden, a first rectangle of just that area is all there is."""
    mask = block_mask(64, (8, 8), 4, min_block=4, aspect=1.0, generator=torch.Generator().manual_seed(0)).view(-1, 8, 8)
    for cells in mask:
        rows, columns = cells.nonzero(as_tuple=True)
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="hides 0 of 4"):
        count_of(0.1, 4)
    with pytest.raises(InputError, match="hides 4 of 4"):
        count_of(0.95, 4)
    with pytest.raises(InputError, match="49 hidden of 49"):
        block_mask(1, (7, 7), 49)
    with pytest.raises(InputError, match="1 to 2 patches"):
        split_mask(torch.tensor([[True, False, False], [True, True, False]]))
    with pytest.raises(InputError, match="0 hidden of 3"):
        split_mask(torch.zeros(2, 3, dtype=torch.bool))
