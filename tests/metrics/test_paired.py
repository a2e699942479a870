"""Paired differences by hand."""

import math

import pytest
import torch

from encyclo.metrics.paired import paired_difference


def test_paired_difference_by_hand():
    made = paired_difference(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 2.0, 1.0]))
    assert made.mean == pytest.approx(4 / 3)
    assert made.error == pytest.approx(math.sqrt(7 / 3) / math.sqrt(3))  # differences 1, 0, 3
    assert made.ratio == pytest.approx(made.mean / made.error)
    same = paired_difference(torch.ones(4), torch.ones(4))
    assert (same.mean, same.ratio) == (0, 0)
