"""Batches of uint8 images -> normalised floats on their device, with random crops and flips in training."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from encyclo.config import Config

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Augment", "normalise"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(
    images: UInt8[Tensor, "b c h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "b c h w"]:
    """(x / 255 - mean) / std by channel; one number stands for all channels."""
    shift, scale = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (mean, std))
    return images.float().div_(255).sub_(shift).div_(scale)


class Augment(Config):
    """Random resized crop (Szegedy et al. 2015) and horizontal flip, drawn per image, applied to a whole batch at once.

    A crop has an area uniform in `scale` of the image and an aspect ratio log-uniform in `ratio`, and is resized to
    the image's own size, bilinearly. `scale=(1, 1)` with `ratio=(1, 1)` crops nothing.
    """

    scale: tuple[float, float] = Field((1.0, 1.0), description="smallest and largest area of a crop")
    ratio: tuple[float, float] = Field((1.0, 1.0), description="smallest and largest width / height of a crop")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a left-right flip")

    @property
    def idle(self) -> bool:
        """Whether images pass unchanged."""
        return self.scale == (1.0, 1.0) and self.ratio == (1.0, 1.0) and self.flip == 0.0

    def __call__(
        self, images: UInt8[Tensor, "b c h w"], generator: torch.Generator | None = None
    ) -> UInt8[Tensor, "b c h w"]:
        """Augmented images, on their device.

        Args:
            images: a batch.
            generator: of the CPU, so that seeds agree across devices; None takes torch's global one.
        """
        if self.idle or not len(images):
            return images
        height, width = images.shape[-2:]
        draw = torch.rand(5, len(images), generator=generator)
        area = self.scale[0] + draw[0] * (self.scale[1] - self.scale[0])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(low + draw[1] * (high - low))
        tall = (area / ratio).sqrt().clamp(max=1.0)
        wide = (area * ratio).sqrt().clamp(max=1.0)
        middle_y = (2 * draw[2] - 1) * (1 - tall)
        middle_x = (2 * draw[3] - 1) * (1 - wide)
        sign = torch.where(draw[4] < self.flip, -1.0, 1.0)
        zero = torch.zeros_like(area)
        theta = torch.stack(
            (torch.stack((wide * sign, zero, middle_x), -1), torch.stack((zero, tall, middle_y), -1)), 1
        )
        places = F.affine_grid(
            theta.to(images.device), [len(images), images.shape[1], height, width], align_corners=False
        )
        cropped = F.grid_sample(images.float(), places, mode="bilinear", padding_mode="reflection", align_corners=False)
        return cropped.round_().clamp_(0, 255).to(torch.uint8)
