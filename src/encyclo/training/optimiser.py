"""Optimisers from their configurations, on torch's fused kernels."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from encyclo.training.averaging import local
from encyclo.training.config import AdamW, Optimiser


def build(config: Optimiser, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser over `parameters`.

    AdamW leaves tensors of one dimension (biases, norms) undecayed unless `decay_vectors`; SGD decays all, as its
    papers do. With `decay_by="schedule"` the step theta -= lr_t / lr_peak * weight_decay * theta is AdamW's own with
    the decay divided by lr_peak.
    """
    parameters = list(parameters)
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    if not isinstance(config, AdamW):
        groups = _groups(parameters, lambda p: config.weight_decay)
        kind = FusedSGD if fused else torch.optim.SGD
        return kind(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    decay = config.weight_decay / config.lr if config.decay_by == "schedule" else config.weight_decay
    groups = _groups(parameters, lambda p: decay if p.ndim >= 2 or config.decay_vectors else 0.0)
    return (FusedAdamW if fused else torch.optim.AdamW)(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def _groups(parameters: Iterable[nn.Parameter], decay: Callable[[nn.Parameter], float]) -> list[dict[str, Any]]:
    """Parameters of one decay, device and type together: what a fused kernel takes at one go."""
    groups: dict[Any, list[nn.Parameter]] = defaultdict(list)
    for p in parameters:
        groups[decay(p), p.device, p.dtype].append(p)
    return [{"params": members, "weight_decay": key[0]} for key, members in groups.items()]


def _bare(method: Callable[..., Any]) -> Any:
    """A method of torch's without the decorator that imports the compiler (2 seconds) to keep it away from it."""
    return getattr(method, "__wrapped__", method)


class _Fused(torch.optim.Optimizer):
    """torch's optimiser with nothing but its fused kernel in a step.

    The kernel takes a fraction of what torch wraps around it in every step, and the wrapping imports the compiler:
    seconds at the start of every training.
    """

    add_param_group = _bare(torch.optim.Optimizer.add_param_group)
    state_dict = _bare(torch.optim.Optimizer.state_dict)
    load_state_dict = _bare(torch.optim.Optimizer.load_state_dict)
    zero_grad = _bare(torch.optim.Optimizer.zero_grad)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step over all parameters that have a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters)

    step.hooked = True  # type: ignore[attr-defined]  # torch would wrap it in its profiler

    @abstractmethod
    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """One step of the kernel over parameters that have gradients."""


class FusedAdamW(_Fused, torch.optim.AdamW):
    """`torch.optim.AdamW(..., fused=True)`: the same numbers, the same state."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, fused=True, **options)

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self.state[p] for p in parameters]
        for p, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            _here(parameters),
            _here([p.grad for p in parameters]),
            _here([state["exp_avg"] for state in states]),
            _here([state["exp_avg_sq"] for state in states]),
            [],
            steps,
            amsgrad=False,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


class FusedSGD(_Fused, torch.optim.SGD):
    """`torch.optim.SGD(..., fused=True)`: the same numbers, the same state."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, fused=True, **options)

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        new = {p for p in parameters if not self.state[p]}
        if group["momentum"]:
            for p in new:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        for first in (True, False):  # a parameter's first gradient is its first momentum
            chosen = [p for p in parameters if (p in new) == first]
            if chosen:
                torch._fused_sgd_(
                    _here(chosen),
                    _here([p.grad for p in chosen]),
                    _here([self.state[p]["momentum_buffer"] for p in chosen]) if group["momentum"] else [],
                    weight_decay=group["weight_decay"],
                    momentum=group["momentum"],
                    lr=group["lr"],
                    dampening=0.0,
                    nesterov=group["nesterov"],
                    maximize=False,
                    is_first_step=first,
                )


def _here(tensors: list[Any]) -> list[Tensor]:
    """This process's shares: the kernels work element by element."""
    return [local(tensor) for tensor in tensors] if hasattr(tensors[0], "to_local") else tensors
