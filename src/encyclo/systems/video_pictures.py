"""Pictures of networks fitted to a video: frames side by side, quality against rate."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from encyclo.data.video import Video
from encyclo.metrics.image import psnr
from encyclo.metrics.rate import bits_per_pixel
from encyclo.picture import Picture, curves, grid
from encyclo.systems.fitted_video import FittedVideo

__all__ = ["rate_curves", "side_by_side"]

_WIDEST = 320
"""Pixels of a shown frame's width, about: larger ones are shrunk."""


def side_by_side(video: Video, fitted: Mapping[str, FittedVideo], caption: str) -> Picture:
    """Three frames of a clip and below them what fitted systems make of them, by label."""
    frames = video.frames
    chosen = [len(frames) * part // 12 for part in (1, 5, 8)]
    times = torch.tensor(chosen, dtype=torch.float32)

    def small(images: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h2 w2"]:
        return functional.avg_pool2d(images.float(), max(1, images.shape[3] // _WIDEST)).round().to(torch.uint8)

    shown = {"original": small(frames[chosen])}
    shown |= {label: small(system.render(times)) for label, system in fitted.items()}
    return grid(shown, "frames", caption, scale=2 if frames.shape[3] <= 160 else 1, docs=True)


def rate_curves(
    video: Video,
    fitted: tuple[str, FittedVideo],
    ladders: Mapping[str, Sequence[tuple[float, float]]],
    caption: str,
) -> Picture:
    """Mean PSNR over bits per pixel: the files of a fitted system at 4 to 8 bits, and codecs' (rate, quality) points.

    Args:
        fitted: label and system.
    """
    name, system = fitted
    frames, points = video.frames, []
    for bits in (4, 5, 6, 7, 8):
        coding = system.config.coding.replace(bits=bits, sequence_bits=bits, coder="ans", predict=True)
        blob, decoder, stored = system.coded(coding)
        quality = float(psnr(system.render(decoder=decoder, stored=stored), frames).mean())
        points.append((bits_per_pixel(len(blob), len(frames), *frames.shape[2:]), quality))
    lines = {f"{name}, 4 to 8 bits": points, **ladders}
    return curves(lines, "rate", caption, x="bits per pixel", y="mean PSNR (dB)", log_x=True, markers=True, docs=True)
