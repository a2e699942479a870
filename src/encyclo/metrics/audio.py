"""How near one wave is to another: SI-SDR, log-mel and STFT distances, STOI, PESQ; over all or voiced frames."""

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from encyclo.errors import InputError
from encyclo.tokens.mel import LogMel, magnitude_spectrogram

__all__ = ["MelDistance", "pesq", "si_sdr", "stft_distance", "stoi", "voiced_frames"]


def si_sdr(real: Float[Tensor, "*b n"], fake: Float[Tensor, "*b n"], eps: float = 1e-8) -> Float[Tensor, "*b"]:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508), means removed.

    10 log10 |a s|^2 / |a s - y|^2 with a = <y, s> / |s|^2. It is sensitive to a delay of one sample.
    """
    s = real.double() - real.double().mean(-1, keepdim=True)
    y = fake.double() - fake.double().mean(-1, keepdim=True)
    scale = ((y * s).sum(-1, keepdim=True) + eps) / (s.square().sum(-1, keepdim=True) + eps)
    target = scale * s
    ratio = (target.square().sum(-1) + eps) / ((target - y).square().sum(-1) + eps)
    return (10 * ratio.log10()).float()


def stft_distance(
    real: Float[Tensor, "*b n"],
    fake: Float[Tensor, "*b n"],
    resolutions: Sequence[tuple[int, int]] = ((1024, 256), (512, 128), (256, 64)),
    floor: float = 1e-5,
) -> Float[Tensor, ""]:
    """Mean over resolutions (n_fft, hop) of mean |ln S_x - ln S_y|, Hann windows."""
    total = torch.zeros((), dtype=torch.float64)
    for n_fft, hop in resolutions:
        window = torch.hann_window(n_fft, device=real.device)
        x, y = (magnitude_spectrogram(w, n_fft, hop, window).clamp(min=floor).log() for w in (real, fake))
        total += F.l1_loss(y, x).double().cpu()
    return (total / len(resolutions)).float()


class MelDistance:
    """Mean over resolutions of mean |ln mel_x - ln mel_y|, over all frames and over chosen ones.

    Args:
        rate: samples a second.
        resolutions: (n_fft, hop, bands); the default covers windows of about 64, 32 and 16 ms.
    """

    def __init__(self, rate: int, resolutions: Sequence[tuple[int, int, int]] | None = None) -> None:
        self.rate = rate
        if resolutions is None:
            unit = 1 << max(7, round(np.log2(rate * 0.016)))
            resolutions = ((4 * unit, unit, 80), (2 * unit, unit // 2, 40), (unit, unit // 4, 20))
        self.fronts = [
            LogMel.Config(rate=rate, n_fft=n_fft, hop=hop, bands=bands).build() for n_fft, hop, bands in resolutions
        ]

    @torch.no_grad()
    def __call__(
        self, real: Float[Tensor, " n"], fake: Float[Tensor, " n"], frames: Bool[Tensor, " f"] | None = None
    ) -> Float[Tensor, ""]:
        """The distance of one pair of equally long waves; nan where `frames` chooses none.

        Args:
            real, fake: samples.
            frames: of `voiced_frames`: only spectrogram frames whose middle lies in a chosen one count.
        """
        parts = []
        for front in self.fronts:
            gap = (front(real.cpu().float()) - front(fake.cpu().float())).abs().mean(0)
            if frames is not None:
                middle = (torch.arange(gap.numel()) + 0.5) * front.config.hop / (self.rate * VOICED_HOP)
                gap = gap[frames[middle.long().clamp(max=frames.numel() - 1)]]
            parts.append(gap.mean())
        return torch.stack(parts).mean()


VOICED_HOP = 0.010
"""Seconds between two frames of `voiced_frames`."""


def voiced_frames(
    wave: Float[Tensor, " n"], rate: int, *, threshold: float = 0.5, range_db: float = 35.0
) -> Bool[Tensor, " f"]:
    """Which 10 ms frames hold voiced speech: periodic at 60-400 Hz and not much softer than the loudest.

    A frame is voiced when the normalised autocorrelation of the 40 ms around it has a peak of at least `threshold` at a
    lag of 1/400 to 1/60 s, and its energy lies within `range_db` of the file's loudest frame. It serves to leave
    silence out of a metric, not to track pitch.
    """
    width, hop = round(0.040 * rate), round(VOICED_HOP * rate)
    x = F.pad(wave.detach().cpu().float()[None], (width // 2, width))[0]
    count = max(1, -(-wave.numel() // hop))
    frames = x.unfold(0, width, hop)[:count]
    frames = frames - frames.mean(-1, keepdim=True)
    size = 1 << (2 * width - 1).bit_length()
    spectrum = torch.fft.rfft(frames, size)
    correlation = torch.fft.irfft(spectrum.abs().square(), size)[:, :width]
    energy = correlation[:, :1]
    # a lag leaves width - lag products, so the plain autocorrelation falls with the lag: undo that
    correlation = correlation / energy.clamp(min=1e-10) * (width / (width - torch.arange(width))).clamp(max=4)
    first, last = max(1, rate // 400), min(width - 1, rate // 60)
    peak = correlation[:, first : last + 1].amax(-1)
    loud = energy[:, 0] > energy.max() * 10 ** (-range_db / 10)
    voiced: Bool[Tensor, " f"] = (peak >= threshold) & loud & (energy[:, 0] > 1e-8)
    return voiced


def stoi(real: Float[Tensor, " n"], fake: Float[Tensor, " n"], rate: int) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), 0 to 1, by pystoi; nan for clips that are too short.

    Raises:
        InputError: where pystoi is not installed.
    """
    try:
        from pystoi import stoi as measure
    except ImportError:
        raise InputError("STOI needs the package pystoi: pip install 'encyclo[audio]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(measure(real.cpu().double().numpy(), fake.cpu().double().numpy(), rate, extended=False))
        except (RuntimeWarning, ValueError):
            return float("nan")  # fewer than 30 frames (0.4 s) of speech


def pesq(
    real: Float[Tensor, " n"], fake: Float[Tensor, " n"], rate: int, mode: Literal["nb", "wb"] | None = None
) -> float:
    """Perceptual evaluation of speech quality, 1 to about 4.6, by the package pesq; nan where it finds no speech.

    Args:
        real, fake: samples at 8,000 Hz (mode 'nb') or 16,000 Hz ('wb' by default); other rates are resampled to 16,000.
        rate: their rate.
        mode: narrow or wide band.

    Raises:
        InputError: where the package is not installed.
    """
    try:
        from pesq import PesqError
        from pesq import pesq as measure
    except ImportError:
        raise InputError("PESQ needs the package pesq: pip install pesq") from None
    if not real.any() or not fake.any():
        return float("nan")
    pair = [real.cpu().float().numpy(), fake.cpu().float().numpy()]
    if rate not in (8000, 16000):
        import soxr

        pair = [soxr.resample(wave, rate, 16000, quality="HQ") for wave in pair]
        rate = 16000
    try:
        return float(measure(rate, *pair, mode or ("nb" if rate == 8000 else "wb")))
    except (PesqError, ValueError):
        return float("nan")
