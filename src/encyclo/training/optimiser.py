"""Optimisers from their configurations, in torch's fastest implementation for the device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from encyclo.training.config import AdamW, Optimiser


def build(config: Optimiser, parameters: Iterable[nn.Parameter], *, fused: bool = True) -> torch.optim.Optimizer:
    """The optimiser over `parameters`.

    AdamW leaves tensors of one dimension (biases, norms) undecayed unless `decay_vectors`; SGD decays all, as its
    papers do. With `decay_by="schedule"` the step theta -= lr_t / lr_peak * weight_decay * theta is AdamW's own with
    the decay divided by lr_peak.

    The fused kernels are 3 to 5 times as fast as torch's default on a CPU, and equal to rounding.
    """
    parameters = list(parameters)
    fused = fused and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    implementation: dict[str, Any] = {"fused": True} if fused else {"foreach": True}
    if not isinstance(config, AdamW):
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            **implementation,
        )
    decay = config.weight_decay / config.lr if config.decay_by == "schedule" else config.weight_decay
    groups = [{"params": parameters, "weight_decay": decay}]
    if decay and not config.decay_vectors:
        matrices = [p for p in parameters if p.ndim >= 2]
        vectors = [p for p in parameters if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, **implementation)
