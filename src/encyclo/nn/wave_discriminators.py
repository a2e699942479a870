"""Discriminators of waves: multi-period and multi-scale (HiFi-GAN, arXiv 2010.05646), multi-scale STFT (EnCodec, arXiv
2210.13438).
"""

from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from encyclo.nn.discriminator import Verdict
from encyclo.nn.part import Part, PartConfig
from encyclo.nn.weight_norm import redraw_normed

__all__ = [
    "MultiPeriodDiscriminator",
    "MultiScaleDiscriminator",
    "MultiStftDiscriminator",
    "PeriodDiscriminator",
    "ScaleDiscriminator",
    "StftDiscriminator",
    "WaveDiscriminators",
]


class PeriodDiscriminator(Part):
    """Folds a wave into rows of `period` samples and judges each column with convolutions along time (HiFi-GAN 2.3)."""

    class Config(PartConfig):
        """Widths and strides."""

        channels: tuple[PositiveInt, ...] = Field((32, 128, 512, 1024, 1024), min_length=1)
        kernel: PositiveInt = 5
        stride: PositiveInt = Field(3, description="of all layers but the last of `channels`")

    def __init__(self, config: Config, *, period: int) -> None:
        super().__init__()
        self.period = period
        widths = (1, *config.channels)
        pad = (config.kernel - 1) // 2
        last = len(config.channels) - 1
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (config.kernel, 1), (1 if i == last else config.stride, 1), (pad, 0)))
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def init_own(self) -> None:
        redraw_normed(self)

    def forward(self, wave: Float[Tensor, "b 1 n"]) -> Verdict:
        short = -wave.shape[-1] % self.period
        x = F.pad(wave, (0, short), mode="reflect") if short else wave
        x = x.reshape(*x.shape[:-1], -1, self.period)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            features.append(x)
        x = self.score(x)
        return Verdict(x.flatten(1), [*features, x])


class MultiPeriodDiscriminator(Part):
    """One `PeriodDiscriminator` per period, sharing nothing."""

    class Config(PartConfig):
        """The periods, and the net that each has."""

        periods: tuple[PositiveInt, ...] = Field((2, 3, 5, 7, 11), min_length=1)
        each: PeriodDiscriminator.Config = PeriodDiscriminator.Config()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.each = nn.ModuleList(config.each.build(period=period) for period in config.periods)

    def forward(self, wave: Float[Tensor, "b 1 n"]) -> list[Verdict]:
        return [net(wave) for net in self.each]


class ScaleDiscriminator(Part):
    """Strided and grouped convolutions on the raw wave (MelGAN, HiFi-GAN 2.3)."""

    class Config(PartConfig):
        """One entry a layer."""

        layers: tuple[tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt], ...] = Field(
            (
                (128, 15, 1, 1),
                (128, 41, 2, 4),
                (256, 41, 2, 16),
                (512, 41, 4, 16),
                (1024, 41, 4, 16),
                (1024, 41, 1, 16),
                (1024, 5, 1, 1),
            ),
            description="channels, kernel, stride and groups of each layer",
        )

    def __init__(self, config: Config, *, spectral: bool = False) -> None:
        super().__init__()
        norm = spectral_norm if spectral else weight_norm
        width, made = 1, []
        for channels, kernel, stride, groups in config.layers:
            made.append(norm(nn.Conv1d(width, channels, kernel, stride, (kernel - 1) // 2, groups=groups)))
            width = channels
        self.layers = nn.ModuleList(made)
        self.score = norm(nn.Conv1d(width, 1, 3, padding=1))

    def init_own(self) -> None:
        redraw_normed(self)

    def forward(self, wave: Float[Tensor, "b 1 n"]) -> Verdict:
        x, features = wave, []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            features.append(x)
        x = self.score(x)
        return Verdict(x.flatten(1), [*features, x])


class MultiScaleDiscriminator(Part):
    """A `ScaleDiscriminator` on the wave and on its averages over 2, 4 ... samples; the first has spectral norms."""

    class Config(PartConfig):
        """How many scales, and the net that each has."""

        scales: int = Field(3, ge=1)
        each: ScaleDiscriminator.Config = ScaleDiscriminator.Config()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.each = nn.ModuleList(config.each.build(spectral=i == 0) for i in range(config.scales))

    def forward(self, wave: Float[Tensor, "b 1 n"]) -> list[Verdict]:
        verdicts = []
        for i, net in enumerate(self.each):
            if i:
                wave = F.avg_pool1d(wave, 4, 2, padding=2)
            verdicts.append(net(wave))
        return verdicts


class StftDiscriminator(Part):
    """2-D convolutions over the complex spectrogram, real and imaginary parts as channels (EnCodec, appendix A)."""

    class Config(PartConfig):
        """Width, kernels and strides."""

        filters: PositiveInt = 32
        kernel: tuple[PositiveInt, PositiveInt] = Field((3, 9), description="time, frequency")
        dilations: tuple[PositiveInt, ...] = Field((1, 2, 4), description="along time")
        stride: PositiveInt = Field(2, description="along frequency")

    hann: Float[Tensor, " w"]

    def __init__(self, config: Config, *, n_fft: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        f, (kt, kf) = config.filters, config.kernel
        self.layers = nn.ModuleList(
            [
                weight_norm(nn.Conv2d(2, f, (kt, kf), padding=(kt // 2, kf // 2))),
                *(
                    weight_norm(
                        nn.Conv2d(f, f, (kt, kf), (1, config.stride), (d * (kt - 1) // 2, kf // 2), dilation=(d, 1))
                    )
                    for d in config.dilations
                ),
                weight_norm(nn.Conv2d(f, f, (kt, kt), padding=(kt // 2, kt // 2))),
            ]
        )
        self.score = weight_norm(nn.Conv2d(f, 1, (kt, kt), padding=(kt // 2, kt // 2)))
        self.register_buffer("hann", torch.empty(n_fft), persistent=False)
        if not self.hann.is_meta:
            self.init_window()

    def init_own(self) -> None:
        redraw_normed(self)
        self.init_window()

    def init_window(self) -> None:
        """The Hann window, which is not saved."""
        self.hann = torch.hann_window(self.n_fft, device=self.hann.device)

    def spectrogram(self, wave: Float[Tensor, "b 1 n"]) -> Float[Tensor, "b 2 t f"]:
        """Real and imaginary part with hop n_fft / 4, not centred, divided by the window's norm; always fp32."""
        with torch.autocast(wave.device.type, enabled=False):
            flat = wave[:, 0].float()
            if flat.shape[-1] < self.n_fft:
                flat = F.pad(flat, (0, self.n_fft - flat.shape[-1]))
            z = torch.stft(flat, self.n_fft, self.n_fft // 4, window=self.hann, center=False, return_complex=True)
            return torch.view_as_real(z / self.hann.square().sum().sqrt()).permute(0, 3, 2, 1).contiguous()

    def forward(self, wave: Float[Tensor, "b 1 n"]) -> Verdict:
        x, features = self.spectrogram(wave), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return Verdict(self.score(x), features)


class MultiStftDiscriminator(Part):
    """One `StftDiscriminator` per length of transform."""

    class Config(PartConfig):
        """Lengths of the transforms, and the net that each has."""

        n_ffts: tuple[Annotated[int, Field(ge=4, multiple_of=4)], ...] = Field(
            (1024, 2048, 512, 256, 128), min_length=1
        )
        each: StftDiscriminator.Config = StftDiscriminator.Config()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.each = nn.ModuleList(config.each.build(n_fft=n_fft) for n_fft in config.n_ffts)

    def forward(self, wave: Float[Tensor, "b 1 n"]) -> list[Verdict]:
        return [net(wave) for net in self.each]


class WaveDiscriminators(Part):
    """Any of the three families together; all verdicts in one list. HiFi-Codec trains against all three."""

    class Config(PartConfig):
        """Each family, or None to leave it out."""

        period: MultiPeriodDiscriminator.Config | None = MultiPeriodDiscriminator.Config()
        scale: MultiScaleDiscriminator.Config | None = MultiScaleDiscriminator.Config()
        stft: MultiStftDiscriminator.Config | None = MultiStftDiscriminator.Config()

    def __init__(self, config: Config) -> None:
        super().__init__()
        chosen = {"period": config.period, "scale": config.scale, "stft": config.stft}
        self.families = nn.ModuleDict({name: part.build() for name, part in chosen.items() if part is not None})
        if not self.families:
            raise ValueError("no family of discriminators is chosen")

    def forward(self, wave: Float[Tensor, "b 1 n"]) -> list[Verdict]:
        return [verdict for family in self.families.values() for verdict in family(wave)]
