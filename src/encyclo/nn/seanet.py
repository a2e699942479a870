"""SEANet encoder and decoder with an LSTM, as in EnCodec (Défossez et al. 2022, arXiv 2210.13438, section 3.1)."""

from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from encyclo.nn.part import Part, PartConfig

__all__ = ["SeanetDecoder", "SeanetEncoder"]


class _PaddedConv1d(nn.Module):
    """A convolution whose padding keeps ceil(n / stride) frames: all of it in front when causal, else to both sides."""

    def __init__(
        self, a: int, b: int, kernel: int, stride: int = 1, dilation: int = 1, *, causal: bool, mode: str
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(a, b, kernel, stride, dilation=dilation)
        self.causal, self.mode = causal, mode
        self.total = (kernel - 1) * dilation + 1 - stride

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b d m"]:
        extra = -x.shape[-1] % self.conv.stride[0]
        left = self.total if self.causal else self.total - self.total // 2
        x = _pad(x, left, self.total - left + extra, self.mode)
        y: Tensor = self.conv(x)
        return y


class _TrimmedConvTranspose1d(nn.Module):
    """A transposed convolution cut to n * stride samples: at the end when causal, else at both sides."""

    def __init__(self, a: int, b: int, kernel: int, stride: int, *, causal: bool) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(a, b, kernel, stride)
        total = kernel - stride
        self.left = 0 if causal else total - total // 2
        self.right = total - self.left

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b d m"]:
        y: Tensor = self.conv(x)
        return y[..., self.left : y.shape[-1] - self.right]


class _Residual(nn.Module):
    """ELU, dilated convolution to half the width, ELU, pointwise convolution; beside a pointwise shortcut."""

    def __init__(self, width: int, dilation: int, config: "_SeanetConfig") -> None:
        super().__init__()
        how: dict[str, Any] = {"causal": config.causal, "mode": config.padding}
        inner = width // config.compress
        self.block = nn.ModuleList(
            [
                nn.ELU(),
                _PaddedConv1d(width, inner, config.residual_kernel, dilation=dilation, **how),
                nn.ELU(),
                _PaddedConv1d(inner, width, 1, **how),
            ]
        )
        self.shortcut = _PaddedConv1d(width, width, 1, **how) if config.shortcut else nn.Identity()

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        y = x
        for layer in self.block:
            y = layer(y)
        total: Tensor = self.shortcut(x) + y
        return total


class _Recurrent(nn.Module):
    """LSTM layers over time, with a skip connection."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers)

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        turned = x.permute(2, 0, 1)
        y: Tensor = self.lstm(turned)[0] + turned
        return y.permute(1, 2, 0)


class _SeanetConfig(PartConfig):
    """What encoder and decoder share; the defaults are EnCodec's at 24 kHz."""

    kind: Literal["seanet"] = "seanet"
    rates: tuple[PositiveInt, ...] = Field(
        (8, 5, 4, 2), min_length=1, description="of the decoder, first stage first; the encoder reverses"
    )
    filters: int = Field(32, ge=1, description="width at the wave's rate; doubles with each stage")
    kernel: PositiveInt = Field(7, description="of the first convolution")
    last_kernel: PositiveInt = Field(7, description="of the last one")
    residual_kernel: PositiveInt = 3
    residual_layers: PositiveInt = 1
    dilation_growth: PositiveInt = 2
    compress: int = Field(2, ge=1, description="narrowing inside the residual blocks")
    lstm_layers: int = Field(2, ge=0)
    causal: bool = True
    padding: Literal["reflect", "constant"] = "reflect"
    shortcut: bool = Field(True, description="a pointwise convolution beside the residual block, not the identity")

    @property
    def hop(self) -> int:
        """Samples per frame."""
        hop = 1
        for rate in self.rates:
            hop *= rate
        return hop


class _Seanet(Part):
    """A chain of layers."""

    layers: nn.ModuleList
    config: _SeanetConfig

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.config.hop

    @property
    def context(self) -> int | None:
        """None: an LSTM remembers without limit."""
        return None

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b d m"]:
        for layer in self.layers:
            x = layer(x)
        return x


class SeanetEncoder(_Seanet):
    """Wave to frames: [b, 1, n] -> [b, dim, ceil(n / hop)]."""

    class Config(_SeanetConfig):
        """As EnCodec's at 24 kHz."""

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        how: dict[str, Any] = {"causal": config.causal, "mode": config.padding}
        width = config.filters
        layers: list[nn.Module] = [_PaddedConv1d(1, width, config.kernel, **how)]
        for rate in reversed(config.rates):
            layers += [_Residual(width, config.dilation_growth**j, config) for j in range(config.residual_layers)]
            layers += [nn.ELU(), _PaddedConv1d(width, 2 * width, 2 * rate, rate, **how)]
            width *= 2
        layers += [_Recurrent(width, config.lstm_layers)] if config.lstm_layers else []
        layers += [nn.ELU(), _PaddedConv1d(width, dim, config.last_kernel, **how)]
        self.layers = nn.ModuleList(layers)

    @property
    def to_latent(self) -> nn.Conv1d:
        """The layer that makes the frames."""
        last = self.layers[-1]
        assert isinstance(last, _PaddedConv1d)
        return last.conv


class SeanetDecoder(_Seanet):
    """Frames to wave: [b, dim, t] -> [b, 1, t * hop]."""

    class Config(_SeanetConfig):
        """As EnCodec's at 24 kHz."""

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        how: dict[str, Any] = {"causal": config.causal, "mode": config.padding}
        width = config.filters * 2 ** len(config.rates)
        layers: list[nn.Module] = [_PaddedConv1d(dim, width, config.kernel, **how)]
        layers += [_Recurrent(width, config.lstm_layers)] if config.lstm_layers else []
        for rate in config.rates:
            layers += [nn.ELU(), _TrimmedConvTranspose1d(width, width // 2, 2 * rate, rate, causal=config.causal)]
            width //= 2
            layers += [_Residual(width, config.dilation_growth**j, config) for j in range(config.residual_layers)]
        layers += [nn.ELU(), _PaddedConv1d(width, 1, config.last_kernel, **how)]
        self.layers = nn.ModuleList(layers)

    @property
    def from_latent(self) -> nn.Conv1d:
        """The layer that reads the frames."""
        first = self.layers[0]
        assert isinstance(first, _PaddedConv1d)
        return first.conv


def _pad(x: Float[Tensor, "b c n"], left: int, right: int, mode: str) -> Float[Tensor, "b c m"]:
    """Padding; a signal too short to be reflected is lengthened by zeros first."""
    if not (left or right):
        return x
    if mode != "reflect":
        return F.pad(x, (left, right))
    short = max(0, max(left, right) - x.shape[-1] + 1)
    if short:
        x = F.pad(x, (0, short))
    padded = F.pad(x, (left, right), mode="reflect")
    return padded[..., : padded.shape[-1] - short] if short else padded
