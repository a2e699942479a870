from typing import Annotated, Literal

import pytest
import torch
from pydantic import Field
from torch import nn

from encyclo.config import Config
from encyclo.errors import InputError
from encyclo.nn.part import Part, PartConfig, materialise, parameter_count


class Relu(Config):
    kind: Literal["relu"] = "relu"


class Gated(Config):
    kind: Literal["gated"] = "gated"
    expansion: float = 2.0


class Model(Config):
    width: int = Field(8, ge=1)
    mode: Literal["fast", "exact"] = "fast"
    feed: Annotated[Relu | Gated, Field(discriminator="kind")] = Relu()
    stages: tuple[Gated, ...] = (Gated(), Gated(expansion=3))


def test_overrides_are_typed_and_nested() -> None:
    changed = Model().override(
        ["width=16", "mode=exact", "feed.kind=gated", "feed.expansion=4", "stages.1.expansion=5"]
    )
    assert changed == Model(width=16, mode="exact", feed=Gated(expansion=4), stages=(Gated(), Gated(expansion=5)))
    assert Model().override(["feed=gated"]).feed == Gated()
    assert Model() == Model(), "the original is untouched"


def test_a_configuration_survives_json() -> None:
    config = Model(feed=Gated(expansion=1.5))
    again = Model.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.fingerprint() == config.fingerprint() != Model().fingerprint()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("width", "form field=value"),
        ("widht=3", "fields are width"),
        ("width=0", "greater than or equal to 1"),
        ("mode=slow", "'fast' or 'exact'"),
        ("feed.kind=swish", "relu"),
        ("width.inner=3", "plain value"),
        ("stages.7.expansion=1", "no index"),
    ],
)
def test_a_bad_override_names_the_field_and_what_it_takes(word: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        Model().override([word])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_traverse_finds_nested_configurations() -> None:
    assert [path for path, _ in Model().traverse()] == ["", "feed", "stages.0", "stages.1"]


class Table(Part):
    class Config(PartConfig):
        length: int = 4

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(dim, dim)
        self.register_buffer("positions", torch.empty(config.length, dim), persistent=False)
        self.init_own()

    def init_own(self) -> None:
        self.positions.copy_(torch.arange(self.positions.numel()).view_as(self.positions))


def test_a_part_builds_on_meta_and_gets_its_buffers_back() -> None:
    with torch.device("meta"):
        part = Table.Config(length=3).build(dim=2)
    assert parameter_count(part) == 6
    materialise(part)
    assert part.positions.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert torch.isfinite(part.linear.weight).all()


def test_context_may_not_shadow_a_field() -> None:
    with pytest.raises(TypeError, match="length is a field"):
        Table.Config().build(dim=2, length=5)


class Budget(Config):
    alternatives = ("steps", "seconds")

    steps: int | None = 10
    seconds: float | None = None


class Job(Config):
    budget: Budget = Budget()


def test_one_of_two_alternatives_unsets_the_other_unless_both_are_given() -> None:
    assert Budget().override(["seconds=5"]) == Budget(steps=None, seconds=5)
    assert Job().override(["budget.seconds=5"]).budget == Budget(steps=None, seconds=5)
    assert Budget(steps=None, seconds=5).override(["steps=3"]) == Budget(steps=3)
    assert Budget().override(["steps=3", "seconds=5"]) == Budget(steps=3, seconds=5)
    assert Budget().override(["seconds=null"]) == Budget()
