"""How close images are: PSNR, SSIM, MS-SSIM, each for every image of a batch."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from encyclo.errors import InputError

__all__ = ["MS_SSIM_SMALLEST", "SSIM_SMALLEST", "ms_ssim", "psnr", "ssim"]

MSE_FLOOR = 1e-9
"""Added to the mean squared error, so that equal images have 90 dB and not infinitely many (HNeRV's code)."""
SSIM_SMALLEST = 11
"""Least side of an image, in pixels, for SSIM's 11x11 window."""
MS_SSIM_SMALLEST = 176
"""Least side for MS-SSIM: 11 pixels must be left after four halvings."""
_CHUNK = 16

Images = Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"]


def _pair(images: Images, targets: Images) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    if images.shape != targets.shape:
        raise InputError(f"images of shape {tuple(images.shape)} cannot be compared with {tuple(targets.shape)}")
    a, b = (x.float() / 255 if x.dtype == torch.uint8 else x.float() for x in (images, targets))
    return a, b


def psnr(images: Images, targets: Images) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each image in dB: -10 log10(mean squared error over channels and pixels + 1e-9).

    The mean over images of this is the usual figure for a video; it is not the PSNR of the mean error.

    Args:
        images, targets: bytes 0..255, or floats of which 1 is white.
    """
    out = []
    for image, target in zip(images.split(_CHUNK), targets.split(_CHUNK), strict=True):
        a, b = _pair(image, target)
        out.append(-10 * torch.log10((a - b).square().mean((1, 2, 3)) + MSE_FLOOR))
    return torch.cat(out)


def ssim(images: Images, targets: Images) -> Float[Tensor, " n"]:
    """Structural similarity of each image (Wang et al. 2004): Gaussian window 11x11, deviation 1.5, K = 0.01 and 0.03.

    Raises:
        InputError: a side below 11 pixels, into which the window does not fit.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _large_enough(images, SSIM_SMALLEST, "SSIM")
    out = []
    for image, target in zip(images.split(_CHUNK), targets.split(_CHUNK), strict=True):
        a, b = _pair(image, target)
        value = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        assert isinstance(value, Tensor)
        out.append(value.reshape(-1))
    return torch.cat(out)


def ms_ssim(images: Images, targets: Images) -> Float[Tensor, " n"]:
    """Multi-scale structural similarity of each image over five scales (Wang et al. 2003), the video papers' MS-SSIM.

    Raises:
        InputError: a side below 176 pixels: the window does not fit on the coarsest scale.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    _large_enough(images, MS_SSIM_SMALLEST, "MS-SSIM")
    out = []
    for image, target in zip(images.split(_CHUNK), targets.split(_CHUNK), strict=True):
        a, b = _pair(image, target)
        # the reduction "none" of torchmetrics 1.9 keeps one value for each image
        value = multiscale_structural_similarity_index_measure(a, b, data_range=1.0, reduction="none", normalize="relu")
        out.append(value.reshape(-1))
    return torch.cat(out)


def _large_enough(images: Images, least: int, name: str) -> None:
    height, width = images.shape[-2:]
    if min(height, width) < least:
        raise InputError(f"{name} needs images of at least {least}x{least} pixels, these are {width}x{height}: use PSNR or enlarge")
