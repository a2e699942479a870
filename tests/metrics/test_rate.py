"""Bits per pixel and differences between rate curves against closed forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encyclo.errors import InputError
from encyclo.metrics.rate import bd_rate, bits_per_pixel, quality_at, rate_at

RATES, QUALITIES = [0.1, 0.2, 0.4, 0.8], [30.0, 33.0, 36.0, 39.0]


def test_bits_per_pixel() -> None:
    assert bits_per_pixel(1000, 10, 20, 40) == 1.0


@given(st.floats(0.1, 10))
def test_a_codec_that_takes_f_times_the_rate_differs_by_that(factor: float) -> None:
    scaled = [factor * r for r in RATES]
    assert bd_rate(RATES, QUALITIES, scaled, QUALITIES) == pytest.approx(100 * (factor - 1), abs=1e-6)


def test_the_curve_is_exact_where_the_log_rate_is_linear() -> None:
    assert rate_at(34.5, RATES, QUALITIES) == pytest.approx(0.1 * 2**1.5)
    assert rate_at(30.0, RATES, QUALITIES) == pytest.approx(0.1)


def test_quality_at_a_rate_is_the_inverse_of_the_rate_at_a_quality() -> None:
    rates, qualities = [0.1, 0.2, 0.4, 0.8], [30.0, 33.0, 36.0, 39.0]
    for quality in (30.0, 34.5, 39.0):
        assert quality_at(rate_at(quality, rates, qualities), rates, qualities) == pytest.approx(quality)
    with pytest.raises(InputError, match="outside the measured"):
        quality_at(1.0, rates, qualities)
    with pytest.raises(InputError, match="does not rise"):
        quality_at(0.15, [0.1, 0.1, 0.2], [30.0, 31.0, 32.0])


def test_only_the_shared_range_counts_and_order_does_not() -> None:
    rates, qualities = [1.6, 0.4, 0.8], [39.0, 33.0, 36.0]  # twice the rate, no point at 30 dB, shuffled
    assert bd_rate(RATES, QUALITIES, rates, qualities) == pytest.approx(100.0)


def test_the_difference_is_antisymmetric_in_the_log() -> None:
    other = [0.12, 0.19, 0.5, 0.7]
    there, back = bd_rate(RATES, QUALITIES, other, QUALITIES), bd_rate(other, QUALITIES, RATES, QUALITIES)
    assert (1 + there / 100) * (1 + back / 100) == pytest.approx(1.0)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="share no range"):
        bd_rate(RATES, QUALITIES, RATES, [q + 20 for q in QUALITIES])
    with pytest.raises(InputError, match="outside the measured"):
        rate_at(50.0, RATES, QUALITIES)
    with pytest.raises(InputError, match="at least two points"):
        rate_at(1.0, [1.0], [1.0])
    with pytest.raises(InputError, match="rates above 0"):
        rate_at(31.0, [0.0, 1.0], [30.0, 32.0])
