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
    whole = gather() if gather is not None else tensor
    wait = getattr(whole, "wait", None)  # it may still be on its way
    return wait() if wait is not None else whole


class Average:
    """An exponential moving average of parameters by name.

    After step n (1, 2, ...) average <- average + (1 - d) (weights - average) with d = min(decay, n / (n + 9)): the ramp
    keeps the initial weights from ruling a short run; a long one has `decay` all along.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}
        self.parameters: dict[str, nn.Parameter] | None = dict(parameters)
        """What is averaged, while it trains: sharded as it is, and unmoved."""
        self._pairs = self._local(self.parameters)

    def _local(self, parameters: Mapping[str, nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
        """This process's shares of averages and weights; they share memory with the whole."""
        return [local(t) for t in self.tensors.values()], [local(parameters[name].detach()) for name in self.tensors]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step`."""
        average, weights = self._pairs
        torch._foreach_lerp_(average, weights, 1 - min(self.decay, step / (step + 9)))

    def settle(self) -> None:
        """Training is over: from now on the parameters may move, or others take their places."""
        self.parameters, self._pairs = None, ([], [])
        self.tensors = {name: full(tensor) for name, tensor in self.tensors.items()}

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """The parameters of `model` hold the averages inside, their own values again after it."""
        average, weights = self._local(dict(model.named_parameters()) if self.parameters is None else self.parameters)
        kept = [weight.clone() for weight in weights]
        with torch.no_grad():
            torch._foreach_copy_(weights, average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, kept)
