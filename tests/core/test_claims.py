import math
from typing import Any

import pytest

from encyclo.experiment import Claim, _judge, _thin


def arms(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    return {"a": {"metrics": {"m": ours}}, "b": {"metrics": {"m": theirs, "n": theirs}}}


def verdict(claim: Claim, ours: list[float], theirs: list[float]) -> str:
    return str(_judge(claim, arms(ours, theirs))["verdict"])


BASE = {"statement": "s", "metric": "m", "system": "a", "rival": "b"}


@pytest.mark.parametrize(
    ("claim", "ours", "theirs", "expected"),
    [
        (Claim(**BASE, by=1.0), [3.0, 3.5], [2.0, 2.0], "shown"),
        (Claim(**BASE, by=1.0), [3.0, 2.9], [2.0, 2.0], "not shown"),
        (Claim(**BASE, by=1.0, every_seed=False), [3.4, 2.9], [2.0, 2.0], "shown"),
        (Claim(**BASE), [2.0], [2.0], "not shown"),  # a tie shows nothing
        (Claim(**BASE, better="lower"), [1.0, 1.0], [2.0, 2.0], "shown"),
        (Claim(**BASE, better="lower", by=2.0), [1.0], [2.0], "not shown"),
        (Claim(**BASE, times=3.0), [6.0], [2.0], "shown"),
        (Claim(**BASE, times=3.0), [5.9], [2.0], "not shown"),
        (Claim(**BASE, times=0.5, better="lower"), [1.0], [2.0], "shown"),
        (Claim(**BASE, times=0.5, better="lower"), [1.1], [2.0], "not shown"),
        (Claim(**BASE, beyond_spread=True), [3.0, 2.2, 5.0], [2.0, 2.0, 2.0], "not shown"),  # 1.4 apart, spread 1.44
        (Claim(**BASE, beyond_spread=True), [3.0, 3.1, 3.2], [2.0, 2.0, 2.1], "shown"),
        (Claim(**BASE, rival_metric="n", by=0.5), [3.0], [2.0], "shown"),
        (Claim(**BASE), [math.nan], [1.0], "not shown"),
        (Claim(**{**BASE, "metric": "absent"}), [1.0], [0.0], "not shown"),
    ],
)
def test_verdicts(claim: Claim, ours: list[float], theirs: list[float], expected: str) -> None:
    assert verdict(claim, ours, theirs) == expected


def test_a_bound_needs_no_rival() -> None:
    claim = Claim(statement="s", metric="m", system="a", bound=1e-5, better="lower")
    told = _judge(claim, arms([5e-6, 9e-6], []))
    assert told["verdict"] == "shown"
    assert "at most 1e-05" in told["sentence"]
    assert _judge(claim, arms([5e-6, 2e-5], []))["verdict"] == "not shown"


def test_curves_are_thinned_with_both_ends() -> None:
    points = [(i, i / 10, float(i)) for i in range(1001)]
    kept = _thin(points, most=50)
    assert len(kept) <= 51
    assert kept[0][0] == 0
    assert kept[-1][0] == 1000
    assert _thin([(1, 0.1, math.nan)]) == []
