import pytest
import torch

from encyclo.errors import InputError
from encyclo.nn.drop_path import DropPath, drop_path_rates


def test_whole_samples_are_dropped_and_the_mean_is_kept() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(20_000, 2, 3))
    per_sample = out.flatten(1)
    assert bool((per_sample == per_sample[:, :1]).all())
    assert sorted(per_sample[:, 0].unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)


def test_evaluation_and_rate_zero_change_nothing() -> None:
    x = torch.randn(4, 3)
    assert torch.equal(DropPath(0.5).eval()(x), x)
    assert torch.equal(DropPath(0.0)(x), x)


def test_rates_rise_from_zero() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]
    with pytest.raises(InputError, match="drop_path=1"):
        DropPath(1.0)
