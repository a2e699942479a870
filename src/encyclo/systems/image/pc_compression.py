"""Lossless image compression with a probabilistic circuit: a hidden Chow-Liu tree, its prefix marginals, range coding."""

import base64
import html
import json
import math
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor

from encyclo.card import Card
from encyclo.data import Batches, Splits, load
from encyclo.data.exact_pixels import gather_pixels, plain_grey
from encyclo.data.images import Image, to_tensor, write_image
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial, train
from encyclo.metrics.lossless_codecs import CodecResult, codec_results
from encyclo.nn.backoff import Backoff
from encyclo.nn.chow_liu import Tree, chow_liu_tree, mutual_information
from encyclo.nn.hidden_chow_liu_tree import HiddenChowLiuTree
from encyclo.nn.observed_tree import ObservedTree
from encyclo.nn.part import PartConfig, parameter_count
from encyclo.picture import COLOURS, INK, Picture, figure, from_figure, grid
from encyclo.system import System, SystemConfig
from encyclo.tokens.circuit_codec import GROUP, Streams, decode_samples, encode_samples, interval_streams
from encyclo.tokens.container import pack, unpack
from encyclo.tokens.prefix_marginals import IntegerCircuit
from encyclo.training import SGD, Loss, Schedule, Trainer, TrainingConfig
from encyclo.training.schedule import factor
from encyclo.verbs import Result

CARD = Card(
    slug="pc-compression",
    title="Lossless Compression with Probabilistic Circuits",
    authors="Liu, Mandt, Van den Broeck",
    year=2022,
    arxiv="2111.11632",
    venue="ICLR 2022",
    wing="image",
    summary="A tree-shaped circuit with exact marginals drives an entropy coder: files as short as -log2 p(x), bit-exact.",
    verbs=("compress", "decompress", "likelihood", "marginal", "sample", "inpaint", "inspect"),
    keywords=("lossless compression", "probabilistic circuits", "hidden Chow-Liu tree", "entropy coding", "EM"),
)

NATS = math.log(2)
MOST_BYTES = 1 << 31
"""Pixels that one compressed file may unfold to."""


class PixelModelConfig(SystemConfig):
    """What all models of whole images have in common."""

    shape: tuple[int, int, int] | None = Field(None, description="channels, height, width; None: the data's")
    values: int | None = Field(None, ge=2, le=256, description="levels of a pixel; None: the data's white + 1")
    size: int | None = Field(None, ge=1, description="bring training pictures to this height and width (counted)")
    information_bins: int = Field(32, ge=2, description="soft bins of a pixel's values for mutual information")
    information_width: float = Field(0.5, gt=0, description="deviation of a soft bin in units of its breadth")


class PixelModel(System):
    """An exact probability for images of one size: what the circuit and its rivals share."""

    reads = "image"
    Config = PixelModelConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.shape: Tensor
        self.register_buffer("shape", torch.tensor(config.shape or (0, 0, 0)))
        self._tree: Tree | None = None

    def start_from(self, prepared: Any) -> None:
        """Take the Chow-Liu tree, which all arms share."""
        self._tree = prepared

    def pixels(self, rows: Any) -> UInt8[Tensor, "n d"]:
        """Images of a split as rows of values; a first call decides shape and colours."""
        config = self.config
        known = tuple(self.shape.tolist())
        wanted = (known[1], known[2]) if known[0] else (config.size, config.size) if config.size else None
        images = to_tensor(rows["image"], wanted, "L" if known[0] == 1 else "RGB", fit="crop")
        if not known[0]:
            images = plain_grey(images)
            self.shape.copy_(torch.tensor(images.shape[1:]))
        return images.flatten(1)

    def rows_of(self, images: UInt8[Tensor, "n c h w"], values: int) -> UInt8[Tensor, "n d"]:
        """Images of a user as rows of values, refused where the model cannot give them back exactly."""
        c, h, w = self.shape.tolist()
        if len(images) == 0:
            return torch.zeros(0, c * h * w, dtype=torch.uint8)
        images = plain_grey(images) if c == 1 else images.expand(-1, c, -1, -1)
        if tuple(images.shape[1:]) != (c, h, w):
            kinds = ["colour" if k == 3 else "grey" for k in (images.shape[1], c)]
            raise InputError(
                f"pictures are {kinds[0]} {images.shape[2]}x{images.shape[3]}, the model knows {kinds[1]} {h}x{w}:"
                " convert them, or train a model on such pictures"
            )
        if int(images.max()) >= values:
            raise InputError(f"pixel value {int(images.max())}: the model knows values 0..{values - 1} only")
        return images.flatten(1)

    def learn_tree(self, rows: UInt8[Tensor, "n d"], values: int) -> Tree:
        """The Chow-Liu tree of the training pixels, or the one that was prepared."""
        if self._tree is None:
            config = self.config
            self._tree = chow_liu_tree(
                mutual_information(rows, values=values, bins=config.information_bins, width=config.information_width)
            )
        return self._tree

    def bits(self, log_likelihood: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Nats of whole images as bits per dimension (a colour's value is one)."""
        return -log_likelihood.double() / (NATS * math.prod(self.shape.tolist()))


class PCCompression(PixelModel):
    """A hidden Chow-Liu tree trained by EM, and the codec on its prefix marginals (Liu et al. 2022, sections 3 and 4).

    Structure: mutual information of all pixel pairs, its maximum spanning tree rooted at the centre, a latent of M states
    for each pixel. Learning: mini-batch EM theta <- (1 - eta) theta + eta theta_new with falling eta, then full-batch EM.
    Coding: p(x_i | x_<i) of every pixel in the tree's depth-first order, heavier subtree first, into a range coder (one
    stream for all images) or rANS (a stream for each).

    Assumed, because the paper does not say: where EM starts (`start`), how counts of 256 grey levels are smoothed
    (`circuit.backoff`: rows are shared between neighbouring levels), eta, epochs and batch.
    """

    card = CARD

    class Config(PixelModelConfig):
        """Every number of the method. `training` and `full_batch` hold EM's budget; their learning rate is eta."""

        circuit: HiddenChowLiuTree.Config = HiddenChowLiuTree.Config()
        start: Literal["prototypes", "random"] = Field("prototypes", description="first parameters (assumed)")
        radius: int = Field(5, ge=0, description="tree edges that a prototype is compared over")
        shift: int = Field(0, ge=0, description="largest random shift of training images in pixels (augmentation)")
        training: TrainingConfig = TrainingConfig(
            steps=240, batch_size=200, optimiser=SGD(lr=0.8), schedule=Schedule(shape="exponential", final=0.05)
        )
        full_batch: TrainingConfig = TrainingConfig(
            steps=3, optimiser=SGD(lr=1.0), schedule=Schedule(shape="constant"), log_every=1
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.circuit: HiddenChowLiuTree | None = None
        self._coder: IntegerCircuit | None = None
        if config.shape is not None:
            self._build(Tree.balanced(math.prod(config.shape)), config.values or 256)

    def _build(self, tree: Tree, values: int) -> HiddenChowLiuTree:
        self.circuit = self.config.circuit.build(tree=tree, values=values)
        self._coder = None
        return self.circuit

    @property
    def model(self) -> HiddenChowLiuTree:
        """The circuit, once there is one."""
        if self.circuit is None:
            raise InputError("the model is not trained yet: fit it first")
        return self.circuit

    @property
    def coder(self) -> IntegerCircuit:
        """The circuit with whole-number tables: what codes and what likelihoods are stated for."""
        if self._coder is None:
            self._coder = IntegerCircuit(self.model)
        return self._coder

    # -- learning ------------------------------------------------------------------------------------------------

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Learn tree and tables from `data.train`."""
        config = self.config
        values = config.values or data.peak + 1
        rows = self.pixels(data.train)
        held_out = self.pixels(data.validation) if len(data.validation) else rows[:0]
        circuit = self._build(self.learn_tree(rows, values), values).to(trainer.device)
        circuit.start(
            rows.to(trainer.device),
            torch.Generator().manual_seed(trainer.seed),
            kind=config.start,
            radius=config.radius,
        )

        def loss(batch: UInt8[Tensor, "n d"]) -> Loss:
            value = circuit.nll(self._shifted(batch, trainer.generator))
            return Loss(value, len(batch), {"bits_per_dimension": value.detach() / (NATS * batch.shape[1])})

        def evaluate() -> dict[str, float]:
            found = circuit.log_likelihood(held_out.to(circuit.device), dtype=torch.float32)
            return {"bits_per_dimension": float(self.bits(found).mean())} if len(held_out) else {}

        for stage, budget, size in (
            ("mini_batch", config.training, min(config.training.batch_size, len(rows))),
            ("full_batch", config.full_batch, len(rows)),
        ):
            batches = Batches(rows, size, seed=trainer.seed)

            def step(_: int, budget: TrainingConfig = budget) -> None:
                circuit.em_step(len(rows), budget.optimiser.lr * factor(budget.schedule, trainer.done))

            trainer.fit(self, loss, batches, budget, stage=stage, before_update=step, evaluate=evaluate)
        self._coder = None

    def _shifted(self, rows: UInt8[Tensor, "n d"], generator: torch.Generator) -> UInt8[Tensor, "n d"]:
        """Each image moved by up to `shift` pixels both ways, zeros moving in."""
        reach = self.config.shift
        if reach == 0:
            return rows
        c, h, w = self.shape.tolist()
        images = torch.nn.functional.pad(rows.view(-1, c, h, w), (reach,) * 4)
        by = torch.randint(0, 2 * reach + 1, (2, len(rows), 1, 1), generator=generator).to(rows.device)
        down = torch.arange(h, device=rows.device)[:, None] + by[0]
        right = torch.arange(w, device=rows.device) + by[1]
        index = torch.arange(len(rows), device=rows.device)[:, None, None]
        return images.permute(0, 2, 3, 1)[index, down, right].permute(0, 3, 1, 2).flatten(1)

    def load_saved_state(self, state: dict[str, Tensor]) -> None:
        """Rebuild the circuit around the saved tree, then fill it."""
        emission = state["circuit.emission"]
        self._build(Tree(state["circuit.parent"].numpy()), emission.shape[2])
        super().load_saved_state(state)

    # -- measuring -------------------------------------------------------------------------------------------------

    def evaluate(self, data: Splits) -> dict[str, float]:
        """Rates on the test set in theory and in files, both ways round, and their speed."""
        images = self.pixels(data.test).view(-1, *self.shape.tolist())
        rows = images.flatten(1).to(self.device)
        exact = self.coder.dequantised()
        trained = self.model.log_likelihood(self.pixels(data.train).to(self.device), dtype=torch.float32)
        out = {
            "bits_per_dimension": float(self.bits(exact.log_likelihood(rows)).mean()),
            "train_bits_per_dimension": float(self.bits(trained).mean()),
            "model_megabytes": 4e-6 * parameter_count(self),
        }
        for streams, prefix in (("one", ""), ("each", "each_")):
            began = time.perf_counter()
            blob = self.encode_images(images, streams=streams)  # type: ignore[arg-type]
            middle = time.perf_counter()
            restored = self.decode_images(blob)
            out[f"{prefix}encode_mb_per_second"] = rows.numel() / 1e6 / (middle - began)
            out[f"{prefix}decode_mb_per_second"] = rows.numel() / 1e6 / (time.perf_counter() - middle)
            out[f"{prefix}file_bits_per_dimension"] = 8 * len(blob) / rows.numel()
            out[f"{prefix}exact_images"] = float((restored == images).flatten(1).all(1).double().mean())
        return out

    # -- coding ----------------------------------------------------------------------------------------------------

    def encode_images(
        self, images: UInt8[Tensor, "n c h w"], *, streams: Streams = "one", names: Sequence[str] = ()
    ) -> bytes:
        """Images as one self-describing file: header, payload, checksum, the model's hash.

        Args:
            images: of the trained shape and alphabet; n = 0 is a valid, tiny file.
            streams: "one" for all images (shortest), or "each" its own (any image can be decoded alone; about 4 bytes
                more an image).
            names: kept with the images.
        """
        rows = self.rows_of(images, self.model.values).to(self.device)
        header = {"n": len(rows), "shape": self.shape.tolist(), "model": self.coder.digest, "streams": streams}
        sections = {"payload": encode_samples(self.coder, rows, streams=streams)}
        if any(names):
            sections["names"] = zlib.compress(json.dumps(list(names)).encode(), 9)
        return pack(CARD.slug, header, sections)

    def decode_images(self, blob: bytes) -> UInt8[Tensor, "n c h w"]:
        """The images of a file that a model with equal tables wrote, bit for bit.

        Raises:
            InputError: a damaged or foreign file, or one of another model (both hashes are named).
        """
        return self._decode(blob)[0]

    def _decode(self, blob: bytes) -> tuple[UInt8[Tensor, "n c h w"], list[str]]:
        file = unpack(blob, system=CARD.slug)
        header, shape = file.header, self.shape.tolist()
        if header.get("model") != self.coder.digest:
            raise InputError(
                f"the file was written by model {header.get('model')}, this is model {self.coder.digest}:"
                " open the run that wrote it"
            )
        n, streams, payload = header.get("n"), header.get("streams"), file.sections.get("payload")
        if not isinstance(n, int) or streams not in ("one", "each") or header.get("shape") != shape or payload is None:
            raise InputError("the file's header is not one of this system: it was not written by encyclo")
        if not 0 <= n <= MOST_BYTES // math.prod(shape):
            raise InputError(f"the file claims {n} images, too many to unfold at once: it is damaged")
        rows = decode_samples(self.coder, payload, n, streams=streams, group=GROUP)
        names = _names(file.sections.get("names"), n)
        return rows.view(-1, *shape), names

    # -- verbs -----------------------------------------------------------------------------------------------------

    def compress(self, images: Sequence[Path | Tensor], *, streams: Streams = "one") -> Result:
        """Pictures (files, folders, .npy arrays of bytes) of the trained size -> one file that holds them exactly."""
        pixels, names = gather_pixels(images)
        blob = self.encode_images(pixels, streams=streams, names=names)
        raw = pixels.numel()
        notes = []
        if self.shape[0] == 1 and pixels.shape[1] == 3:
            notes.append(f"{len(pixels)} pictures are stored in colour but are grey throughout: they come back as grey")
        report = {
            "images": len(pixels),
            "bytes": len(blob),
            "raw_bytes": raw,
            "bits_per_dimension": 8 * len(blob) / raw if raw else 0.0,
            "model": self.coder.digest,
            "model_bytes_not_counted": 4 * parameter_count(self),
        }
        return Result(blob, report=report, notes=notes)

    def decompress(self, blob: bytes, *, out: Path | None = None) -> Result:
        """The pictures of a compressed file; `out`: a folder for PNG files under their names, or a .npy file."""
        images, names = self._decode(blob)
        report = {"images": len(images)}
        if out is None:
            return Result([Image(p, name) for p, name in zip(images, names, strict=True)], report=report)
        if out.suffix == ".npy":
            return Result(_save_array(images, out), report=report)
        out.mkdir(parents=True, exist_ok=True)
        for number, (pixels, name) in enumerate(zip(images, names, strict=True)):
            write_image(pixels, out / f"{_stem(name, names, number)}.png")
        return Result(out, report=report)

    def likelihood(self, images: Sequence[Path | Tensor]) -> Result:
        """Bits per dimension of each picture: what it costs to code, and how unusual it is."""
        pixels, names = gather_pixels(images)
        rows = self.rows_of(pixels, self.model.values).to(self.device)
        found = self.bits(self.coder.dequantised().log_likelihood(rows)).cpu()
        order = found.argsort(descending=True)[:5].tolist()
        unusual = {names[i] or str(i): round(float(found[i]), 4) for i in order}
        report = {"images": len(found), "mean": float(found.mean()) if len(found) else 0.0, "most_unusual": unusual}
        return Result(found, report=report)

    def marginal(
        self, images: Sequence[Path | Tensor], *, observed: str = "left", mask: Path | None = None
    ) -> Result:
        """Exact probability of a part of each picture, all other pixels summed out: bits, -log2 p.

        Args:
            images: only the observed part of them matters.
            observed: left, right, top, bottom, or a box "x,y,width,height".
            mask: a picture that is not black where pixels are observed; goes before `observed`.
        """
        pixels, _ = gather_pixels(images)
        rows = self.rows_of(pixels, self.model.values).to(self.device)
        seen = self._region(observed, mask)
        found = -self.coder.dequantised().log_likelihood(rows, seen.to(self.device)).cpu() / NATS
        count = int(seen.sum())
        mean = float(found.mean()) if len(found) else 0.0
        return Result(found, report={"observed": count, "mean_bits": mean, "bits_per_dimension": mean / max(count, 1)})

    def sample(self, *, count: int = 16, seed: int = 0) -> Result:
        """New pictures, drawn exactly from the model."""
        if count < 1:
            raise InputError(f"count={count}: draw at least one")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.zeros(count, len(self.model.tree), dtype=torch.uint8, device=self.device)
        drawn = torch.cat([self.model.sample(generator, part) for part in rows.split(64)]).cpu()
        return Result([Image(p) for p in drawn.view(-1, *self.shape.tolist())])

    def inpaint(
        self,
        images: Sequence[Path | Tensor],
        *,
        hidden: str = "right",
        mask: Path | None = None,
        fill: Literal["sample", "mean"] = "sample",
        seed: int = 0,
    ) -> Result:
        """Pictures with a region filled in from its exact conditional distribution given the rest.

        Args:
            images: what stands in the hidden region does not matter.
            hidden: left, right, top, bottom, or a box "x,y,width,height".
            mask: a picture that is not black where pixels are hidden; goes before `hidden`.
            fill: "sample" draws one filling, "mean" gives each pixel its expected value.
            seed: of the drawing.
        """
        pixels, names = gather_pixels(images)
        rows = self.rows_of(pixels, self.model.values).to(self.device)
        seen = ~self._region(hidden, mask).to(self.device)
        filled = self.fill(rows, seen, fill, torch.Generator().manual_seed(seed))
        shape = self.shape.tolist()
        made = [Image(p, name) for p, name in zip(filled.cpu().view(-1, *shape), names, strict=True)]
        return Result(made, report={"images": len(made), "hidden_values": int((~seen).sum())})

    def fill(
        self, rows: UInt8[Tensor, "n d"], seen: Bool[Tensor, " d"], how: str, generator: torch.Generator
    ) -> UInt8[Tensor, "n d"]:
        """Rows whose values outside `seen` are drawn from, or the mean of, p(hidden | seen)."""
        parts = []
        for part in rows.split(32):
            if how == "sample":
                parts.append(self.model.sample(generator, part, seen))
                continue
            levels = torch.arange(self.model.values, dtype=torch.float64, device=rows.device)
            mean = (self.model.conditionals(part, seen) @ levels).round().to(torch.uint8)
            parts.append(torch.where(seen, part, mean))
        return torch.cat(parts) if parts else rows

    def _region(self, box: str, mask: Path | None) -> Bool[Tensor, " d"]:
        """True inside a named half, a box or a mask's bright part."""
        c, h, w = self.shape.tolist()
        if mask is not None:
            inside = gather_pixels([mask])[0].amax(1)[0] > 0
            if tuple(inside.shape) != (h, w):
                raise InputError(f"'{mask}' is {inside.shape[0]}x{inside.shape[1]}, the model's pictures are {h}x{w}")
            return inside.expand(c, h, w).flatten()
        halves = {
            "left": (0, 0, w // 2, h),
            "right": (w // 2, 0, w - w // 2, h),
            "top": (0, 0, w, h // 2),
            "bottom": (0, h // 2, w, h - h // 2),
        }
        try:
            x, y, width, height = halves[box] if box in halves else (int(part) for part in box.split(","))
        except ValueError:
            raise InputError(f"'{box}' is no region: left, right, top, bottom or x,y,width,height") from None
        if x < 0 or y < 0 or width < 1 or height < 1 or x + width > w or y + height > h:
            raise InputError(f"region '{box}' does not lie in pictures of {w}x{h} (width x height)")
        inside = torch.zeros(c, h, w, dtype=torch.bool)
        inside[:, y : y + height, x : x + width] = True
        return inside.flatten()

    def inspect(self, *, out: Path | None = None) -> Result:
        """A page: the tree over the pixels, its sizes and work counters, samples; `out`: the .html file."""
        figures = self.figures()
        if out is None:
            return Result(figures)
        from encyclo.data.atomic import write_bytes

        drawn = self.sample(count=16).value
        sheet = grid({"drawn from the model": torch.stack([i.pixels for i in drawn])}, "samples", "Samples.", scale=2)
        write_bytes(_page(figures, [tree_picture(self), sheet]).encode(), out)
        return Result(out, report=figures)

    def figures(self) -> dict[str, Any]:
        """Sizes of the circuit and evaluations for one image by schedule."""
        tree, d = self.model.tree, len(self.model.tree)
        blank = torch.zeros(1, d, dtype=torch.uint8, device=self.device)
        structured, swept = self.coder.structured(blank).work, self.coder.swept(blank).work
        return {
            "shape": self.shape.tolist(),
            "latents": self.model.config.latents,
            "values": self.model.values,
            "parameters": parameter_count(self),
            "model": self.coder.digest,
            "tree_depth": len(tree.levels),
            "most_children": max(map(len, tree.children)),
            "units": self.coder.units,
            "units_naive": d * self.coder.units,
            "units_structured": structured.units,
            "units_sweep": swept.units,
            "structured_per_circuit": structured.units / self.coder.units,
            "sweep_per_circuit": swept.units / self.coder.units,
            "bound_per_circuit": math.log2(d) + 1,
        }


def _names(section: bytes | None, n: int) -> list[str]:
    if section is None:
        return [""] * n
    try:
        names = json.loads(zlib.decompressobj().decompress(section, 4096 * max(n, 1)))
    except (zlib.error, ValueError):
        names = None
    if not isinstance(names, list) or len(names) != n or not all(isinstance(name, str) for name in names):
        raise InputError("the file's list of names is malformed: it was not written by encyclo")
    return names


def _stem(name: str, names: Sequence[str], number: int) -> str:
    """A safe file name: the picture's own where it is one and no other picture has it, else its number."""
    stem = Path(name).stem
    alone = sum(Path(other).stem == stem for other in names) == 1
    safe = stem.isprintable() and not set(stem) & set('/\\:*?"<>|') and 0 < len(stem) < 200 and stem.strip(".")
    return stem if alone and safe else f"{number:05d}"


def _save_array(images: UInt8[Tensor, "n c h w"], out: Path) -> Path:
    import numpy as np

    from encyclo.data.atomic import atomic_path

    with atomic_path(out) as path, path.open("wb") as file:
        np.save(file, images.numpy(), allow_pickle=False)
    return out


# -- rivals ------------------------------------------------------------------------------------------------------------


class ChowLiu(PixelModel):
    """The plain Chow-Liu tree over the pixels themselves, each conditioned on its parent's grey level (binned).

    The same tree, data and smoothing as the circuit; bins of the parent and strength of smoothing are chosen on the
    validation set, over the grid below.
    """

    card = CARD

    class Config(PixelModelConfig):
        """What is tried."""

        parent_bins: tuple[int, ...] = (8, 12, 16, 32)
        weights: tuple[float, ...] = (256.0, 1000.0, 4000.0)
        owns: tuple[float, ...] = (1.0, 4.0, 16.0)
        bins: int = Field(12, ge=2, description="of the values' shared rows, as in the circuit")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.tables: ObservedTree | None = None
        if config.shape is not None:
            self._build(Tree.balanced(math.prod(config.shape)), config.values or 256, config.parent_bins[0])

    def _build(self, tree: Tree, values: int, parent_bins: int, backoff: Backoff.Config | None = None) -> ObservedTree:
        config = ObservedTree.Config(parent_bins=parent_bins, backoff=backoff or Backoff.Config())
        self.tables = config.build(tree=tree, values=values)
        return self.tables

    def fit(self, data: Splits, trainer: Trainer) -> None:
        """Count tables for every choice; keep the one with the best validation rate."""
        config = self.config
        values = config.values or data.peak + 1
        rows = self.pixels(data.train).to(trainer.device)
        held_out = self.pixels(data.validation).to(trainer.device) if len(data.validation) else rows
        tree = self.learn_tree(rows, values)
        best: tuple[float, ObservedTree] | None = None
        for parent_bins in config.parent_bins:
            for weight in config.weights:
                for own in config.owns:
                    backoff = Backoff.Config(bins=config.bins, weight=weight, own=own)
                    tables = self._build(tree, values, parent_bins, backoff).to(trainer.device)
                    tables.learn(rows)
                    found = float(tables.log_likelihood(held_out).mean())
                    if best is None or found > best[0]:
                        best = found, tables
        assert best is not None
        self.tables = best[1]

    def load_saved_state(self, state: dict[str, Tensor]) -> None:
        """Rebuild the tables in their saved size, then fill them."""
        table = state["tables.table"]
        self._build(Tree(state["tables.parent"].numpy()), table.shape[2], table.shape[1])
        super().load_saved_state(state)

    def evaluate(self, data: Splits) -> dict[str, float]:
        """Rates in theory, and what was chosen."""
        assert self.tables is not None
        train, test = (self.pixels(split).to(self.device) for split in (data.train, data.test))
        return {
            "bits_per_dimension": float(self.bits(self.tables.log_likelihood(test)).mean()),
            "train_bits_per_dimension": float(self.bits(self.tables.log_likelihood(train)).mean()),
            "parent_bins": float(self.tables.table.shape[1]),
            "smoothing": self.tables.config.backoff.weight,
            "model_megabytes": 4e-6 * self.tables.table.numel(),
        }


class IndependentPixels(ChowLiu):
    """Every pixel by its own histogram, smoothed likewise: what is left when all structure is taken away."""

    class Config(ChowLiu.Config):
        """What is tried."""

        parent_bins: tuple[int, ...] = (1,)


# -- the experiment ------------------------------------------------------------------------------------------------------


def _prepare(data: Splits, trainer: Trainer, seed: int) -> Tree:
    """The Chow-Liu tree of the training images, once for all arms."""
    del seed
    learner = PixelModel(PixelModelConfig(information_bins=16))
    return learner.learn_tree(learner.pixels(data.train), data.peak + 1)


def _codec_arms(images: UInt8[Tensor, "n c h w"], prefix: str = "") -> dict[str, dict[str, float]]:
    """A table row for each established codec, and one for the best of them in either packing."""
    found: Mapping[str, CodecResult] = codec_results(images)
    size = images.numel()
    arms = {
        prefix + name: {
            "bits_per_dimension": min(result.each_bits, result.sheet_bits) / size,
            "file_bits_per_dimension": result.sheet_bits / size,
            "each_file_bits_per_dimension": result.each_bits / size,
            "encode_mb_per_second": size / 1e6 / result.seconds,
        }
        for name, result in found.items()
    }
    best = min(arms.values(), key=lambda arm: arm["bits_per_dimension"])
    arms[prefix + "best codec"] = {"bits_per_dimension": best["bits_per_dimension"]}
    return arms


def _schedules(system: PCCompression, images: UInt8[Tensor, "n c h w"]) -> dict[str, float]:
    """The three ways to all prefix marginals on the same images: equal files, units evaluated, seconds."""
    rows = images.flatten(1).to(system.device)
    seconds, streams, work = {}, {}, {}
    for name, schedule in (
        ("sweep", system.coder.swept),
        ("structured", system.coder.structured),
        ("naive", system.coder.naive),
    ):
        began = time.perf_counter()
        found = schedule(rows)
        streams[name] = interval_streams(found)
        seconds[name], work[name] = time.perf_counter() - began, found.work
    differing = [a != b or a != c for a, b, c in zip(*streams.values(), strict=True)]
    return {
        "schedules_differ": float(sum(differing)),
        "units_per_circuit": work["structured"].units / system.coder.units,
        "sweep_units_per_circuit": work["sweep"].units / system.coder.units,
        "naive_over_structured_units": work["naive"].units / work["structured"].units,
        "naive_over_encode_seconds": seconds["naive"] / seconds["sweep"],
        "naive_over_structured_seconds": seconds["naive"] / seconds["structured"],
    }


_DECODE = """
import sys, torch
torch.set_num_threads(int(sys.argv[4]))
import encyclo
from pathlib import Path
encyclo.open(sys.argv[1]).decompress(Path(sys.argv[2]).read_bytes(), out=Path(sys.argv[3]))
"""


def _decoded_elsewhere(run: Path, blob: bytes, images: UInt8[Tensor, "n c h w"], threads: int) -> float:
    """Share of the images that a fresh process with another number of threads gives back bit for bit."""
    import numpy as np

    packed, out = run / "test.pc", run / "test.npy"
    packed.write_bytes(blob)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", _DECODE, str(run), str(packed), str(out), str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"decoding in a fresh process failed: {done.stderr.strip().splitlines()[-1:]}")
    return float((torch.from_numpy(np.load(out)) == images).flatten(1).all(1).double().mean())


def _compare(timed: int, second: Mapping[str, SystemConfig]) -> Any:
    """What needs several arms: codecs, schedules, a fresh process, the second data set."""

    def compare(trial: Trial) -> dict[str, dict[str, float]]:
        first, system = next(iter(trial.systems.items()))
        assert isinstance(system, PCCompression)
        images = system.pixels(trial.data.test).view(-1, *system.shape.tolist())
        threads = 1 if torch.get_num_threads() > 1 else 2
        elsewhere = _decoded_elsewhere(trial.folder / first, system.encode_images(images), images, threads)
        arms = {first: {"exact_in_fresh_process": elsewhere, **_schedules(system, images[:timed])}}
        arms |= _codec_arms(images)
        if second:
            digits = load("digits", "image")
            tree = _prepare(digits, Trainer(None, seed=trial.seed, progress=False), trial.seed)
            for name, config in second.items():
                folder = trial.folder / name.replace(" ", "-")
                arms[name] = train(config, digits, folder, seed=trial.seed, prepared=tree, progress=False)[1]
            pixels = to_tensor(digits.test["image"], None, "L")
            arms |= _codec_arms(pixels, "digits ")
        return arms

    return compare
