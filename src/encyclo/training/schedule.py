"""The learning rate over the budget, in closed form."""

import math

from encyclo.errors import InputError
from encyclo.training.config import Schedule


def factor(schedule: Schedule, done: float) -> float:
    """What the peak learning rate is multiplied by when the share `done` in [0, 1] of the budget is used up.

    With w the warm-up, s the factor at the start, f the one at the end and t = (done - w) / (1 - w):
    s + (1 - s) done / w below w; then 1 (constant), 1 - (1 - f) t (linear), f + (1 - f)(1 + cos(pi t)) / 2 (cosine)
    or f ** t (exponential).

    Raises:
        InputError: an exponential schedule that is to end at 0.
    """
    done = min(max(done, 0.0), 1.0)
    if done < schedule.warmup:
        return schedule.start + (1 - schedule.start) * done / schedule.warmup
    t = (done - schedule.warmup) / (1 - schedule.warmup)
    if schedule.shape == "constant":
        return 1.0
    if schedule.shape == "linear":
        return 1 - (1 - schedule.final) * t
    if schedule.shape == "cosine":
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * t)) / 2
    if schedule.final <= 0:
        raise InputError("schedule.final=0: an exponential schedule never reaches 0, give a final factor above it")
    return float(schedule.final**t)
