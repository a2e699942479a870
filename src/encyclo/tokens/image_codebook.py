"""Small discrete image tokenizers: an image <-> one code per patch."""

from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from pydantic import Field
from torch import Tensor

from encyclo.errors import InputError
from encyclo.nn.part import Part, PartConfig
from encyclo.nn.patch import patchify, unpatchify

__all__ = ["Grid", "ImageCodebook", "KMeansCodebook", "PatchTokenizer"]

Grid = tuple[int, int]

_DISTANCES = 1 << 25
"""Most distances held at once, in numbers (128 MB)."""


class ImageCodebook(Part):
    """What a discrete image tokenizer is: learned once from images, then images -> ids on a grid -> images.

    A subclass has `codes` (how many there are) and `side` (pixels that one code stands for, at its own resolution).
    """

    codes: int
    side: int

    @property
    def ready(self) -> bool:
        """Whether the codes have been learned."""
        raise NotImplementedError

    def learn(self, images: UInt8[Tensor, "n c h w"], *, seed: int = 0) -> None:
        """Fit the codes to images (of the training split)."""
        raise NotImplementedError

    def encode(self, images: UInt8[Tensor, "b c h w"], grid: Grid) -> Int64[Tensor, "b n"]:
        """Codes of images on a grid of rows x columns, row by row."""
        raise NotImplementedError

    def decode(self, codes: Int64[Tensor, "b n"], grid: Grid) -> UInt8[Tensor, "b c h w"]:
        """Images of codes, `side` pixels a code."""
        raise NotImplementedError

    def fitted(self, images: UInt8[Tensor, "b c h w"], grid: Grid) -> UInt8[Tensor, "b c h2 w2"]:
        """The images at the size at which the grid has one code a cell: resized (antialiased) where they are not."""
        size = (grid[0] * self.side, grid[1] * self.side)
        if tuple(images.shape[-2:]) == size:
            return images
        resized = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        return resized.round().clamp(0, 255).to(torch.uint8)


class KMeansCodebook(ImageCodebook):
    """Square patches, each coded as the nearest of `codes` centres, found by mini-batch k-means (scikit-learn)."""

    class Config(PartConfig):
        """Codes, patches and the effort of the fit."""

        kind: Literal["kmeans"] = "kmeans"
        codes: int = Field(256, ge=2)
        patch: int = Field(4, ge=1, description="side of a patch in pixels")
        channels: int = Field(1, ge=1)
        sample: int = Field(100_000, ge=2, description="most patches that the centres are fitted to")
        iterations: int = Field(20, ge=1, description="passes over the sample")

    centres: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.codes, self.side = config.codes, config.patch
        self.register_buffer("centres", torch.zeros(config.codes, config.patch**2 * config.channels))

    def init_own(self) -> None:
        """No centres yet."""
        self.centres.zero_()

    @property
    def ready(self) -> bool:
        """Whether there are centres."""
        return bool(self.centres.any())

    def learn(self, images: UInt8[Tensor, "n c h w"], *, seed: int = 0) -> None:
        """Fit the centres to a sample of the images' patches; sorted by brightness, so that code 0 is the darkest.

        Raises:
            InputError: another number of channels, or fewer different patches than codes.
        """
        from sklearn.cluster import MiniBatchKMeans

        if images.shape[1] != self.config.channels:
            raise InputError(f"images with {images.shape[1]} channels given to a codebook for {self.config.channels}")
        per_image = (images.shape[2] // self.side) * (images.shape[3] // self.side)
        generator = torch.Generator().manual_seed(seed)
        most = max(1, -(-self.config.sample // max(per_image, 1)))
        chosen = torch.randperm(len(images), generator=generator)[:most]
        patches = patchify(images.cpu()[chosen], self.side).flatten(0, 1)
        kept = torch.randperm(len(patches), generator=generator)[: self.config.sample]
        values = (patches[kept].float() / 255).numpy()
        distinct = len(np.unique(values, axis=0))
        if distinct < self.codes:
            raise InputError(f"codes={self.codes}, but the images have only {distinct} different patches: lower it")
        fit = MiniBatchKMeans(
            self.codes, batch_size=4096, max_iter=self.config.iterations, n_init=1, random_state=seed % 2**32
        ).fit(values)
        centres = torch.from_numpy(np.asarray(fit.cluster_centers_, dtype=np.float32))
        self.centres.copy_(centres[centres.sum(1).argsort(stable=True)])

    def encode(self, images: UInt8[Tensor, "b c h w"], grid: Grid) -> Int64[Tensor, "b n"]:
        """The nearest centre of each patch, by Euclidean distance.

        Raises:
            InputError: another number of channels than the codebook's.
        """
        if images.shape[1] != self.config.channels:
            raise InputError(f"images with {images.shape[1]} channels given to a codebook for {self.config.channels}")
        centres = self.centres.float()
        half = centres.square().sum(1) / 2
        patches = patchify(self.fitted(images, grid), self.side)
        batch, count, _ = patches.shape
        parts = torch.split(patches.flatten(0, 1), max(1, _DISTANCES // self.codes))
        # argmin |x - c|^2 = argmax x c - |c|^2 / 2
        found = [torch.addmm(-half, part.float() / 255, centres.T).argmax(1) for part in parts]
        return torch.cat(found).view(batch, count)

    def decode(self, codes: Int64[Tensor, "b n"], grid: Grid) -> UInt8[Tensor, "b c h w"]:
        """Each code as its centre.

        Raises:
            InputError: codes that do not fill the grid.
        """
        pixels: Float[Tensor, "b n p"] = self.centres[codes]
        image = unpatchify(pixels, grid, self.config.channels)
        return (image * 255).round().clamp(0, 255).to(torch.uint8)


PatchTokenizer = Annotated[KMeansCodebook.Config, Field(discriminator="kind")]
"""Any discrete image tokenizer, chosen by `kind`."""
