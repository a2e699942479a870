"""The running average of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def local(tensor: Tensor) -> Tensor:
    """This process's share of a sharded tensor; any other tensor itself."""
    share = getattr(tensor, "to_local", None)  # importing DTensor to ask for it costs a second
    return share() if share is not None else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor (all processes must ask for it); any other tensor itself."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather is not None else tensor


class Average:
    """An exponential moving average of parameters by name.

    After step n (1, 2, ...) average <- average + (1 - d) (weights - average) with d = min(decay, n / (n + 9)): the ramp
    keeps the initial weights from ruling a short run; a long one has `decay` all along.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.parameters = dict(parameters)
        self.tensors = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    def _local(self) -> tuple[list[Tensor], list[Tensor]]:
        """This process's shares of averages and weights; they share memory with the whole."""
        return [local(t) for t in self.tensors.values()], [local(p.detach()) for p in self.parameters.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step`."""
        if self._pairs is None:  # while it trains, nothing moves
            self._pairs = self._local()
        average, weights = self._pairs
        torch._foreach_lerp_(average, weights, 1 - min(self.decay, step / (step + 9)))

    def settle(self, parameters: Mapping[str, nn.Parameter] | None = None) -> None:
        """Training is over: the parameters may move from now on, or (`parameters`) be others, no longer sharded."""
        self._pairs = None
        if parameters is not None:
            self.parameters = {name: parameters[name] for name in self.parameters}
            self.tensors = {name: full(tensor) for name, tensor in self.tensors.items()}

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The parameters hold the averages inside, their own values again after it."""
        average, weights = self._local()
        kept = [weight.clone() for weight in weights]
        with torch.no_grad():
            torch._foreach_copy_(weights, average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, kept)
