"""Models of whole images of one size with an exact probability: pictures in, regions, the tree over their pixels."""

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor

from encyclo.data import Batches
from encyclo.data.exact_pixels import gather_pixels, plain_grey
from encyclo.data.images import to_tensor
from encyclo.errors import InputError
from encyclo.nn.backoff import equal_mass_bins
from encyclo.nn.chow_liu import Tree, chow_liu_tree, mutual_information
from encyclo.nn.integer_flow import FactorisedFlow
from encyclo.system import System, SystemConfig
from encyclo.training import Loss, Trainer, TrainingConfig

__all__ = ["NATS", "PixelModel", "PixelModelConfig"]

NATS = math.log(2)
"""Nats in a bit."""


class PixelModelConfig(SystemConfig):
    """What all models of whole images have in common."""

    shape: tuple[int, int, int] | None = Field(None, description="channels, height, width; None: the data's")
    values: int | None = Field(None, ge=2, le=256, description="levels of a pixel; None: the data's white + 1")
    size: int | None = Field(None, ge=1, description="bring training pictures to this height and width (counted)")
    information_bins: int = Field(32, ge=2, description="soft bins of a pixel's values for mutual information")
    information_width: float = Field(0.5, gt=0, description="deviation of a soft bin in units of its breadth")


class PixelModel(System):
    """An exact probability for images of one size: what the circuit and its rivals share."""

    reads = "image"
    Config = PixelModelConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.shape: Tensor
        self.register_buffer("shape", torch.tensor(config.shape or (0, 0, 0)))
        self._tree: Tree | None = None

    def start_from(self, prepared: Any) -> None:
        """Take the Chow-Liu tree, which all arms share."""
        self._tree = prepared

    def pixels(self, rows: Any) -> UInt8[Tensor, "n d"]:
        """Images of a split as rows of values; a first call decides shape and colours."""
        config = self.config
        known = tuple(self.shape.tolist())
        wanted = (known[1], known[2]) if known[0] else (config.size, config.size) if config.size else None
        images = to_tensor(rows["image"], wanted, "L" if known[0] == 1 else "RGB", fit="crop")
        if not known[0]:
            images = plain_grey(images)
            self.shape.copy_(torch.tensor(images.shape[1:]))
        return images.flatten(1)

    def rows_of(self, images: UInt8[Tensor, "n c h w"], values: int) -> UInt8[Tensor, "n d"]:
        """Images of a user as rows of values, refused where the model cannot give them back exactly."""
        c, h, w = self.shape.tolist()
        if len(images) == 0:
            return torch.zeros(0, c * h * w, dtype=torch.uint8)
        images = plain_grey(images) if c == 1 else images.expand(-1, c, -1, -1)
        if tuple(images.shape[1:]) != (c, h, w):
            kinds = ["colour" if k == 3 else "grey" for k in (images.shape[1], c)]
            raise InputError(
                f"pictures are {kinds[0]} {images.shape[2]}x{images.shape[3]}, the model knows {kinds[1]} {h}x{w}:"
                " convert them, or train a model on such pictures"
            )
        if int(images.max()) >= values:
            raise InputError(f"pixel value {int(images.max())}: the model knows values 0..{values - 1} only")
        return images.flatten(1)

    def learn_tree(self, rows: UInt8[Tensor, "n d"], values: int, *, by_mass: bool = False) -> Tree:
        """The Chow-Liu tree of the training pixels, or the one that was prepared.

        Args:
            rows: pixels, or what stands for them.
            values: size of their alphabet.
            by_mass: bins of equal mass instead of equal breadth, for values that crowd around one.
        """
        if self._tree is None:
            config = self.config
            if by_mass:
                histogram = torch.bincount(rows.flatten().long(), minlength=values)
                bins = equal_mass_bins(histogram.cpu().float(), config.information_bins)
                rows, values = bins.to(rows.device)[rows.long()].to(torch.uint8), int(bins.max()) + 1
            self._tree = chow_liu_tree(
                mutual_information(rows, values=values, bins=config.information_bins, width=config.information_width)
            )
        return self._tree

    def fit_flow(
        self,
        config: FactorisedFlow.Config,
        rows: UInt8[Tensor, "n d"],
        held_out: UInt8[Tensor, "m d"],
        values: int,
        trainer: Trainer,
        budget: TrainingConfig,
    ) -> FactorisedFlow:
        """An integer flow trained to make the latents of the pixels independent (stage "flow")."""
        c, h, w = self.shape.tolist()
        try:
            model: FactorisedFlow = config.build(shape=(c, h, w), values=values)
        except ValueError as error:
            raise InputError(f"flow: {error}") from None
        per_bit = NATS * rows.shape[1]

        def loss(batch: UInt8[Tensor, "n d"]) -> Loss:
            value = model.nll(batch) / per_bit
            return Loss(value, len(batch), {"bits_per_dimension": value.detach()})

        def evaluate() -> dict[str, float]:
            found = model.log_likelihood(held_out.to(trainer.device))
            return {"bits_per_dimension": float(-found.mean() / per_bit)} if len(held_out) else {}

        batches = Batches(rows, min(budget.batch_size, len(rows)), seed=trainer.seed)
        trainer.fit(model, loss, batches, budget, stage="flow", evaluate=evaluate)
        return model

    def bits(self, log_likelihood: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Nats of whole images as bits per dimension (a colour's value is one)."""
        bits: Tensor = -log_likelihood.double() / (NATS * math.prod(self.shape.tolist()))
        return bits

    def region(self, box: str, mask: Path | None) -> Bool[Tensor, " d"]:
        """True inside a named half, a box or a mask's bright part."""
        c, h, w = self.shape.tolist()
        if mask is not None:
            inside = gather_pixels([mask])[0].amax(1)[0] > 0
            if tuple(inside.shape) != (h, w):
                raise InputError(f"'{mask}' is {inside.shape[0]}x{inside.shape[1]}, the model's pictures are {h}x{w}")
            return inside.expand(c, h, w).flatten()
        halves = {
            "left": (0, 0, w // 2, h),
            "right": (w // 2, 0, w - w // 2, h),
            "top": (0, 0, w, h // 2),
            "bottom": (0, h // 2, w, h - h // 2),
        }
        try:
            x, y, width, height = halves[box] if box in halves else (int(part) for part in box.split(","))
        except ValueError:
            raise InputError(f"'{box}' is no region: left, right, top, bottom or x,y,width,height") from None
        if x < 0 or y < 0 or width < 1 or height < 1 or x + width > w or y + height > h:
            raise InputError(f"region '{box}' does not lie in pictures of {w}x{h} (width x height)")
        inside = torch.zeros(c, h, w, dtype=torch.bool)
        inside[:, y : y + height, x : x + width] = True
        return inside.flatten()
