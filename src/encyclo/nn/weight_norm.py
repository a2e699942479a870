"""Weight normalisation (Salimans & Kingma 2016, arXiv 1602.07868), put on for training and folded for inference."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["fold_weight_norm", "is_weight_normed", "put_weight_norm", "redraw_normed"]


def is_weight_normed(module: nn.Module) -> bool:
    """Whether the module's `weight` is split into a direction and a gain."""
    return parametrize.is_parametrized(module, "weight")


def put_weight_norm(module: nn.Module) -> nn.Module:
    """Split the weights below `module` into direction v and gain g = |v|, one gain per slice of the first dimension.

    What the layers compute does not change. A part that defines `weight_normed()` says which of its layers take part;
    elsewhere every convolution does. Layers that are split already stay as they are. Returns `module`.
    """
    for layer in _layers(module):
        if not is_weight_normed(layer):
            weight_norm(layer, "weight", dim=0)
    return module


def fold_weight_norm(module: nn.Module) -> nn.Module:
    """Write w = g v / |v| back as plain weights, everywhere in `module`; returned. Computes the same up to rounding."""
    for layer in list(module.modules()):
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d | nn.Conv2d) and is_weight_normed(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module


def redraw_normed(module: nn.Module) -> None:
    """Draw torch's default initial values for all weight- or spectral-normed convolutions below `module`.

    Their own `reset_parameters` would write into a weight that is computed anew at the next look.
    """
    for layer in module.modules():
        if not (isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d) and is_weight_normed(layer)):
            continue
        fresh = torch.empty_like(layer.weight)
        nn.init.kaiming_uniform_(fresh, a=5**0.5)
        held: Any = layer.parametrizations["weight"]  # type: ignore[index]
        with torch.no_grad():
            if len(list(held.parameters())) == 2:
                layer.weight = fresh
            else:  # spectral norm keeps the weight itself, and estimates of its singular vectors
                held.original.copy_(fresh)
                for estimate in held[0].buffers():
                    estimate.copy_(F.normalize(torch.randn_like(estimate), dim=0))
            if layer.bias is not None:
                bound = fresh[0].numel() ** -0.5
                nn.init.uniform_(layer.bias, -bound, bound)


def _layers(module: nn.Module) -> list[nn.Module]:
    own = getattr(module, "weight_normed", None)
    if callable(own):
        return list(own())
    if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Conv2d):
        return [module]
    return [layer for child in module.children() for layer in _layers(child)]
