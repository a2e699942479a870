"""Numbers fetched from the device: all at one go, or a step late."""

from collections.abc import Sequence

import torch
from torch import Tensor


def numbers(values: Sequence[float | Tensor]) -> list[float]:
    """The values as numbers, fetched from the device at one go."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return [float(value) for value in values]
    fetched = iter(torch.stack([t.detach().double().reshape(()) for t in tensors]).tolist())
    return [next(fetched) if isinstance(value, Tensor) else float(value) for value in values]


class Lagging:
    """Numbers of each step off a CUDA device, a step late, so that the device never waits for the host."""

    def __init__(self) -> None:
        self._pending: tuple[int, Tensor, torch.cuda.Event] | None = None

    def put(self, step: int, values: Tensor) -> tuple[int, list[float]] | None:
        """Hand in a step's numbers and get those of the step before (None at first)."""
        known = self.drain()
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending = (step, host, event)
        return known

    def drain(self) -> tuple[int, list[float]] | None:
        """The numbers still under way, waited for."""
        if self._pending is None:
            return None
        step, host, event = self._pending
        self._pending = None
        event.synchronize()
        return step, list(host.tolist())
