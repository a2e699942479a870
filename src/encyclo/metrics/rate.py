"""Rate against quality: bits per pixel, the rate at a quality, the Bjøntegaard difference between two codecs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from encyclo.errors import InputError

__all__ = ["bd_rate", "bits_per_pixel", "quality_at", "rate_at"]


def bits_per_pixel(size: int, frames: int, height: int, width: int) -> float:
    """Bits of a file of `size` bytes for each pixel (of three colours) of a clip."""
    return 8 * size / (frames * height * width)


def _points(rates: Sequence[float], qualities: Sequence[float]) -> tuple[Float[ndarray, " k"], Float[ndarray, " k"]]:
    """log10(rates) and qualities, in order of quality.

    Raises:
        InputError: fewer than two points, a rate that is not above 0, or a quality met twice.
    """
    if len(rates) != len(qualities) or len(rates) < 2:
        raise InputError(
            f"{len(rates)} rates and {len(qualities)} qualities: a curve needs at least two points of both"
        )
    order = np.argsort(qualities)
    x, y = np.asarray(qualities, dtype=np.float64)[order], np.asarray(rates, dtype=np.float64)[order]
    if not (y > 0).all() or not (np.diff(x) > 0).all():
        raise InputError("a rate curve needs rates above 0 and different qualities")
    return np.log10(y), x


def _curve(rates: Sequence[float], qualities: Sequence[float]) -> tuple[Any, float, float]:
    """log10(rate) as a function of quality by PCHIP, and the qualities where it begins and ends."""
    from scipy.interpolate import PchipInterpolator

    logs, x = _points(rates, qualities)
    return PchipInterpolator(x, logs), float(x[0]), float(x[-1])


def rate_at(quality: float, rates: Sequence[float], qualities: Sequence[float]) -> float:
    """The rate at which a codec reaches `quality`, its log interpolated by PCHIP between measured points.

    Raises:
        InputError: a quality outside the measured ones: this is no extrapolation.
    """
    curve, low, high = _curve(rates, qualities)
    if not low <= quality <= high:
        raise InputError(f"quality {quality:.4g} lies outside the measured {low:.4g}..{high:.4g}: measure more points")
    return float(10.0 ** curve(quality))


def quality_at(rate: float, rates: Sequence[float], qualities: Sequence[float]) -> float:
    """The quality that a codec reaches at `rate`, over log rates by PCHIP between measured points.

    Raises:
        InputError: a rate outside the measured ones, or more rate for less quality.
    """
    from scipy.interpolate import PchipInterpolator

    logs, x = _points(rates, qualities)
    if not (np.diff(logs) > 0).all():
        raise InputError("quality does not rise with the rate: quality at a rate is not defined")
    if not min(rates) <= rate <= max(rates):
        raise InputError(f"rate {rate:.4g} lies outside the measured {min(rates):.4g}..{max(rates):.4g}: measure more")
    return float(PchipInterpolator(logs, x)(np.clip(np.log10(rate), logs[0], logs[-1])))


def bd_rate(
    anchor_rates: Sequence[float], anchor_qualities: Sequence[float], rates: Sequence[float], qualities: Sequence[float]
) -> float:
    """Average difference in rate at equal quality, in per cent of the anchor's; negative saves bits.

    10 to the mean over the shared range of qualities of log10(rate) - log10(anchor rate), minus 1. The curves
    are PCHIP interpolations, as in today's codec tests, not the original cubic fit.

    Raises:
        InputError: fewer than two points, or curves that share no range of qualities.
    """
    anchor, low, high = _curve(anchor_rates, anchor_qualities)
    ours, ours_low, ours_high = _curve(rates, qualities)
    low, high = max(low, ours_low), min(high, ours_high)
    if low >= high:
        raise InputError(
            f"the curves share no range of qualities ({low:.4g} to {high:.4g}): measure points that overlap"
        )
    mean = float(ours.integrate(low, high) - anchor.integrate(low, high)) / (high - low)
    return float(100 * (10.0**mean - 1))
