"""HNeRV: a video as small learned embeddings, one a frame, and one convolutional decoder fitted to that video alone."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field, model_validator
from torch import Tensor

from encyclo.card import Card
from encyclo.data.video import Video, encode_video, read_video
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial
from encyclo.metrics.image import psnr
from encyclo.metrics.rate import bits_per_pixel, rate_at
from encyclo.nn.convnext import ConvNeXt
from encyclo.nn.frame_code import FrameCode
from encyclo.nn.nerv import NervDecoder, choose_strides, solve_width
from encyclo.picture import Picture, curves, grid
from encyclo.systems.fitted_video import FittedVideo, FittedVideoConfig, Reading, Source
from encyclo.tokens.quantise import TensorCoding
from encyclo.training.config import AdamW, Schedule, TrainingConfig
from encyclo.verbs import Result

if TYPE_CHECKING:
    from encyclo.data import Splits

CARD = Card(
    slug="hnerv",
    title="HNeRV: A Hybrid Neural Representation for Videos",
    authors="Hao Chen, Matt Gwilliam, Ser-Nam Lim, Abhinav Shrivastava",
    year=2023,
    arxiv="2304.02633",
    venue="CVPR 2023",
    wing="video",
    summary="A video as a small decoder and a tiny embedding per frame, both fitted to that video alone.",
    verbs=("compress", "decompress", "decode", "encode", "interpolate", "inpaint", "inspect"),
    code="https://github.com/haochen-rye/HNeRV",
    code_licence="none stated",
    keywords=("implicit neural representation", "video compression", "ConvNeXt", "pixel shuffle"),
)

PAPER_CODING = TensorCoding(bits=8, sequence_bits=8, coder="huffman", predict=False)
"""As the paper codes (section 3.3): 8 bits, one Huffman table."""


def _training(steps: int, lr: float = 1e-3, **more: Any) -> TrainingConfig:
    """The paper's: Adam, batch 2, a tenth of the budget from 0.1 to 1 times the rate, then a cosine to 0."""
    schedule = Schedule(shape="cosine", warmup=0.1, start=0.1)
    return TrainingConfig(steps=steps, batch_size=2, optimiser=AdamW(lr=lr), schedule=schedule, **more)


class HNeRV(FittedVideo):
    """Content-adaptive embeddings, a decoder with its weights moved to the late layers (arXiv 2304.02633, section 3).

    While fitting, a ConvNeXt encoder makes e_t [d, H/P, W/P] of frame x_t; the decoder makes the frame of e_t. After it
    the embeddings are kept and the encoder is not stored. Loss: mean squared error over everything. A frame between two
    fitted ones comes of the mean of their embeddings.
    """

    card = CARD

    class Config(FittedVideoConfig):
        dim: int = Field(16, ge=1, le=1 << 16, description="d, channels of an embedding")
        encoder: ConvNeXt.Config | None = Field(
            ConvNeXt.Config(strides=(5, 4, 4, 2, 2), depths=(1,) * 5, dims=(64, 64, 64, 64, 16)),
            description="None in a system opened from a file",
        )
        training: TrainingConfig = _training(19_800)  # 300 epochs of 132 frames

        @model_validator(mode="after")
        def _fits_together(self) -> "HNeRV.Config":
            if self.encoder is None:
                return self
            if self.encoder.dims[-1] != self.dim:
                raise ValueError(f"encoder.dims ends in {self.encoder.dims[-1]}, dim is {self.dim}: make them equal")
            product = math.prod(self.encoder.strides)
            if self.decoder.enlargement != (product, product):
                raise ValueError(
                    f"the encoder shrinks {product} times, the decoder enlarges {self.decoder.enlargement}: change the strides"
                )
            return self

    in_file = (*FittedVideo.in_file, "dim")
    sized = ("decoder.", "encoder.", "dim=")
    decoding_only = {"encoder": None}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.encoder: ConvNeXt | None = None
        if config.encoder is not None:
            self.encoder = config.encoder.build()
            self.encoder.to(memory_format=torch.channels_last)
        self.embeddings: Tensor
        self.register_buffer("embeddings", torch.zeros(self.code_shapes(config)["embeddings"]))

    @classmethod
    def code_dim(cls, config: Any) -> int:
        """d."""
        return int(config.dim)

    @classmethod
    def code_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        """Embeddings [fitted frames, d, H/P, W/P]."""
        return {"embeddings": (config.fitted, config.dim, *config.grid)}

    @classmethod
    def for_clip(cls, config: Any, frames: int, height: int, width: int) -> "HNeRV.Config":
        """Strides by `choose_strides`; below 10 million pixels d = 8 and C_low = 8, else 16 and 12."""
        strides = choose_strides(height, width)
        dim, lowest = (8, 8) if frames * height * width < 10_000_000 else (16, 12)
        wide = config.encoder.dims[0] if config.encoder is not None else 64
        dims = (wide,) * (len(strides) - 1) + (dim,)
        encoder = (config.encoder or ConvNeXt.Config()).replace(strides=strides, depths=(1,) * len(strides), dims=dims)
        decoder = config.decoder.replace(strides=strides, lowest=lowest, grow=(1, 1))
        changed = config.replace(
            frames=frames, height=height, width=width, dim=dim, encoder=encoder, decoder=decoder
        )
        embedded = math.prod(cls.code_shapes(changed)["embeddings"])
        least = 2 * embedded + decoder.replace(width=8).size(dim)
        budget = config.size or max(_usual_size(frames * height * width), least)
        solved = solve_width(decoder, dim=dim, budget=budget, embeddings=embedded)
        made: HNeRV.Config = changed.replace(decoder=solved)
        return made

    def training_codes(
        self, index: Int64[Tensor, " b"], frames: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b d rows columns"]:
        """Embeddings of frames by the encoder."""
        assert self.encoder is not None
        out: Tensor = self.encoder(frames)
        return out

    def stored_codes(self) -> dict[str, Float[Tensor, "t ..."]]:
        """The embeddings."""
        return {"embeddings": self.embeddings}

    def keep_codes(self, codes: Mapping[str, Tensor]) -> None:
        """Take embeddings."""
        self.embeddings.copy_(codes["embeddings"])

    def after_fit(self, frames: UInt8[Tensor, "t 3 h w"]) -> None:
        """Make the embeddings of all fitted frames."""
        self.embeddings.copy_(self._embed(frames))

    def _embed(self, frames: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d rows columns"]:
        if self.encoder is None:
            raise InputError("a compressed file holds no encoder: use the run that made it")
        parts = []
        with torch.no_grad():
            for part in frames.split(4):
                images = part.to(self.device).contiguous(memory_format=torch.channels_last)
                parts.append(self.encoder(images.float().div_(255)))
        return torch.cat(parts)

    def codes(
        self, times: Float[Tensor, " n"], stored: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "n d rows columns"]:
        """Embeddings at `times`: of a fitted frame its own, in between the two neighbours' in proportion (at half, the
        mean, section 4.3), behind the last fitted frame its own."""
        embeddings = (stored or self.stored_codes())["embeddings"]
        place = (times / self.config.every).clamp(0, len(embeddings) - 1)
        before = place.floor().long()
        after = (before + 1).clamp(max=len(embeddings) - 1)
        part = (place - before)[:, None, None, None]
        return embeddings[before] + part * (embeddings[after] - embeddings[before])

    def encode(self, source: Source | None = None) -> Result:
        """Embeddings [frames, d * rows * columns].

        Args:
            source: a video of the fitted size, encoded frame by frame by the fitted encoder; a file that `compress`
                wrote or None: the stored embeddings.
        """
        if source is None or isinstance(source, bytes) or (not isinstance(source, Video) and _is_container(source)):
            opened = self._opened(source)
            assert isinstance(opened, HNeRV)
            return Result(opened.embeddings.flatten(1).cpu(), {"frames": len(opened.embeddings)})
        video = source if isinstance(source, Video) else read_video(source, max_frames=self.config.reading.frames)
        prepared = self.config.reading.apply(video)
        if prepared.frames.shape[2:] != (self.config.height, self.config.width):
            raise InputError(
                f"'{video.name}' has frames of {prepared.frames.shape[3]}x{prepared.frames.shape[2]}, the encoder takes"
                f" {self.config.width}x{self.config.height}"
            )
        codes = self._embed(self.pad(prepared.frames))
        return Result(codes.flatten(1).cpu(), {"frames": len(codes)}, prepared.notes)

    def evaluate(self, data: "Splits") -> dict[str, float]:
        """As every fitted video; with held-out frames also `psnr_encoded`: those decoded from their own embeddings (the
        paper's dagger row), which measures the encoder and is no codec."""
        metrics = super().evaluate(data)
        if "psnr_between" in metrics:
            frames = self.read(data).frames
            held = frames[[t for t in range((self.config.fitted - 1) * self.config.every) if t % self.config.every]]
            shown = self.render(codes=self._embed(self.pad(held)))
            metrics["psnr_encoded"] = float(psnr(shown, held).mean())
        return metrics


class NeRV(FittedVideo):
    """The rival: the decoder's input is a code of the frame's number alone (Chen et al. 2021, arXiv 2110.13903).

    As in HNeRV's code base: 160 sines and cosines of t = index / T, a linear layer to the first grid, kernels of 3, widths
    halved from stage to stage.
    """

    card = CARD

    class Config(FittedVideoConfig):
        code: FrameCode.Config = FrameCode.Config()
        decoder: NervDecoder.Config = NervDecoder.Config(
            width=54, strides=(5, 4, 2, 2), reduce=2.0, kernels=(3, 3), grow=(8, 16)
        )
        training: TrainingConfig = _training(19_800)

        @model_validator(mode="after")
        def _one_place(self) -> "NeRV.Config":
            if self.grid != (1, 1):
                raise ValueError(f"the decoder enlarges {self.decoder.enlargement} times, too little for the frame")
            return self

    in_file = (*FittedVideo.in_file, "code")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.code: FrameCode = config.code.build()

    @classmethod
    def code_dim(cls, config: Any) -> int:
        """Length of a frame's code."""
        return 2 * int(config.code.levels)

    @classmethod
    def for_clip(cls, config: Any, frames: int, height: int, width: int) -> "NeRV.Config":
        """Strides by `choose_strides`, the first grid what they leave of the frame."""
        strides = choose_strides(height, width)
        product = math.prod(strides)
        lowest = 8 if frames * height * width < 10_000_000 else 12
        grow = (-(-height // product), -(-width // product))
        decoder = config.decoder.replace(strides=strides, grow=grow, lowest=lowest)
        dim = cls.code_dim(config)
        budget = config.size or max(_usual_size(frames * height * width), decoder.replace(width=4).size(dim))
        solved = solve_width(decoder, dim=dim, budget=budget)
        made: NeRV.Config = config.replace(frames=frames, height=height, width=width, decoder=solved)
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
        out: Tensor = self.code(times.double() / self.config.frames)
        return out[:, :, None, None]


def _usual_size(pixels: int) -> int:
    """1.5 million numbers for Big Buck Bunny's 108 million pixels, with their 0.8th power: about 54,000 at 80x160."""
    return round(1.5e6 * (pixels / (132 * 640 * 1280)) ** 0.8)


def _is_container(path: Any) -> bool:
    from encyclo.tokens.container import system_of

    with path.open("rb") as file:
        return system_of(file.read(80)) is not None
