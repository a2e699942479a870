import torch
from diffusers import DDPMScheduler

from encyclo.losses.denoising import denoising_error


def test_a_perfect_predictor_has_no_loss_and_a_silent_one_unit_loss() -> None:
    scheduler = DDPMScheduler()
    clean = torch.randn(64, 1, 8, 8)

    def perfect(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        a = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        return (noisy - a.sqrt() * clean) / (1 - a).sqrt()

    exact = denoising_error(perfect, clean, scheduler, torch.Generator().manual_seed(0))
    silent = denoising_error(lambda x, t: torch.zeros_like(x), clean, scheduler, torch.Generator().manual_seed(0))
    assert float(exact) < 1e-5
    assert abs(float(silent) - 1) < 0.1


def test_velocity_is_the_derivative_along_the_arc() -> None:
    """With sqrt(a) = cos(phi), sqrt(1 - a) = sin(phi), the noisy x turns by d x / d phi = v."""
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    clean = torch.randn(4, 1, 2, 2)

    def perfect(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        a = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        noise = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        return a.sqrt() * noise - (1 - a).sqrt() * clean

    error = denoising_error(perfect, clean, scheduler, torch.Generator().manual_seed(0))
    assert float(error) < 1e-6
