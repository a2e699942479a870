"""Rate against quality: bits per pixel, the rate at a quality, the Bjøntegaard difference between two codecs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from encyclo.errors import InputError

__all__ = ["bd_rate", "bits_per_pixel", "rate_at"]


def bits_per_pixel(size: int, frames: int, height: int, width: int) -> float:
    """Bits of a file of `size` bytes for each pixel (of three colours) of a clip."""
    return 8 * size / (frames * height * width)


def _curve(rates: Sequence[float], qualities: Sequence[float]) -> tuple[Any, float, float]:
    """log10(rate) as a function of quality by PCHIP, and the qualities where it begins and ends."""
    from scipy.interpolate import PchipInterpolator

    if len(rates) != len(qualities) or len(rates) < 2:
        raise InputError(f"{len(rates)} rates and {len(qualities)} qualities: a curve needs at least two points of both")
    order = np.argsort(qualities)
    x, y = np.asarray(qualities, dtype=np.float64)[order], np.asarray(rates, dtype=np.float64)[order]
    if not (y > 0).all() or not (np.diff(x) > 0).all():
        raise InputError("a rate curve needs rates above 0 and different qualities")
    return PchipInterpolator(x, np.log10(y)), float(x[0]), float(x[-1])


def rate_at(quality: float, rates: Sequence[float], qualities: Sequence[float]) -> float:
    """The rate at which a codec reaches `quality`, its log interpolated by PCHIP between measured points.

    Raises:
        InputError: a quality outside the measured ones: this is no extrapolation.
    """
    curve, low, high = _curve(rates, qualities)
    if not low <= quality <= high:
        raise InputError(f"quality {quality:.4g} lies outside the measured {low:.4g}..{high:.4g}: measure more points")
    return float(10.0 ** curve(quality))


def bd_rate(
    anchor_rates: Sequence[float], anchor_qualities: Sequence[float], rates: Sequence[float], qualities: Sequence[float]
) -> float:
    """Average difference in rate at equal quality, in per cent of the anchor's; negative saves bits.

    10 to the mean over the shared range of qualities of log10(rate) - log10(anchor rate), minus 1. The curves
    are PCHIP interpolations (Bjøntegaard's later proposal, VCEG-AI11, and the reference of today's codec tests), not the
    original cubic fit.

    Raises:
        InputError: fewer than two points, or curves that share no range of qualities.
    """
    anchor, low, high = _curve(anchor_rates, anchor_qualities)
    ours, ours_low, ours_high = _curve(rates, qualities)
    low, high = max(low, ours_low), min(high, ours_high)
    if low >= high:
        raise InputError(f"the curves share no range of qualities ({low:.4g} to {high:.4g}): measure points that overlap")
    mean = float(ours.integrate(low, high) - anchor.integrate(low, high)) / (high - low)
    return 100 * (10.0**mean - 1)
