"""Objectives of diffusion models: predict the noise, or the velocity."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def denoising_error(
    predict: Callable[[Tensor, Tensor], Tensor],
    clean: Float[Tensor, "b c h w"],
    scheduler: Any,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """mean ||y - f(sqrt(a_t) x + sqrt(1 - a_t) eps, t)||^2 with t uniform.

    The scheduler's `prediction_type` says what y is: the noise eps (Ho et al. 2020, arXiv 2006.11239, equation 14) or
    the velocity sqrt(a_t) eps - sqrt(1 - a_t) x (Salimans and Ho 2022, arXiv 2202.00512, appendix D), which asks a
    network that starts near zero for less at either end.

    Args:
        predict: (noisy [b, c, h, w], t [b]) -> predicted y.
        clean: x.
        scheduler: a diffusers scheduler with `add_noise`.
        generator: on the CPU, so that every device draws the same t and eps.
    """
    times = torch.randint(scheduler.config.num_train_timesteps, (clean.shape[0],), generator=generator)
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    times = times.to(clean.device)
    noisy = scheduler.add_noise(clean, noise, times)
    velocity = scheduler.config.prediction_type == "v_prediction"
    wanted = scheduler.get_velocity(clean, noise, times) if velocity else noise
    return functional.mse_loss(predict(noisy, times), wanted)
