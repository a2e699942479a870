import math

import pytest

from encyclo.errors import InputError
from encyclo.training import Schedule
from encyclo.training.schedule import factor


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "exponential"])
def test_every_shape_warms_up_in_a_line_and_starts_its_fall_at_one(shape):
    schedule = Schedule(shape=shape, warmup=0.2, start=0.1, final=0.01)
    assert factor(schedule, 0.0) == pytest.approx(0.1)
    assert factor(schedule, 0.05) == pytest.approx(0.1 + 0.9 / 4)
    assert factor(schedule, 0.2) == pytest.approx(1.0)
    assert factor(schedule, 1.0) == pytest.approx(1.0 if shape == "constant" else 0.01)


def test_closed_forms_half_way_down():
    half = {
        "constant": 1.0,
        "linear": 0.505,
        "cosine": 0.01 + 0.99 * (1 + math.cos(math.pi / 2)) / 2,
        "exponential": 0.1,
    }
    for shape, value in half.items():
        assert factor(Schedule(shape=shape, warmup=0.5, final=0.01), 0.75) == pytest.approx(value)


def test_without_warm_up_the_first_step_is_at_the_peak():
    assert factor(Schedule(), 0.0) == 1.0
    assert factor(Schedule(), 1.0) == pytest.approx(0.0)
    assert factor(Schedule(), 1.7) == pytest.approx(0.0)  # past the budget it stays at its end


def test_an_exponential_schedule_cannot_end_at_zero():
    with pytest.raises(InputError, match=r"schedule\.final=0"):
        factor(Schedule(shape="exponential"), 0.5)
