"""The noise-prediction objective (Ho et al. 2020, arXiv 2006.11239, equation 14)."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def noise_prediction(
    predict: Callable[[Tensor, Tensor], Tensor],
    clean: Float[Tensor, "b c h w"],
    scheduler: Any,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """mean ||eps - eps_theta(sqrt(a_t) x + sqrt(1 - a_t) eps, t)||^2 with t uniform.

    Args:
        predict: (noisy [b, c, h, w], t [b]) -> predicted noise.
        clean: x.
        scheduler: a diffusers scheduler with `add_noise`.
        generator: on the CPU, so that every device draws the same t and eps.
    """
    times = torch.randint(scheduler.config.num_train_timesteps, (clean.shape[0],), generator=generator)
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    times = times.to(clean.device)
    return functional.mse_loss(predict(scheduler.add_noise(clean, noise, times), times), noise)
