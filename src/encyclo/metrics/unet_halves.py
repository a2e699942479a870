"""What the two halves of a UNet cost: operations and time of the encoder half against the whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encyclo.metrics.cost import flops, interleaved
from encyclo.nn.split_unet import SplitUNet


@dataclass(frozen=True)
class Halves:
    """Cost of one call of the encoder half (with the middle) and of the decoder half, in one unit."""

    encoder: float
    decoder: float

    @property
    def share(self) -> float:
        """The encoder half's share of the whole."""
        return self.encoder / (self.encoder + self.decoder)

    def sampling(self, encoder_calls: float, decoded: float) -> float:
        """Cost of a sampling that made these calls."""
        return encoder_calls * self.encoder + decoded * self.decoder


@torch.no_grad()
def half_macs(
    unet: nn.Module, sample: Float[Tensor, "b ..."], conditions: Mapping[str, Any] | None = None, time: Any = 500
) -> Halves:
    """Multiply-accumulates per sample of one call of each half, counted while they run (also on `meta`).

    Args:
        unet: a diffusers UNet.
        sample: input of one call.
        conditions: further keyword arguments of its forward.
        time: a time step.
    """
    split = SplitUNet(unet)
    kept = split.encode(sample, time, conditions)
    encoder = flops(lambda: split.encode(sample, time, conditions))
    decoder = flops(lambda: split.decode(kept, time, conditions))
    return Halves(encoder / 2 / len(sample), decoder / 2 / len(sample))


@torch.no_grad()
def encoder_time_share(
    unet: nn.Module, sample: Float[Tensor, "b ..."], conditions: Mapping[str, Any] | None = None, *, rounds: int = 9
) -> float:
    """The encoder half's share of the seconds of one call, both timed in turns (medians).

    Args:
        unet: a diffusers UNet.
        sample: input of one call.
        conditions: further keyword arguments of its forward.
        rounds: timed turns.
    """
    split = SplitUNet(unet)
    arms = {
        "encoder": lambda: split.encode(sample, 500, conditions),
        "whole": lambda: unet(sample, 500, return_dict=False, **(conditions or {})),
    }
    taken = interleaved(arms, rounds=rounds, warm_up=2)
    return taken["encoder"] / taken["whole"]
