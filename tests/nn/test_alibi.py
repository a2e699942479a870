import pytest
import torch

from encyclo.errors import InputError
from encyclo.nn.alibi import Alibi, alibi_slopes
from encyclo.nn.part import materialise


def test_slopes_of_a_power_of_two() -> None:
    torch.testing.assert_close(alibi_slopes(8), 2.0 ** -torch.arange(1.0, 9.0))
    torch.testing.assert_close(alibi_slopes(4), 2.0 ** -torch.tensor([2.0, 4.0, 6.0, 8.0]))


def test_slopes_of_other_numbers_of_heads() -> None:
    exponents = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5])
    torch.testing.assert_close(alibi_slopes(12), 2.0**-exponents)
    assert alibi_slopes(1).tolist() == [2.0**-8]


def test_bias_is_symmetric_and_falls_with_distance() -> None:
    bias = Alibi.Config(starting_length=6).build(heads=2)(5)
    assert bias.shape == (2, 5, 5)
    for i in range(5):
        for j in range(5):
            assert bias[1, i, j].item() == pytest.approx(-(2.0**-8) * abs(i - j))
    torch.testing.assert_close(bias, bias.transpose(1, 2))


def test_table_grows_on_demand_and_is_not_saved() -> None:
    alibi = Alibi.Config(starting_length=4).build(heads=3)
    before = alibi(4).clone()
    assert alibi(9).shape == (3, 9, 9)
    assert alibi.length == 9
    torch.testing.assert_close(alibi(4), before)
    assert not alibi.grow(5)
    assert not alibi.state_dict()


def test_built_on_meta_it_gets_its_table_back() -> None:
    config = Alibi.Config(starting_length=4)
    with torch.device("meta"):
        empty = config.build(heads=2)
    made = materialise(empty)
    torch.testing.assert_close(made(4), config.build(heads=2)(4))


def test_a_table_that_would_not_fit_is_refused() -> None:
    alibi = Alibi.Config(starting_length=4).build(heads=12)
    with pytest.raises(InputError, match="9459 is the most"):
        alibi.grow(1_000_000)
