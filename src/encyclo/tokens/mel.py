"""Waves to (log-)mel spectrograms, differentiable; shared by codecs, vocoders and speech encoders."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from encyclo.nn.part import Part, PartConfig

__all__ = ["LogMel", "hertz_to_mel", "magnitude_spectrogram", "mel_filters", "mel_to_hertz"]

MelScale = Literal["slaney", "htk"]

_BREAK_HZ, _BREAK_MEL, _LOG_STEP = 1000.0, 15.0, math.log(6.4) / 27.0  # Slaney: linear below 1 kHz, logarithmic above


def hertz_to_mel(hertz: Float[Tensor, "*n"], scale: MelScale = "slaney") -> Float[Tensor, "*n"]:
    """Frequency in Hz to mel: Slaney's auditory toolbox (linear below 1 kHz) or HTK's 2595 log10(1 + f / 700)."""
    if scale == "htk":
        return 2595.0 * torch.log10(1.0 + hertz / 700.0)
    above = _BREAK_MEL + torch.log(hertz.clamp(min=_BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return torch.where(hertz < _BREAK_HZ, hertz * 3.0 / 200.0, above)


def mel_to_hertz(mel: Float[Tensor, "*n"], scale: MelScale = "slaney") -> Float[Tensor, "*n"]:
    """The inverse of `hertz_to_mel`."""
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    above = _BREAK_HZ * torch.exp(_LOG_STEP * (mel.clamp(min=_BREAK_MEL) - _BREAK_MEL))
    return torch.where(mel < _BREAK_MEL, mel * 200.0 / 3.0, above)


def mel_filters(
    rate: int,
    n_fft: int,
    bands: int,
    *,
    low: float = 0.0,
    high: float | None = None,
    scale: MelScale = "slaney",
    area: bool = True,
) -> Float[Tensor, "bands bins"]:
    """Triangular filters over the bins of a real FFT.

    Args:
        rate: samples a second.
        n_fft: length of the FFT; bins = n_fft / 2 + 1.
        bands: number of filters.
        low, high: lowest and highest frequency in Hz; None means half of `rate`.
        scale: the mel scale whose steps the corners follow.
        area: divide each filter by half its width in Hz, so that all have the same area.
    """
    top = rate / 2 if high is None else high
    bins = torch.linspace(0, rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    ends = hertz_to_mel(torch.tensor([low, top], dtype=torch.float64), scale)
    corners = mel_to_hertz(torch.linspace(float(ends[0]), float(ends[1]), bands + 2, dtype=torch.float64), scale)
    width = corners.diff()
    slope = corners[:, None] - bins[None]
    filters = torch.minimum(-slope[:-2] / width[:-1, None], slope[2:] / width[1:, None]).clamp(min=0)
    if area:
        filters = filters * (2.0 / (corners[2:] - corners[:-2]))[:, None]
    return filters.float()


def magnitude_spectrogram(
    wave: Float[Tensor, "*b n"],
    n_fft: int,
    hop: int,
    window: Float[Tensor, " w"],
    *,
    padding: Literal["same", "centre", "none"] = "same",
    eps: float = 1e-9,
) -> Float[Tensor, "*b bins t"]:
    """sqrt(re^2 + im^2 + eps) of the short-time Fourier transform, in fp32 whatever the autocast.

    Args:
        wave: samples; leading dimensions are batch.
        n_fft, hop: length of the transform and step, in samples.
        window: at most n_fft long, centred in it.
        padding: 'same' reflects (n_fft - hop) / 2 samples at both ends, so that t = n / hop; 'centre' reflects
            n_fft / 2 (t = n / hop + 1); 'none' uses whole windows only. A wave too short to be reflected is padded
            with zeros.
        eps: keeps the gradient finite at silence.
    """
    lead = wave.shape[:-1]
    with torch.autocast(wave.device.type, enabled=False):
        flat = wave.reshape(-1, wave.shape[-1]).float()
        pad = {"same": ((n_fft - hop) // 2, n_fft - hop - (n_fft - hop) // 2), "centre": (n_fft // 2, n_fft // 2)}.get(
            padding, (0, 0)
        )
        if any(pad):
            reflect = flat.shape[-1] > max(pad)
            flat = F.pad(flat[:, None], pad, mode="reflect" if reflect else "constant")[:, 0]
        if flat.shape[-1] < n_fft:
            flat = F.pad(flat, (0, n_fft - flat.shape[-1]))
        transformed = torch.stft(flat, n_fft, hop, window.numel(), window.float(), center=False, return_complex=True)
        parts = torch.view_as_real(transformed)
        magnitude = (parts.square().sum(-1) + eps).sqrt()
    return magnitude.reshape(*lead, *magnitude.shape[-2:])


class LogMel(Part):
    """Log-mel spectrogram: [..., n] -> [..., bands, t].

    The defaults are those of HiFi-GAN's and HiFi-Codec's front end: ln(max(mel of the magnitude, 1e-5)), Slaney
    filters, reflect padding of (n_fft - hop) / 2, not centred.
    """

    class Config(PartConfig):
        """Transform, bands, scale and logarithm."""

        rate: int = Field(24000, ge=1, description="samples a second")
        n_fft: int = Field(1024, ge=2)
        hop: int = Field(240, ge=1)
        window: int | None = Field(None, ge=1, description="length of the Hann window; None: n_fft")
        bands: int = Field(80, ge=1)
        low: float = Field(0.0, ge=0, description="Hz")
        high: float | None = Field(None, gt=0, description="Hz; None: half the rate")
        scale: MelScale = "slaney"
        area: bool = Field(True, description="filters of equal area (Slaney's norm)")
        power: Literal[1, 2] = Field(1, description="mel of the magnitude or of its square")
        log: Literal["ln", "log10", "none"] = "ln"
        floor: float = Field(1e-5, gt=0, description="least value before the logarithm")
        padding: Literal["same", "centre", "none"] = "same"

        @model_validator(mode="after")
        def _check(self) -> "LogMel.Config":
            if self.window is not None and self.window > self.n_fft:
                raise ValueError(f"window {self.window} is longer than n_fft {self.n_fft}")
            return self

    filters: Float[Tensor, "bands bins"]
    hann: Float[Tensor, " w"]

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.window or config.n_fft
        self.register_buffer("filters", torch.empty(config.bands, config.n_fft // 2 + 1), persistent=False)
        self.register_buffer("hann", torch.empty(width), persistent=False)
        if not self.hann.is_meta:
            self.init_own()

    def init_own(self) -> None:
        c = self.config
        filters = mel_filters(c.rate, c.n_fft, c.bands, low=c.low, high=c.high, scale=c.scale, area=c.area)
        self.filters = filters.to(self.filters.device)
        self.hann = torch.hann_window(c.window or c.n_fft, device=self.hann.device)

    def forward(self, wave: Float[Tensor, "*b n"]) -> Float[Tensor, "*b bands t"]:
        c = self.config
        magnitude = magnitude_spectrogram(wave, c.n_fft, c.hop, self.hann, padding=c.padding)
        with torch.autocast(wave.device.type, enabled=False):
            mel = self.filters @ (magnitude if c.power == 1 else magnitude.square())
            if c.log == "none":
                return mel
            mel = mel.clamp(min=c.floor)
            return mel.log() if c.log == "ln" else mel.log10()
