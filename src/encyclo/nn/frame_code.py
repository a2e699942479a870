"""A number in [0, 1) as a vector of sines and cosines: what a network gets instead of a frame."""

import math
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from encyclo.nn.part import Part, PartConfig

__all__ = ["FrameCode"]


class FrameCode(Part):
    """code(t) = [sin(b^i pi t) for i < l] + [cos(b^i pi t) for i < l] (NeRV, arXiv 2110.13903, section 3.1).

    The angles reach b^(l-1) pi, 10^8 at the defaults, where float32 would keep nothing of the phase: they are formed in
    float64 on the CPU, so that a code is the same on every machine.
    """

    class Config(PartConfig):
        """The frequencies."""

        base: float = Field(1.25, gt=0, description="b, ratio of neighbouring frequencies")
        levels: int = Field(80, ge=1, description="l, number of frequencies")

    def __init__(self, config: Config, **_: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def dim(self) -> int:
        """Length of a code."""
        return 2 * self.config.levels

    def forward(self, time: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """The codes of positions in [0, 1), in float32 on the device of `time`."""
        exponents = torch.arange(self.config.levels, dtype=torch.float64)
        angles = time.detach().to("cpu", torch.float64)[:, None] * (math.pi * self.config.base**exponents)
        return torch.cat([angles.sin(), angles.cos()], dim=1).float().to(time.device)
