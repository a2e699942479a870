from typing import NamedTuple

import pytest
import torch

from encyclo.errors import InputError
from encyclo.training.micro_batches import split, to_device


class Pair(NamedTuple):
    x: torch.Tensor
    names: list[str]


class Packed:
    """Sequences end to end: only the class itself knows where they may be cut."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def split(self, parts: int) -> list["Packed"]:
        size = len(self.lengths) // parts
        return [Packed(self.lengths[i * size : (i + 1) * size]) for i in range(parts)]

    def to(self, device: torch.device) -> "Packed":
        return Packed([length + 100 for length in self.lengths])


def test_nested_batches_are_cut_along_the_first_dimension():
    batch = {
        "x": torch.arange(6),
        "pair": Pair(torch.arange(12).view(6, 2), list("abcdef")),
        "scale": 2.0,
        "none": None,
    }
    first, second, third = split(batch, 3)
    assert second["x"].tolist() == [2, 3]
    assert isinstance(third["pair"], Pair)
    assert third["pair"].x.tolist() == [[8, 9], [10, 11]]
    assert third["pair"].names == ["e", "f"]
    assert first["scale"] == 2.0
    assert first["none"] is None


def test_tuples_lists_and_own_classes():
    assert [part[1].tolist() for part in split((torch.ones(4, 2), torch.arange(4)), 2)] == [[0, 1], [2, 3]]
    assert split(["a", "b", "c", "d"], 4) == [["a"], ["b"], ["c"], ["d"]]
    assert [part.lengths for part in split(Packed([3, 1, 2, 2]), 2)] == [[3, 1], [2, 2]]
    assert split("whole", 1) == ["whole"]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.arange(7), "batch of 7 cannot be split into 2 equal parts"),
        ({"x": torch.ones(4), "y": torch.ones(2)}, r"different lengths \(2, 4\)"),
        (object(), "batch of type object cannot be split"),
        ("text", "batch of type str cannot be split"),
    ],
)
def test_what_cannot_be_cut_is_refused(batch, message):
    with pytest.raises(InputError, match=message):
        split(batch, 2)


def test_everything_moves_to_the_device():
    moved = to_device(
        {"a": [torch.ones(1), (torch.ones(2), "text")], "b": Pair(torch.ones(3), ["x"])}, torch.device("meta")
    )
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["a"][1][1] == "text"
    assert isinstance(moved["b"], Pair)
    assert moved["b"].x.is_meta
    assert to_device(Packed([1]), torch.device("cpu")).lengths == [101]
