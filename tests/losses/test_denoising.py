import torch
from diffusers import DDPMScheduler

from encyclo.losses.denoising import noise_prediction


def test_a_perfect_predictor_has_no_loss_and_a_silent_one_unit_loss() -> None:
    scheduler = DDPMScheduler()
    clean = torch.randn(64, 1, 8, 8)

    def perfect(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        a = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        return (noisy - a.sqrt() * clean) / (1 - a).sqrt()

    exact = noise_prediction(perfect, clean, scheduler, torch.Generator().manual_seed(0))
    silent = noise_prediction(lambda x, t: torch.zeros_like(x), clean, scheduler, torch.Generator().manual_seed(0))
    assert float(exact) < 1e-5
    assert abs(float(silent) - 1) < 0.1
