"""Integer discrete flows: learned bijections between images of whole numbers, the same to the bit on every machine.

Hoogeboom, Peters, van den Berg & Welling 2019 (arXiv 1905.07376): space is folded into channels, additive couplings
z_b = x_b + round(t(x_a)) take from a quarter of the channels what the others say about it, and at every level half of
the channels leave as latents z_1 .. z_L. Sums are taken modulo the number of values, as in the discrete flows of Tran
et al. 2019 (arXiv 1905.10347, section 3), so that latents and pixels share one alphabet.

A lossless code needs the same round(t(x_a)) on both sides. Rounded floats do not give that: another order of summation
may tip one over. `translate` therefore computes t in whole numbers held in float64, so short that every sum is exact.
"""

import hashlib
from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, UInt8
from pydantic import Field
from torch import Tensor, nn

from encyclo.nn.discretised_logistic import DiscretisedLogistics
from encyclo.nn.part import Part, PartConfig

__all__ = ["FactorisedFlow", "IntegerFlow", "Translation"]

Translate = Callable[["Translation", Tensor], Tensor]
Wrap = Callable[[Tensor], Tensor]

PARTS: Final = 4
"""Parts of the channels; a coupling changes one of them."""
WEIGHT_BITS: Final = 12
"""Weights are multiples of 2^-12 and below 8."""
HIDDEN_BITS: Final = 8
"""Hidden activations are multiples of 2^-8 and below 256."""
INPUT_BITS: Final = 5
"""Pixels enter as multiples of 2^-5 around zero."""


class Translation(Part):
    """t of a coupling: three convolutions (3x3, 1x1, 3x3) with ReLU between; the last starts at zero (assumed).

    The exact form is a function of whole numbers: weights below 2^15 times activations below 2^16, at most 9 width of
    them in a sum, stay below 2^53.
    """

    class Config(PartConfig):
        """Size."""

        width: int = Field(48, ge=1, le=4096, description="hidden channels")

    def __init__(self, config: Config, *, inputs: int, outputs: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(inputs, width, 3, padding=1),
                nn.Conv2d(width, width, 1),
                nn.Conv2d(width, outputs, 3, padding=1),
            ]
        )
        self.init_own()

    @torch.no_grad()
    def init_own(self) -> None:
        """The last layer at zero: every coupling begins as the identity."""
        for parameter in self.layers[-1].parameters():
            parameter.zero_()

    def forward(self, x: Float[Tensor, "n a h w"]) -> Float[Tensor, "n b h w"]:
        """t before rounding, in float32, for training.

        Args:
            x: pixels minus half the alphabet.
        """
        hidden = x * 2.0**-INPUT_BITS
        for layer in self.layers[:-1]:
            hidden = F.relu(layer(hidden))
        out: Tensor = self.layers[-1](hidden) * 2.0**INPUT_BITS
        return out

    @torch.no_grad()
    def exact(self, x: Int64[Tensor, "n a h w"]) -> Int64[Tensor, "n b h w"]:
        """round(t), of the weights rounded to whole numbers, by sums that no machine can get wrong."""
        hidden, bits = x.double(), INPUT_BITS
        for layer in self.layers[:-1]:
            total = _exact_convolution(hidden, layer, bits)
            hidden = torch.floor(total * 2.0 ** (HIDDEN_BITS - WEIGHT_BITS - bits) + 0.5)
            hidden.clamp_(0, 2.0 ** (8 + HIDDEN_BITS) - 1)
            bits = HIDDEN_BITS
        total = _exact_convolution(hidden, self.layers[-1], bits)
        return torch.floor(total * 2.0 ** (INPUT_BITS - WEIGHT_BITS - bits) + 0.5).long()

    def whole_numbers(self) -> list[Int64[Tensor, "*shape"]]:
        """All rounded weights and biases: what `exact` depends on."""
        out = []
        for layer, bits in zip(self.layers, (INPUT_BITS, HIDDEN_BITS, HIDDEN_BITS), strict=True):
            out += [n.long() for n in _rounded(layer, bits)]
        return out


def _rounded(layer: nn.Module, bits: int) -> tuple[Float64[Tensor, "b a k k"], Float64[Tensor, " b"]]:
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    limit = 2.0 ** (WEIGHT_BITS + 3) - 1
    weight = torch.floor(layer.weight.double() * 2.0**WEIGHT_BITS + 0.5).clamp(-limit, limit)
    bias = torch.floor(layer.bias.double() * 2.0 ** (WEIGHT_BITS + bits) + 0.5).clamp(-(2.0**40), 2.0**40)
    return weight, bias


def _exact_convolution(x: Float64[Tensor, "n a h w"], layer: nn.Module, bits: int) -> Float64[Tensor, "n b h w"]:
    """As one matrix product (a convolution library may choose a fast algorithm that is not exact)."""
    weight, bias = _rounded(layer, bits)
    size = weight.shape[-1]
    columns = F.unfold(x, size, padding=size // 2)
    return (weight.flatten(1) @ columns + bias[:, None]).unflatten(-1, x.shape[-2:])  # type: ignore[no-any-return]


class IntegerFlow(Part):
    """A bijection of images [c, h, w] over 0..values-1 onto as many latents of the same alphabet.

    At each level: fold 2x2 pixels into channels, then `rounds` times permute the channels and let each quarter of them
    be translated by the other three; then the second half leaves, except at the last level.
    """

    class Config(PartConfig):
        """Size."""

        levels: int = Field(2, ge=1, description="L: how often space is folded")
        rounds: int = Field(2, ge=1, description="permutations at each level, each with four couplings")
        translation: Translation.Config = Translation.Config()

    def __init__(self, config: Config, *, shape: tuple[int, int, int], values: int) -> None:
        super().__init__()
        c, h, w = shape
        fold = 1 << config.levels
        if h % fold or w % fold:
            raise ValueError(
                f"images of {h}x{w} cannot be folded {config.levels} times: sides must be multiples of {fold}"
            )
        self.config, self.shape, self.values = config, shape, values
        self.translations = nn.ModuleList()
        self.orders: list[list[int]] = []
        generator = torch.Generator().manual_seed(0)  # part of the method's definition, not of a run
        for level in range(config.levels):
            c = 4 * c if level == 0 else 2 * c
            for _ in range(config.rounds):
                self.orders.append(torch.randperm(c, generator=generator, device="cpu").tolist())
                self.translations += [
                    config.translation.build(inputs=c - c // PARTS, outputs=c // PARTS) for _ in range(PARTS)
                ]

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Latents in float32 for training: rounding passes gradients straight through."""

        def translate(net: Translation, x: Tensor) -> Tensor:
            t = net(x - self.values / 2)
            return t + (t.round() - t).detach()  # type: ignore[no-any-return]

        def wrap(x: Tensor) -> Tensor:
            return x - (self.values * torch.floor(x / self.values)).detach()

        return self._down(images, translate, wrap)

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "n d"], *, batch: int = 256) -> UInt8[Tensor, "n d"]:
        """Latents of flat images, exactly."""
        parts = [
            self._down(part.long().view(-1, *self.shape), self._exact, self._modulo) for part in images.split(batch)
        ]
        return torch.cat(parts).to(torch.uint8) if len(images) else images

    @torch.no_grad()
    def decode(self, latents: UInt8[Tensor, "n d"], *, batch: int = 256) -> UInt8[Tensor, "n d"]:
        """The flat images of latents, exactly."""
        parts = [self._up(part.long()) for part in latents.split(batch)]
        return torch.cat(parts).to(torch.uint8) if len(latents) else latents

    def digest(self) -> str:
        """SHA-256 (hex) of all that the bijection depends on."""
        found = hashlib.sha256(repr((self.shape, self.values, self.orders)).encode())
        for net in self._nets():
            for numbers in net.whole_numbers():
                found.update(numbers.cpu().numpy().astype("<i8").tobytes())
        return found.hexdigest()

    def _nets(self) -> list[Translation]:
        return [net for net in self.translations if isinstance(net, Translation)]

    def _exact(self, net: Translation, x: Int64[Tensor, "n a h w"]) -> Int64[Tensor, "n b h w"]:
        return net.exact(x - self.values // 2)

    def _modulo(self, x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
        return torch.remainder(x, self.values)

    def _down(self, x: Tensor, translate: Translate, wrap: Wrap) -> Tensor:
        out, nets = [], iter(self._nets())
        for level in range(self.config.levels):
            x = F.pixel_unshuffle(x, 2)
            for order in self.orders[level * self.config.rounds : (level + 1) * self.config.rounds]:
                quarters = list(x[:, order].chunk(PARTS, 1))
                for at in range(PARTS):
                    others = torch.cat(quarters[:at] + quarters[at + 1 :], 1)
                    quarters[at] = wrap(quarters[at] + translate(next(nets), others))
                x = torch.cat(quarters, 1)
            if level < self.config.levels - 1:
                x, leaving = x.chunk(2, 1)
                out.append(leaving.flatten(1))
        return torch.cat([*out, x.flatten(1)], 1)

    def _up(self, latents: Int64[Tensor, "n d"]) -> Int64[Tensor, "n d"]:
        c, h, w = self.shape
        shapes, left = [], latents
        for level in range(self.config.levels):
            c, h, w = (4 * c if level == 0 else 2 * c), h // 2, w // 2
            shapes.append((c, h, w))
        pieces = []
        for c, h, w in shapes[:-1]:
            pieces.append(left[:, : c // 2 * h * w].view(-1, c // 2, h, w))
            left = left[:, c // 2 * h * w :]
        x = left.view(-1, *shapes[-1])
        nets = self._nets()[::-1]
        position = 0
        for level in range(self.config.levels - 1, -1, -1):
            if level < self.config.levels - 1:
                x = torch.cat([x, pieces[level]], 1)
            for order in reversed(self.orders[level * self.config.rounds : (level + 1) * self.config.rounds]):
                quarters = list(x.chunk(PARTS, 1))
                for at in range(PARTS - 1, -1, -1):
                    others = torch.cat(quarters[:at] + quarters[at + 1 :], 1)
                    quarters[at] = self._modulo(quarters[at] - self._exact(nets[position], others))
                    position += 1
                x = torch.cat(quarters, 1)[:, torch.tensor(order).argsort().to(x.device)]
            x = F.pixel_shuffle(x, 2)
        return x.flatten(1)


class FactorisedFlow(Part):
    """An integer flow whose latents are independent, each a mixture of discretised logistics: p(x) = prod_i p(z_i)."""

    class Config(PartConfig):
        """Of its two halves."""

        flow: IntegerFlow.Config = IntegerFlow.Config()
        prior: DiscretisedLogistics.Config = DiscretisedLogistics.Config()

    def __init__(self, config: Config, *, shape: tuple[int, int, int], values: int) -> None:
        super().__init__()
        self.config = config
        self.flow: IntegerFlow = config.flow.build(shape=shape, values=values)
        c, h, w = shape
        self.prior: DiscretisedLogistics = config.prior.build(variables=c * h * w, values=values)

    def nll(self, images: UInt8[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Mean -ln p in nats, differentiable (rounding passes gradients straight through)."""
        latents = self.flow(images.view(-1, *self.flow.shape).float())
        return -self.prior(latents).sum(1).mean()  # type: ignore[no-any-return]

    @torch.no_grad()
    def log_likelihood(self, images: UInt8[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """ln p of each flat image under the exact bijection, in nats."""
        latents = self.flow.encode(images).long()
        return self.prior.table().log().T.gather(0, latents).sum(1)
