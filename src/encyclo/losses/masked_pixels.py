"""Regression of hidden patches in pixels."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from encyclo.nn.patch import patchify

__all__ = ["masked_pixel_loss", "patch_targets"]


def patch_targets(images: Float[Tensor, "b c h w"], patch: int, *, normalise: bool) -> Float[Tensor, "b n p"]:
    """The patches themselves or, with `normalise`, each with its own mean taken off and divided by its own deviation.

    He et al. 2021, section 4.1 ("normalised pixels"): unbiased variance, 1e-6 added under the root.
    """
    target = patchify(images, patch)
    if not normalise:
        return target
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    return (target - mean) / (variance + 1e-6).sqrt()


def masked_pixel_loss(
    predicted: Float[Tensor, "b n p"], target: Float[Tensor, "b n p"], hidden: Bool[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """Mean squared error over the values of hidden patches alone (He et al. 2021, section 3)."""
    error = (predicted - target).square().mean(-1)
    return (error * hidden).sum() / hidden.sum()
