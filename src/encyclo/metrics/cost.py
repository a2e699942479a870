"""What a system costs: operations, memory, time."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of one call, by torch's own counter: 2 per multiply-accumulate, attention included."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return int(counter.get_total_flops())


def peak_memory() -> int:
    """Most memory used so far, in bytes: of the GPU's allocator where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def interleaved(arms: Mapping[str, Callable[[], Any]], *, rounds: int = 5, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each arm, the arms taking turns in one process so that noise hits all alike.

    Args:
        arms: functions to time; on a GPU each call is followed by a synchronisation.
        rounds: timed turns per arm.
        warm_up: untimed turns per arm before the clock starts.
    """
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(warm_up + rounds):
        for name, call in arms.items():
            began = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warm_up:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}
