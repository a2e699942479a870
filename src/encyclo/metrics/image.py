"""How close images are: PSNR, SSIM, MS-SSIM, each for every image of a batch."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from encyclo.errors import InputError

__all__ = ["MSE_FLOOR", "MS_SSIM_SMALLEST", "SSIM_SMALLEST", "ms_ssim", "psnr", "ssim"]

MSE_FLOOR = 1e-9
"""Added to the mean squared error, so that equal images have 90 dB and not infinitely many (HNeRV's code)."""
WINDOW, DEVIATION = 11, 1.5
"""Pixels and standard deviation of SSIM's Gaussian window."""
C1, C2 = 0.01**2, 0.03**2
"""SSIM's constants, for images of which 1 is white."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM's five scales, the finest first."""
SSIM_SMALLEST = WINDOW
"""Least side of an image, in pixels, for SSIM."""
MS_SSIM_SMALLEST = WINDOW << len(SCALE_WEIGHTS) - 1
"""Least side for MS-SSIM: 11 pixels must be left after four halvings."""
_CHUNK = 16

Images = Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"]
Targets = Float[Tensor, "_ _ _ _"] | UInt8[Tensor, "_ _ _ _"]  # compared with the images' shape in so many words


def _pair(images: Images, targets: Targets) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    a, b = (x.float() / 255 if x.dtype == torch.uint8 else x.float() for x in (images, targets))
    return a, b


def _alike(images: Images, targets: Targets) -> None:
    if images.shape != targets.shape or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)} cannot be compared with {tuple(targets.shape)}")


def psnr(images: Images, targets: Targets) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each image in dB: -10 log10(mean squared error over channels and pixels + 1e-9).

    The mean over images of this is the usual figure for a video; it is not the PSNR of the mean error.

    Args:
        images, targets: bytes 0..255, or floats of which 1 is white.
    """
    _alike(images, targets)
    out = []
    for part in zip(torch.split(images, _CHUNK), torch.split(targets, _CHUNK), strict=True):
        a, b = _pair(*part)
        out.append(-10 * torch.log10((a - b).square().mean((1, 2, 3)) + MSE_FLOOR))
    return torch.cat(out)


def _blur(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """The Gaussian window's weighted mean wherever the window fits whole."""
    place = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (place / DEVIATION) ** 2)
    row = (weights / weights.sum()).expand(x.shape[1], 1, 1, WINDOW)
    return functional.conv2d(functional.conv2d(x, row, groups=len(row)), row.mT, groups=len(row))


def _similarity(
    a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """SSIM of each image, and its contrast and structure alone: means over channels and places."""
    mean_a, mean_b = _blur(a), _blur(b)
    spread = (_blur(a * a) - mean_a**2).clamp(min=0) + (_blur(b * b) - mean_b**2).clamp(min=0)
    together = _blur(a * b) - mean_a * mean_b
    contrast = (2 * together + C2) / (spread + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return (luminance * contrast).mean((1, 2, 3)), contrast.mean((1, 2, 3))


def ssim(images: Images, targets: Targets) -> Float[Tensor, " n"]:
    """Structural similarity of each image (Wang et al. 2004): Gaussian window 11x11, deviation 1.5, K = 0.01 and 0.03.

    The mean over channels and over all places where the window fits whole.

    Raises:
        InputError: a side below 11 pixels, into which the window does not fit.
    """
    _alike(images, targets)
    _large_enough(images, SSIM_SMALLEST, "SSIM")
    parts = zip(torch.split(images, _CHUNK), torch.split(targets, _CHUNK), strict=True)
    return torch.cat([_similarity(*_pair(*part))[0] for part in parts])


def ms_ssim(images: Images, targets: Targets) -> Float[Tensor, " n"]:
    """Multi-scale structural similarity of each image (Wang et al. 2003), the video papers' MS-SSIM.

    Contrast and structure on five scales, each half the one before (2x2 means), to the power of their weights, times
    the luminance of the coarsest; a negative scale counts as 0.

    Raises:
        InputError: a side below 176 pixels: the window does not fit on the coarsest scale.
    """
    _alike(images, targets)
    _large_enough(images, MS_SSIM_SMALLEST, "MS-SSIM")
    out = []
    for part in zip(torch.split(images, _CHUNK), torch.split(targets, _CHUNK), strict=True):
        a, b = _pair(*part)
        product = torch.ones(len(a), device=a.device)
        for scale, weight in enumerate(SCALE_WEIGHTS):
            whole, contrast = _similarity(a, b)
            last = scale == len(SCALE_WEIGHTS) - 1
            product = product * (whole if last else contrast).clamp(min=0) ** weight
            if not last:
                a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
        out.append(product)
    return torch.cat(out)


def _large_enough(images: Images, least: int, name: str) -> None:
    height, width = images.shape[-2:]
    if min(height, width) < least:
        raise InputError(
            f"{name} needs images of at least {least}x{least} pixels, these are {width}x{height}: use PSNR instead"
        )
