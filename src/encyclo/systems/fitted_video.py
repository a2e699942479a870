"""What every video-as-a-network system of the library offers: a clip in, a small network fitted to it, a file out.

A system of this kind derives from `FittedVideo` and says what its decoder gets for a frame: an embedding made from the
frame (HNeRV), a code of its number (NeRV) ... The verbs, the file and the measures are the same for all.
"""

import contextlib
import copy
import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from pydantic import BeforeValidator, Field, ValidationError
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from encyclo.data.batches import Batches
from encyclo.data.holes import moves, read_hole
from encyclo.data.reading import Reading, frame_numbers
from encyclo.data.video import MAX_PIXELS, Video, read_video
from encyclo.errors import InputError
from encyclo.metrics.image import MS_SSIM_SMALLEST, SSIM_SMALLEST, ms_ssim, psnr, ssim
from encyclo.metrics.rate import bits_per_pixel
from encyclo.nn.nerv import NervDecoder
from encyclo.system import System, SystemConfig
from encyclo.systems import video_file
from encyclo.tokens import container
from encyclo.tokens.quantise import TensorCoding, decode_tensors, encode_tensors, quantise_best, straight_through
from encyclo.training import Loss, Trainer
from encyclo.training.config import TrainingConfig
from encyclo.verbs import Result

if TYPE_CHECKING:
    from encyclo.data import Splits

__all__ = ["FittedVideo", "FittedVideoConfig", "Reading", "Scalars", "usual_rate"]

logger = logging.getLogger(__name__)

_CLIP_FILE = "clip.json"
_PROBES = 22
"""Frames on which quality is followed during the fit."""
_CPU_BATCH, _GPU_BATCH, _SMALL_FRAME = 4, 8, 3 << 16
"""Frames decoded at once: on a CPU 4 (60 instead of 40 % of its GEMM rate) up to 256x256 pixels, larger ones alone."""


def _scalars(value: Any) -> Any:
    """'1.5M' and '300k' as numbers."""
    if isinstance(value, str) and value[-1:].lower() in ("k", "m"):
        try:
            return round(float(value[:-1]) * (1e3 if value[-1].lower() == "k" else 1e6))
        except (ValueError, OverflowError):
            return value
    return value


Scalars = Annotated[int, BeforeValidator(_scalars), Field(ge=1, le=video_file.MOST_SCALARS)]
"""A number of numbers, also as '1.5M' or '300k'."""


Source = Path | bytes | Video
"""A file that `compress` wrote, as path or bytes; or the clip that was fitted."""


class FittedVideoConfig(SystemConfig):
    """What all networks fitted to a clip have: the clip's size, a decoder, how it is coded."""

    frames: int = Field(132, ge=1)
    height: int = Field(640, ge=1)
    width: int = Field(1280, ge=1)
    reading: Reading = Reading()
    size: Scalars | None = Field(
        None, description="numbers to store in all, e.g. 1.5M; decides decoder.width when a file is compressed"
    )
    every: int = Field(1, ge=1, description="fit every so manieth frame only; those between are held out")
    hole: str | None = Field(
        None, description="what is hidden while fitting: 'boxes' (five of width 50), or a picture that is white there"
    )
    decoder: NervDecoder.Config = NervDecoder.Config()
    coding: TensorCoding = TensorCoding(bits=6, sequence_bits=6)
    prune: float = Field(0.0, ge=0, lt=1, description="share of the decoder's weights set to zero after the fit")
    finish: TrainingConfig | None = Field(
        None,
        description="further training of the decoder, with pruned weights held at zero and numbers rounded as stored",
    )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the decoder's input; the frame is padded to what they give."""
        rows, columns = self.decoder.enlargement
        return -(-self.height // rows), -(-self.width // columns)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width that the decoder makes; what exceeds the frame is cut off."""
        rows, columns = self.decoder.enlargement
        return self.grid[0] * rows, self.grid[1] * columns

    @property
    def fitted(self) -> int:
        """Number of frames that are fitted."""
        return -(-self.frames // self.every)


class FittedVideo(System):
    """A clip as the weights of a small decoder, and what a user does with it.

    A subclass gives `code_dim`, `code_shapes`, `for_clip`, `training_codes`, `codes` and what is stored of these.
    """

    in_file: ClassVar[tuple[str, ...]] = ("frames", "height", "width", "every", "decoder")
    """Fields of the configuration that a file holds."""
    sized: ClassVar[tuple[str, ...]] = ("decoder.",)
    """How the fields begin that `for_clip` sets."""
    decoding_only: ClassVar[Mapping[str, Any]] = {}
    """Fields that differ in a system opened from a file."""

    reads = "video"
    fits_each_input = True
    Config = FittedVideoConfig
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.decoder: NervDecoder = config.decoder.build(dim=self.code_dim(config))
        self.decoder.to(memory_format=torch.channels_last)
        self.clip: dict[str, Any] = {}
        """Of the clip that was fitted: fps (a fraction), name, digest of its frames."""
        self.hole: Tensor | None
        shape = (config.frames if moves(config.hole or "") else 1, 1, config.height, config.width)
        hidden = torch.zeros(shape, dtype=torch.uint8) if config.hole is not None else None
        self.register_buffer("hole", hidden)
        self.seconds: float | None = None
        """That the fit took; None in a system that was opened."""
        self._sections: dict[str, int] = {}
        """Bytes of each part of the file that this was opened from."""

    # -- what a subclass gives ---------------------------------------------------------------------------------------

    @classmethod
    def code_dim(cls, config: Any) -> int:
        """Channels of the decoder's input."""
        raise NotImplementedError

    @classmethod
    def code_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of what `stored_codes` gives."""
        return {}

    @classmethod
    def for_clip(cls, config: Any, frames: int, height: int, width: int) -> Any:
        """The configuration for a clip of this size: strides, grid and, by `config.size`, the decoder's width.

        Raises:
            InputError: a size that the clip's embeddings alone exceed.
        """
        raise NotImplementedError

    def training_codes(
        self, index: Int64[Tensor, " b"], frames: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b d rows columns"]:
        """The decoder's input for frames of the clip, with gradient."""
        raise NotImplementedError

    def codes(
        self, times: Float[Tensor, " n"], stored: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "n d rows columns"]:
        """The decoder's input at times, in frames from the first on; between two fitted frames as the paper says.

        Args:
            stored: in place of `stored_codes()`.
        """
        raise NotImplementedError

    def stored_codes(self) -> dict[str, Float[Tensor, "t ..."]]:
        """What a file must hold beside the decoder: by name, tensors whose first axis is time."""
        return {}

    def keep_codes(self, codes: Mapping[str, Tensor]) -> None:
        """Take what `stored_codes` gave."""

    def after_fit(self, frames: UInt8[Tensor, "t 3 h w"]) -> None:
        """Make what is stored, from the fitted frames (padded; holes black)."""

    # -- sizes -------------------------------------------------------------------------------------------------------

    @classmethod
    def numbers(cls, config: Any) -> int:
        """True total: all numbers that a file holds, embeddings and decoder (the encoder is not stored)."""
        embedded = sum(math.prod(shape) for shape in cls.code_shapes(config).values())
        return embedded + int(config.decoder.size(cls.code_dim(config)))

    @property
    def multiplications(self) -> int:
        """Multiply-accumulates for one decoded frame."""
        return sum(self.config.decoder.multiplications(self.code_dim(self.config), self.config.grid).values())

    # -- frames in ---------------------------------------------------------------------------------------------------

    def read(self, data: "Splits") -> Video:
        """The clip of a data set, as it is fitted; see `Reading.clip`."""
        clip: Video = self.config.reading.clip(data)
        return clip

    def pad(self, frames: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h2 w2"]:
        """Frames enlarged to what the decoder makes, by repeating the last row and column."""
        height, width = self.config.padded
        extra = (0, width - frames.shape[3], 0, height - frames.shape[2])
        return functional.pad(frames, extra, mode="replicate") if any(extra) else frames

    def _hidden(self, index: Int64[Tensor, " b"]) -> Bool[Tensor, "_ 1 h w"] | None:
        """Where frames are hidden, padded; None where nothing is."""
        if self.hole is None:
            return None
        chosen = self.hole[index] if len(self.hole) > 1 else self.hole
        height, width = self.config.padded
        extra = (0, width - self.config.width, 0, height - self.config.height)
        return functional.pad(chosen, extra).bool()

    # -- fitting -----------------------------------------------------------------------------------------------------

    def fit(self, data: "Splits", trainer: Trainer) -> None:
        """Fit the decoder to the clip in `data.train`; stage "fit", then, where asked for, pruning and stage "finish".

        A clip of another size than the configuration's changes the configuration (`for_clip`), with a note.
        """
        video = self.read(data)
        _say(video.notes)
        count, _, height, width = video.frames.shape
        config = self.config
        if (count, height, width) != (config.frames, config.height, config.width):
            config = self.for_clip(config, count, height, width)
            logger.warning(
                "configuration fitted to the clip: %d frames of %dx%d, strides %s, width %d",
                count, width, height, config.decoder.strides, config.decoder.width,
            )  # fmt: skip
            self.__init__(config)
        self.clip = {"fps": str(video.fps), "name": video.name, "digest": _digest(video.frames)}
        if self.hole is not None:
            self.hole = read_hole(config.hole, count, height, width).to(self.hole)
        self.to(trainer.device)
        frames = self.pad(video.frames[:: config.every]).to(trainer.device)
        if self.hole is not None:
            index = torch.arange(len(frames), device=trainer.device) * config.every
            hidden = self._hidden(index)
            assert hidden is not None
            frames = frames * ~hidden  # what is hidden never goes in
        frames = frames.contiguous(memory_format=torch.channels_last)
        training = config.training.replace(batch_size=min(config.training.batch_size, len(frames)))
        batches = Batches(len(frames), training.batch_size, seed=trainer.generator.initial_seed())
        probes = torch.arange(0, len(frames), max(1, len(frames) // _PROBES), device=trainer.device)
        targets = frames[probes][..., :height, :width]

        def loss(batch: Int64[Tensor, " b"]) -> Loss:
            target = frames[batch.to(frames.device)].float().div_(255)
            index = batch.to(frames.device) * config.every
            return Loss(self._error(self.decoder(self.training_codes(index, target)), target, index), len(batch))

        def follow() -> dict[str, float]:
            shown = [
                self._bytes(self.decoder(self.training_codes(i * config.every, frames[i].float().div_(255))))
                for i in torch.split(probes, 4)
            ]
            return {"psnr": float(psnr(torch.cat(shown), targets).mean())}

        evaluate = follow if training.evaluate_every else None
        took = trainer.fit(self, loss, batches, training, stage="fit", evaluate=evaluate).seconds
        with torch.no_grad():
            self.after_fit(frames)
        kept = self._prune()
        if config.finish is not None:
            took += self._finish(trainer, frames, batches, config.finish, kept)
        self.seconds = took

    def _error(
        self, predicted: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"], index: Int64[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """Mean squared error over what is visible of the true frame: neither padding nor holes count."""
        hidden = self._hidden(index)
        if hidden is not None:
            predicted, target = predicted * ~hidden, target * ~hidden
        size = (self.config.height, self.config.width)
        if self.config.padded != size:
            predicted, target = predicted[..., : size[0], : size[1]], target[..., : size[0], : size[1]]
        return functional.mse_loss(predicted, target)

    @torch.no_grad()
    def _prune(self) -> dict[str, Bool[Tensor, "..."]]:
        """Set the smallest weights of all of the decoder's convolutions to zero; where the others are, by name."""
        if not self.config.prune:
            return {}
        weights = {name: p for name, p in self.decoder.named_parameters() if p.ndim > 1}
        sizes = torch.cat([p.abs().flatten() for p in weights.values()])
        bound = sizes.kthvalue(max(1, round(self.config.prune * len(sizes)))).values
        kept = {name: p.abs() > bound for name, p in weights.items()}
        for name, p in weights.items():
            p.mul_(kept[name])
        return kept

    def finished(self, video: Video, config: TrainingConfig, *, seed: int = 0) -> "FittedVideo":
        """A copy whose decoder is trained on with its numbers rounded as they will be stored; see `_finish`.

        Args:
            video: the fitted clip, as `read` gives it.
        """
        made = copy.deepcopy(self)
        trainer = Trainer(None, seed=seed, progress=False, device=str(self.device))
        frames = made.pad(video.frames[:: made.config.every]).to(made.device)
        batches = Batches(len(frames), min(config.batch_size, len(frames)), seed=seed)
        made._finish(trainer, frames.contiguous(memory_format=torch.channels_last), batches, config, {})
        return made.eval()

    def _finish(
        self,
        trainer: Trainer,
        frames: UInt8[Tensor, "t 3 h w"],
        batches: Batches,
        config: TrainingConfig,
        kept: Mapping[str, Tensor],
    ) -> float:
        """Train the decoder on, its numbers rounded as they will be stored (straight-through), pruned ones at zero."""
        coding = self.config.coding
        stored = self.restored(coding)[1]
        names = dict(self.decoder.named_parameters())
        best = coding.ranges == "best"
        axes = {name: quantise_best(p, coding.bits).axis if best else None for name, p in names.items()}

        def loss(batch: Int64[Tensor, " b"]) -> Loss:
            index = batch.to(frames.device)
            rounded = {}
            for name, p in names.items():
                weight = p * kept[name] if name in kept else p
                rounded[name] = straight_through(weight, coding.bits, axis=axes[name])
            times = index * self.config.every
            predicted = functional_call(self.decoder, rounded, (self.codes(times.float(), stored),))
            return Loss(self._error(predicted, frames[index].float().div_(255), times), len(batch))

        training = config.replace(batch_size=batches.batch_size)
        again = Batches(len(frames), batches.batch_size, seed=batches.seed + 1)
        took = trainer.fit(self, loss, again, training, stage="finish", parameters=self.decoder.parameters()).seconds
        with torch.no_grad():
            for name, mask in kept.items():
                names[name].mul_(mask)
        return took

    # -- frames out --------------------------------------------------------------------------------------------------

    def _bytes(self, decoded: Float[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h2 w2"]:
        shown = decoded[..., : self.config.height, : self.config.width]
        return shown.float().mul(255).round_().to(torch.uint8)

    @torch.no_grad()
    def render(
        self,
        times: Float[Tensor, " n"] | None = None,
        *,
        decoder: NervDecoder | None = None,
        stored: Mapping[str, Tensor] | None = None,
        codes: Float[Tensor, "n d rows columns"] | None = None,
    ) -> UInt8[Tensor, "n 3 h w"]:
        """Frames at `times` (default: all), in the clip's size, on the CPU.

        Frames are decoded in batches of one size, the last filled up, because libraries choose their arithmetic by the
        shape: so a frame decoded alone equals the same frame among others to the bit.
        """
        if codes is None:
            chosen = torch.arange(self.config.frames, dtype=torch.float32) if times is None else times
            codes = self.codes(chosen.to(self.device), stored)
        network = decoder if decoder is not None else self.decoder
        out = torch.empty((len(codes), 3, self.config.height, self.config.width), dtype=torch.uint8)
        step = _GPU_BATCH if codes.device.type != "cpu" else _CPU_BATCH if out[:1].numel() <= _SMALL_FRAME else 1
        for part, frames in zip(torch.split(codes, step), torch.split(out, step), strict=True):
            filled = torch.cat([part, part[-1:].expand(step - len(part), -1, -1, -1)])
            shown = self._bytes(network(filled.contiguous(memory_format=torch.channels_last)))
            frames.copy_(shown[: len(part)])
        return out

    def restored(self, coding: TensorCoding) -> tuple[NervDecoder, dict[str, Float[Tensor, "t ..."]], dict[str, bytes]]:
        """The decoder and the stored codes as a file with this coding would give them back, and the file's sections."""
        weights = {name: p.detach() for name, p in self.decoder.named_parameters()}
        stored = self.stored_codes()
        sections, back = encode_tensors({**stored, **weights}, coding, sequences=list(stored))
        decoder = copy.deepcopy(self.decoder)
        with torch.no_grad():
            for name, p in decoder.named_parameters():
                p.copy_(back[name])
        return decoder, {name: back[name].to(self.device) for name in stored}, sections

    # -- the file ----------------------------------------------------------------------------------------------------

    def coded(self, coding: TensorCoding) -> tuple[bytes, NervDecoder, dict[str, Tensor]]:
        """The file with this coding, and the decoder and stored codes as it gives them back."""
        decoder, stored, sections = self.restored(coding)
        return video_file.pack(self, sections), decoder, stored

    def compress(
        self,
        video: Video | None = None,
        *,
        bits: int | None = None,
        embedding_bits: int | None = None,
        coder: Literal["plain", "huffman", "ans", "range"] | None = None,
    ) -> Result:
        """Write the fitted clip as one file: header, quantised and entropy-coded numbers, checksum.

        Args:
            video: the clip that was fitted, to measure what comes back; None measures nothing.
            bits: of each weight before entropy coding (default: the configuration's).
            embedding_bits: of each embedding's number.
            coder: ans or range (a table for each large tensor), huffman (the paper's one table), plain.

        Raises:
            InputError: nothing was fitted, or another clip than `video`.
        """
        self._need_clip()
        coding = self._coding(bits, embedding_bits, coder)
        blob, decoder, stored = self.coded(coding)
        notes: list[str] = []
        if self.hole is not None:
            notes.append("fitted with hidden regions: they hold what the network put there")
        report: dict[str, Any] = {
            "bytes": len(blob),
            "bits_per_pixel": self._bpp(len(blob)),
            "numbers": self.numbers(self.config),
        }
        if self.seconds is not None:
            report["fit_seconds"] = self.seconds
        if video is not None:
            prepared = self._fitted_to(video)
            notes += prepared.notes
            report |= self._quality(self.render(decoder=decoder, stored=stored), prepared.frames)
        padded = self.config.padded
        if padded != (self.config.height, self.config.width):
            notes.append(
                f"coded as {padded[1]}x{padded[0]} by repeating the last row and column, cut off again on decoding"
            )
        return Result(blob, report, tuple(notes))

    def _coding(self, bits: int | None, embedding_bits: int | None, coder: str | None) -> TensorCoding:
        chosen = {"bits": bits, "sequence_bits": embedding_bits, "coder": coder}
        changed = {name: value for name, value in chosen.items() if value is not None}
        try:
            coding: TensorCoding = self.config.coding.replace(**changed)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(
                f"{first['loc'][0]}={first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}"
            ) from None
        return coding

    def _opened(self, source: Source | None) -> "FittedVideo":
        """The system that a verb works on: the one in a compressed file, or this one for the clip it was fitted to.

        Raises:
            InputError: nothing is fitted, or `source` is another clip.
        """
        if source is None:
            self._need_clip()
            return self
        if isinstance(source, Path):
            with source.open("rb") as file:
                held = container.system_of(file.read(80)) is not None
            source = source.read_bytes() if held else read_video(source, max_frames=self.config.reading.frames)
        if isinstance(source, bytes):
            return self.open_container(source)
        self._fitted_to(source)
        return self

    def _fitted_to(self, video: Video) -> Video:
        """The clip as it is fitted, if it is the one."""
        self._need_clip()
        prepared: Video | None = None
        with contextlib.suppress(InputError):  # a part that this clip does not have: it is another
            prepared = self.config.reading.apply(video)
        if prepared is None or _digest(prepared.frames) != self.clip["digest"]:
            raise InputError(
                f"'{video.name}' is not the clip this was fitted to ('{self.clip['name']}'): fit it anew with"
                f" encyclo compress FILE --system {self.card.slug}"
            )
        return prepared

    def decompress(self, blob: bytes) -> Result:
        """The whole clip out of a file that `compress` wrote; no run is needed.

        Raises:
            InputError: a file that is cut off, altered or of another system.
        """
        return self.open_container(blob).decode()

    def decode(self, source: Source | None = None, *, frames: str = "all") -> Result:
        """Some frames, each decoded alone: no frame depends on another.

        Args:
            source: a file that `compress` wrote; None decodes the fitted run.
            frames: numbers from 0 on, as 3,40-50; or all.

        Raises:
            InputError: a number that the clip does not have.
        """
        opened = self._opened(source)
        if opened is not self:
            return opened.decode(frames=frames)
        chosen = frame_numbers(frames, self.config.frames)
        began = time.perf_counter()
        shown = self.render(torch.tensor(chosen, dtype=torch.float32))
        seconds = time.perf_counter() - began
        held = sum(number % self.config.every != 0 for number in chosen)
        notes = [f"{held} of these frames were not fitted: they are interpolated"] if held else []
        report = {"frames": len(shown), "frames_per_second": len(shown) / seconds}
        return Result(self._video(shown), report, tuple(notes))

    def interpolate(self, source: Source | None = None, *, factor: int = 2) -> Result:
        """The clip with `factor` times the frame rate: between two fitted frames the network is asked in between.

        Args:
            source: a file that `compress` wrote; None takes the fitted run.
            factor: at least 2.

        Raises:
            InputError: a factor below 2, or one frame only.
        """
        opened = self._opened(source)
        if opened is not self:
            return opened.interpolate(factor=factor)
        if factor < 2:
            raise InputError(f"factor={factor} adds no frame: give 2 or more")
        if self.config.frames < 2:
            raise InputError("the clip has one frame only: nothing lies between")
        last = (self.config.fitted - 1) * self.config.every
        count = last * factor + 1
        if count * self.config.height * self.config.width > MAX_PIXELS:
            raise InputError(f"factor={factor} gives {count} frames, more than are held at once: give a smaller one")
        times = torch.arange(count, dtype=torch.float32) / factor
        shown = self.render(times)
        notes = (
            ()
            if last == self.config.frames - 1
            else (f"the last {self.config.frames - 1 - last} frames lie behind the last fitted one",)
        )
        return Result(self._video(shown, factor), {"frames": len(shown)}, notes)

    def inpaint(self, video: Video) -> Result:
        """Fill what `hole` hid while fitting: the video outside, the network's output inside.

        Args:
            video: the clip that was fitted.

        Raises:
            InputError: nothing was hidden, or another clip.
        """
        self._need_clip()
        if self.hole is None:
            raise InputError("nothing was hidden while fitting: give hole=boxes or hole=PICTURE (white where to fill)")
        prepared = self._fitted_to(video)
        hidden = self.hole.bool().cpu()
        shown = torch.where(hidden, self.render(), prepared.frames)
        return Result(self._video(shown), {"hidden": float(hidden.float().mean())}, prepared.notes)

    def inspect(self, source: Source | None = None) -> Result:
        """What the clip costs: numbers, operations and bytes of each part.

        Args:
            source: a file that `compress` wrote; None inspects the fitted run, coded as configured.
        """
        opened = self._opened(source)
        if opened is not self:
            return opened.inspect()
        config, dim = self.config, self.code_dim(self.config)
        macs = config.decoder.multiplications(dim, config.grid)
        total = self.numbers(self.config)
        rows = [
            {"part": name, "numbers": t.numel(), "share": t.numel() / total, "MMAC_per_frame": 0.0}
            for name, t in self.stored_codes().items()
        ]
        rows += [
            {"part": name, "numbers": count, "share": count / total, "MMAC_per_frame": macs[name] / 1e6}
            for name, count in config.decoder.sizes(dim).items()
        ]
        sections = self._sections or video_file.sizes(self.coded(config.coding)[0])
        report: dict[str, Any] = {"numbers": total, **{f"bytes, {name}": size for name, size in sections.items()}}
        report["bits_per_pixel"] = self._bpp(sections["whole file"])
        return Result(rows, report)

    @classmethod
    def open_container(cls, blob: bytes) -> "FittedVideo":
        """The system that a file carries: its decoder and embeddings, without the encoder.

        Raises:
            InputError: a file that is cut off, altered, of another system or not written by encyclo.
        """
        held = video_file.unpack(cls.card.slug, blob)
        system: FittedVideo = held.config.build()
        stored = system.stored_codes()
        weights = dict(system.decoder.named_parameters())
        shapes = {name: tuple(t.shape) for name, t in {**stored, **weights}.items()}
        tensors = decode_tensors(held.sections, shapes, sequences=list(stored))
        with torch.no_grad():
            for name, p in weights.items():
                p.copy_(tensors[name])
        system.keep_codes({name: tensors[name] for name in stored})
        system.clip = {"fps": str(held.fps), "name": held.name, "digest": ""}
        system._sections = video_file.sizes(blob)
        system.eval()
        return system

    @classmethod
    def for_input(cls, config: Any, data: "Splits", words: Sequence[str]) -> Any:
        """The configuration for a user's own clip, as `encyclo compress FILE --system ...` fits it.

        Nothing is cropped or resized unless `words` ask for it. Strides follow the frame's size (`choose_strides`),
        the budget of numbers its pixels (1.5 million for the 108 million of Big Buck Bunny, and with their 0.8th
        power), the learning rate that number (`usual_rate`), and the training lasts two minutes; `words` can change
        everything.

        Args:
            config: of a preset.
            data: holds the clip.
            words: `field=value` words.

        Raises:
            InputError: wrong words, or a clip that cannot be read.
        """
        steps = any(word.startswith("training.steps=") for word in words)
        budget = {"seconds": None} if steps else {"steps": None, "seconds": 120.0}
        training = config.training.replace(**budget, evaluate_every=None)
        config = config.replace(reading=Reading(), size=None, every=1, hole=None, training=training)
        network = [word for word in words if word.startswith(cls.sized)]  # what follows from the clip's size
        config = config.override([word for word in words if word not in network])
        count, _, height, width = config.reading.clip(data).frames.shape
        chosen = cls.for_clip(config, count, height, width)
        if not any(word.startswith("training.optimiser") for word in words):
            rate = chosen.training.optimiser.replace(lr=usual_rate(cls.numbers(chosen)))
            chosen = chosen.replace(training=chosen.training.replace(optimiser=rate))
        return chosen.override(network)

    # -- measures ----------------------------------------------------------------------------------------------------

    def evaluate(self, data: "Splits") -> dict[str, float]:
        """Quality of the fitted frames, of what a file gives back, and of held-out frames.

        Metrics: `psnr`, `ssim`, `ms_ssim` (where the frames are large enough) of the network as it is; `bytes`, `bpp`
        and `psnr_file` of the file as configured; `bytes_8` and `psnr_8` of plain 8-bit numbers; `numbers`, `mmac`,
        `decode_fps`; with held-out frames `psnr_between` and, as naive rival, `psnr_average` of their neighbours.
        """
        frames = self.read(data).frames
        every, count = self.config.every, len(frames)
        fitted = torch.arange(0, count, every)
        visible = frames[fitted]
        self.render(fitted[:1].float())
        began = time.perf_counter()
        shown = self.render(fitted.float())
        fps = len(shown) / (time.perf_counter() - began)
        plain = TensorCoding(bits=8, sequence_bits=8, coder="plain")
        blob_8, decoder_8, stored_8 = self.coded(plain)
        back_8 = self.render(fitted.float(), decoder=decoder_8, stored=stored_8)
        metrics = {
            **self._quality(shown, visible),
            "numbers": self.numbers(self.config),
            "mmac": self.multiplications / 1e6,
            "decode_fps": fps,
            **self.measure_file(frames),
            "bytes_8": len(blob_8),
            "psnr_8": float(psnr(back_8, visible).mean()),
        }
        between = torch.tensor([t for t in range(int(fitted[-1])) if t % every])
        if len(between):
            metrics["psnr_between"] = float(psnr(self.render(between.float()), frames[between]).mean())
            before = between // every * every
            part = ((between - before) / every)[:, None, None, None]
            mean = frames[before] * (1 - part) + frames[before + every] * part
            metrics["psnr_average"] = float(psnr(mean.round().to(torch.uint8), frames[between]).mean())
        if self.hole is not None:
            hidden = self.hole.bool().cpu()
            filled = torch.where(hidden, self.render(), frames)
            metrics["psnr_filled"] = float(psnr(filled, frames).mean())
            metrics["psnr_hidden"] = float(psnr(frames * ~hidden, frames).mean())
        return metrics

    def measure_file(self, frames: UInt8[Tensor, "t 3 h w"]) -> dict[str, float]:
        """`bytes`, `bpp` and `psnr_file` of the file as configured, on the frames that were fitted."""
        blob, decoder, stored = self.coded(self.config.coding)
        times = torch.arange(0, len(frames), self.config.every)
        back = self.render(times.float(), decoder=decoder, stored=stored)
        quality = float(psnr(back, frames[times]).mean())
        return {"bytes": len(blob), "bpp": self._bpp(len(blob)), "psnr_file": quality}

    def _quality(self, shown: UInt8[Tensor, "n 3 h w"], frames: UInt8[Tensor, "n 3 h w"]) -> dict[str, float]:
        shown, frames = shown.to(self.device), frames.to(self.device)
        quality = {"psnr": float(psnr(shown, frames).mean())}
        smallest = min(frames.shape[2:])
        if smallest >= SSIM_SMALLEST:
            quality["ssim"] = float(ssim(shown, frames).mean())
        if smallest >= MS_SSIM_SMALLEST:
            quality["ms_ssim"] = float(ms_ssim(shown, frames).mean())
        return quality

    def _bpp(self, size: int) -> float:
        return bits_per_pixel(size, self.config.frames, self.config.height, self.config.width)

    def _video(self, frames: UInt8[Tensor, "n 3 h w"], factor: int = 1) -> Video:
        return Video(frames, Fraction(self.clip["fps"]) * factor, str(self.clip["name"]))

    def _need_clip(self) -> None:
        if not self.clip:
            raise InputError(
                "nothing is fitted yet: encyclo train, or encyclo compress FILE --system " + self.card.slug
            )

    # -- saving ------------------------------------------------------------------------------------------------------

    def assets(self) -> dict[str, bytes]:
        """The clip's frame rate, name and digest."""
        return {_CLIP_FILE: json.dumps(self.clip).encode()} if self.clip else {}

    def load_assets(self, assets: Mapping[str, bytes]) -> None:
        """Take back what `assets` gave."""
        if _CLIP_FILE in assets:
            self.clip = json.loads(assets[_CLIP_FILE])


def usual_rate(numbers: int) -> float:
    """A learning rate for a network of so many stored numbers.

    Published is 1e-3 at 1.5 million; best at 54,000, in short fits, was 8e-3. Between them the rate falls with the
    0.626th power, outside it stays.
    """
    falling: float = (1.5e6 / numbers) ** 0.626
    return 1e-3 * min(8.0, max(1.0, falling))


_SAID: set[str] = set()


def _say(notes: Sequence[str]) -> None:
    """Each note once in a process, on stderr: several systems are fitted to one clip."""
    for note in notes:
        if note not in _SAID:
            _SAID.add(note)
            logger.warning(note)


def _digest(frames: UInt8[Tensor, "t 3 h w"]) -> str:
    return hashlib.sha256(frames.contiguous().numpy().tobytes()).hexdigest()[:32]
