"""What a network fitted to a video is compared with: NeRV, which knows frames by their number, and classical codecs.

A system's file derives its rival from these: a class with the file's card, and the defaults of its experiment.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, Int64
from pydantic import model_validator
from torch import Tensor

from encyclo.data.video import Video, encode_video
from encyclo.metrics.image import psnr
from encyclo.metrics.rate import bits_per_pixel
from encyclo.nn.frame_code import FrameCode
from encyclo.nn.nerv import NervDecoder, choose_strides, solve_width, usual_size
from encyclo.systems.fitted_video import FittedVideo, FittedVideoConfig

__all__ = ["FrameNumberVideo", "FrameNumberVideoConfig", "classical_codec", "codec_settings"]


class FrameNumberVideoConfig(FittedVideoConfig):
    """The code of a frame's number, and NeRV's layout of the decoder; by default Bunny at 1.5M, as published."""

    code: FrameCode.Config = FrameCode.Config()
    decoder: NervDecoder.Config = NervDecoder.Config(
        width=54, strides=(5, 4, 2, 2), reduce=2.0, kernels=(3, 3), grow=(8, 16)
    )

    @model_validator(mode="after")
    def _one_place(self) -> "FrameNumberVideoConfig":
        if self.grid != (1, 1):
            raise ValueError(f"the decoder enlarges {self.decoder.enlargement} times, too little for the frame")
        return self


class FrameNumberVideo(FittedVideo):
    """NeRV: the decoder's input is a code of the frame's number alone (Chen et al. 2021, arXiv 2110.13903).

    As in HNeRV's code base: 160 sines and cosines of t = index / T, a linear layer to the first grid, kernels of 3,
    widths halved from stage to stage.
    """

    Config = FrameNumberVideoConfig

    in_file = (*FittedVideo.in_file, "code")

    def __init__(self, config: FrameNumberVideoConfig) -> None:
        super().__init__(config)
        self.code: FrameCode = config.code.build()

    @classmethod
    def code_dim(cls, config: Any) -> int:
        """Length of a frame's code."""
        levels: int = config.code.levels
        return 2 * levels

    @classmethod
    def for_clip(cls, config: Any, frames: int, height: int, width: int) -> Any:
        """Strides by `choose_strides`, the first grid what they leave of the frame."""
        strides = choose_strides(height, width)
        product = math.prod(strides)
        lowest = 8 if frames * height * width < 10_000_000 else 12
        grow = (-(-height // product), -(-width // product))
        decoder = config.decoder.replace(strides=strides, grow=grow, lowest=lowest)
        dim = cls.code_dim(config)
        budget = config.size or max(usual_size(frames * height * width), decoder.replace(width=4).size(dim))
        solved = solve_width(decoder, dim=dim, budget=budget)
        made = config.replace(frames=frames, height=height, width=width, decoder=solved)
        return made

    def training_codes(
        self, index: Int64[Tensor, " b"], frames: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b d rows columns"]:
        """Codes of frame numbers."""
        return self.codes(index.float())

    def codes(
        self, times: Float[Tensor, " n"], stored: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "n d rows columns"]:
        """Codes of times, also between frames."""
        out: Tensor = self.code(times.double() / self.config.frames)[:, :, None, None]
        return out


def codec_settings(video: Video) -> tuple[int, ...]:
    """Qualities (CRF) at which the classical codecs are run: fewer for large frames, which take minutes."""
    return (16, 20, 24, 28, 32, 36, 40, 44, 51) if video.frames.shape[2] < 480 else (20, 27, 34, 41)


def classical_codec(video: Video, codec: str, settings: Sequence[int]) -> tuple[list[float], list[float]]:
    """Bits per pixel and mean PSNR of a classical codec at each of its settings (CRF), preset medium, one thread.

    Args:
        codec: 'x264' or 'x265'.
    """
    coded = [encode_video(video, f"lib{codec}", preset="medium", crf=crf) for crf in settings]
    rates = [bits_per_pixel(size, len(video.frames), *video.frames.shape[2:]) for size, _ in coded]
    return rates, [float(psnr(back.frames, video.frames).mean()) for _, back in coded]
