"""PSNR, SSIM and MS-SSIM against closed forms and torchmetrics."""

import math

import pytest
import torch

from encyclo.errors import InputError
from encyclo.metrics.image import MS_SSIM_SMALLEST, ms_ssim, psnr, ssim


def _noisy(side: int, amount: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(3, 3, 8, 8, generator=generator), size=side, mode="bicubic")
    image = smooth.clamp(0, 1)
    return image, (image + amount * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def test_psnr_of_a_constant_error_is_its_closed_form() -> None:
    target = torch.full((2, 3, 4, 4), 0.5)
    images = target + torch.tensor([0.1, 0.01]).reshape(2, 1, 1, 1)
    assert psnr(images, target).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


def test_psnr_of_bytes_equals_that_of_floats() -> None:
    a = torch.randint(0, 256, (20, 3, 5, 7), dtype=torch.uint8)
    b = torch.randint(0, 256, (20, 3, 5, 7), dtype=torch.uint8)
    assert torch.allclose(psnr(a, b), psnr(a / 255, b / 255), atol=1e-5)
    expected = [-10 * math.log10(float(((x / 255 - y / 255) ** 2).mean())) for x, y in zip(a, b, strict=True)]
    assert psnr(a, b).tolist() == pytest.approx(expected, abs=1e-3)


def test_equal_images_have_90_db_and_similarity_1() -> None:
    image, _ = _noisy(MS_SSIM_SMALLEST, 0.0)
    assert torch.allclose(psnr(image, image), torch.full((3,), 90.0), atol=1e-3)
    assert torch.allclose(ssim(image, image), torch.ones(3), atol=1e-5)
    assert torch.allclose(ms_ssim(image, image), torch.ones(3), atol=1e-5)


def test_ssim_of_two_constants_is_the_luminance_term() -> None:
    a, b = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert float(ssim(a, b)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("side", [176, 231])
@pytest.mark.parametrize("amount", [0.02, 0.2])
def test_similarities_equal_torchmetrics(side: int, amount: float) -> None:
    library = pytest.importorskip("torchmetrics.functional.image")
    a, b = _noisy(side, amount)
    options = {"data_range": 1.0, "reduction": "none"}
    _, maps = library.structural_similarity_index_measure(a, b, return_full_image=True, **options)
    # torchmetrics 1.9 averages over a border of mirrored pixels too; Wang et al. do not
    assert torch.allclose(ssim(a, b), maps[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=2e-5)
    theirs = library.multiscale_structural_similarity_index_measure(a, b, **options)
    assert torch.allclose(ms_ssim(a, b), theirs, atol=5e-4)  # the border enters the coarsest scale's luminance only


def test_small_and_unequal_images_are_refused() -> None:
    small = torch.rand(1, 3, 10, 40)
    with pytest.raises(InputError, match="SSIM needs images of at least 11x11 pixels, these are 40x10"):
        ssim(small, small)
    with pytest.raises(InputError, match="at least 176x176"):
        ms_ssim(torch.rand(1, 3, 175, 300), torch.rand(1, 3, 175, 300))
    with pytest.raises(InputError, match="cannot be compared"):
        psnr(small, small[:, :, :5])
