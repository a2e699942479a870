"""Sampling from a diffusion UNet with diffusers' schedulers."""

import sys
from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from encyclo.config import Config


class NoiseSchedule(Config):
    """The forward process: T steps with variances beta_t; and what the network predicts."""

    train_steps: int = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    prediction: Literal["noise", "velocity"] = "noise"
    clip_sample: bool = True
    """Clip the predicted clean sample to [-1, 1]: for pixels under a noisy sampler; wrong for unbounded latents, and a
    deterministic sampler loses contrast by it."""

    def training_scheduler(self) -> Any:
        """diffusers' DDPMScheduler, which adds noise in training."""
        from diffusers import DDPMScheduler

        return DDPMScheduler(
            num_train_timesteps=self.train_steps,
            beta_schedule=self.beta_schedule,
            clip_sample=self.clip_sample,
            timestep_spacing="trailing",  # from the last step on, where z_T is pure noise (Lin et al. 2023)
            prediction_type="epsilon" if self.prediction == "noise" else "v_prediction",
        )

    def sampler(self, name: Literal["ddim", "dpm++", "ddpm"]) -> Any:
        """A sampling scheduler: DDIM (eta 0 by default), DPM-Solver++ of second order, or DDPM."""
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

        base = self.training_scheduler()
        if name == "ddim":
            return DDIMScheduler.from_config(base.config)
        if name == "dpm++":
            return DPMSolverMultistepScheduler.from_config(base.config, algorithm_type="dpmsolver++", solver_order=2)
        return base


@torch.no_grad()
def sample(
    unet: nn.Module,
    scheduler: Any,
    noise: Float[Tensor, "b c h w"],
    *,
    steps: int,
    labels: Int64[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b c h w"]:
    """Noise to samples, one network call and one scheduler step per time step.

    Args:
        unet: predicts the noise (or the velocity); called as `unet(z, t, class_labels=..., return_dict=False)`.
        scheduler: a diffusers scheduler.
        noise: z_T, of unit variance.
        steps: sampler steps.
        labels: classes, for a class-conditional network.
        generator: for samplers that add noise.
    """
    scheduler.set_timesteps(steps)
    latent = noise * float(scheduler.init_noise_sigma)
    told = {} if labels is None else {"class_labels": labels}
    extra: dict[str, Any] = {} if generator is None else {"generator": generator}
    for time in _shown(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latent, time)
        predicted = unet(scaled, time, return_dict=False, **told)[0]
        latent = scheduler.step(predicted, time, latent, return_dict=False, **extra)[0]
    return latent


def _shown(times: Tensor) -> Iterable[Tensor]:
    """The time steps, with a bar on a terminal that goes when they are done."""
    if not sys.stderr.isatty():
        return times
    from rich.console import Console
    from rich.progress import track

    return track(times, "sampling", total=len(times), console=Console(stderr=True), transient=True)
