"""Distances between waves on spectrograms: multi-scale log-mel (HiFi-GAN, HiFi-Codec) and multi-resolution STFT."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from encyclo.nn.part import Part, PartConfig
from encyclo.tokens.mel import LogMel, magnitude_spectrogram

__all__ = ["MelLoss", "StftLoss"]


class MelLoss(Part):
    """sum_i weight_i * mean |logmel_i(x) - logmel_i(y)| over several front ends; 0 for equal waves.

    The defaults are HiFi-Codec's at 24 kHz: 45 at 1024/240 and 1 each at 512/120 and 256/60, 80 bands.
    """

    class Config(PartConfig):
        """Front ends and the weight of each."""

        weights: tuple[float, ...] = (45.0, 1.0, 1.0)
        resolutions: tuple[LogMel.Config, ...] = (
            LogMel.Config(n_fft=1024, hop=240),
            LogMel.Config(n_fft=512, hop=120),
            LogMel.Config(n_fft=256, hop=60),
        )

        def model_post_init(self, _: object) -> None:
            if len(self.weights) != len(self.resolutions):
                raise ValueError(f"{len(self.weights)} weights for {len(self.resolutions)} resolutions")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.fronts = nn.ModuleList(front.build() for front in config.resolutions)

    def parts(self, real: Float[Tensor, "*b n"], fake: Float[Tensor, "*b n"]) -> list[Float[Tensor, ""]]:
        """The unweighted distance at each resolution."""
        return [F.l1_loss(front(fake), front(real)) for front in self.fronts]

    def forward(self, real: Float[Tensor, "*b n"], fake: Float[Tensor, "*b n"]) -> Float[Tensor, ""]:
        parts = self.parts(real, fake)
        return torch.stack([w * part for w, part in zip(self.config.weights, parts, strict=True)]).sum()


class StftLoss(Part):
    """Multi-resolution STFT loss (Yamamoto et al. 2020, arXiv 1910.11480, eq. 4-6): convergence and log magnitude.

    Mean over resolutions of |S_x - S_y|_F / |S_x|_F and mean |ln S_x - ln S_y|, Hann windows.
    """

    class Config(PartConfig):
        """Resolutions and the weights of the two terms."""

        resolutions: tuple[tuple[int, int, int], ...] = Field(
            ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)), description="n_fft, hop and window, in samples"
        )
        convergence: float = 1.0
        log_magnitude: float = 1.0
        floor: float = Field(1e-7, gt=0)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, real: Float[Tensor, "*b n"], fake: Float[Tensor, "*b n"]) -> Float[Tensor, ""]:
        total = real.new_zeros(())
        for n_fft, hop, width in self.config.resolutions:
            window = torch.hann_window(width, device=real.device)
            x = magnitude_spectrogram(real, n_fft, hop, window, padding="centre").clamp(min=self.config.floor)
            y = magnitude_spectrogram(fake, n_fft, hop, window, padding="centre").clamp(min=self.config.floor)
            total = total + self.config.convergence * torch.linalg.norm(x - y) / torch.linalg.norm(x)
            total = total + self.config.log_magnitude * F.l1_loss(y.log(), x.log())
        return total / len(self.config.resolutions)
