"""Reconstruction with an L1 penalty, and ghost gradients for features that never fire."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def reconstruction(
    output: Float[Tensor, "n d"], target: Float[Tensor, "n d"], form: Literal["normalised", "plain"]
) -> Float[Tensor, ""]:
    """The squared error of a dictionary.

    `plain`: ||y - m||^2 per token, averaged over tokens (the paper's text). `normalised`: the element-wise squared
    error divided by the token's target norm, averaged over tokens and dimensions (the released code; the published L1
    coefficients belong to it).
    """
    error = (output - target).square()
    if form == "plain":
        return error.sum(1).mean()
    scaled: Tensor = error / target.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return scaled.mean()


def sparsity(features: Float[Tensor, "n f"]) -> Float[Tensor, ""]:
    """||z||_1 per token, averaged over tokens."""
    return features.sum(1).mean()


def ghost(
    preactivations: Float[Tensor, "n f"],
    decoder: Float[Tensor, "f d"],
    residual: Float[Tensor, "n d"],
    dead: Bool[Tensor, " f"],
    main: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Gradient for silent features: exp(pre-activation) of the dead, decoded, fitted to the residual.

    The ghost output is scaled to half the residual's norm, and the term to the size of the main loss, both detached.

    Args:
        preactivations: before the ReLU.
        decoder: unit rows.
        residual: target - output (the released code takes it against the input, a slip for transcoders); detached here.
        dead: features silent for the whole window.
        main: the main loss.
    """
    if not bool(dead.any()):
        return main.new_zeros(())
    residual = residual.detach()
    output = torch.exp(preactivations[:, dead].clamp(max=20)) @ decoder[dead]
    scale = residual.norm(dim=1, keepdim=True) / (2 * output.norm(dim=1, keepdim=True) + 1e-6)
    squared: Tensor = (output * scale.detach() - residual).square()
    error = (squared / residual.norm(dim=1, keepdim=True).clamp(min=1e-6)).mean()
    scaled: Tensor = error * (main / (error + 1e-6)).detach()
    return scaled
