"""Lossless image compression with a probabilistic circuit: hidden Chow-Liu tree, prefix marginals, range coding."""

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
from jaxtyping import Bool, UInt8
from pydantic import Field
from torch import Tensor

from encyclo.card import Card
from encyclo.data import Batches, Splits, load
from encyclo.data.exact_pixels import gather_pixels
from encyclo.data.images import Image, to_tensor, write_image
from encyclo.errors import InputError
from encyclo.experiment import Claim, Experiment, Preset, Trial, train
from encyclo.metrics.lossless_codecs import codec_arms
from encyclo.nn.backoff import Backoff
from encyclo.nn.chow_liu import Tree
from encyclo.nn.hidden_chow_liu_tree import HiddenChowLiuTree
from encyclo.nn.observed_tree import ObservedTree
from encyclo.nn.part import parameter_count
from encyclo.picture import COLOURS, INK, Picture, curves, figure, from_figure, grid
from encyclo.system import SystemConfig
from encyclo.systems.pixel_model import NATS, PixelModel, PixelModelConfig
from encyclo.tokens.circuit_codec import GROUP, Streams, compare_schedules, decode_samples, encode_samples
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
    summary="A tree-shaped circuit with exact marginals drives an entropy coder: lossless, -log2 p(x) bits an image.",
    verbs=("compress", "decompress", "likelihood", "marginal", "sample", "inpaint", "inspect"),
    keywords=("lossless compression", "probabilistic circuits", "hidden Chow-Liu tree", "entropy coding", "EM"),
)

MOST_BYTES = 1 << 31
"""Pixels that one compressed file may unfold to."""


class PCCompression(PixelModel):
    """A hidden Chow-Liu tree trained by EM, and the codec on its prefix marginals (Liu et al. 2022, sections 3, 4).

    Structure: mutual information of all pixel pairs, its maximum spanning tree rooted at the centre, a latent of M
    states for each pixel. Learning: mini-batch EM, theta <- (1 - eta) theta + eta theta_new, eta falling, then full EM.
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
            found = circuit.log_likelihood(held_out.to(trainer.device), dtype=torch.float32)
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

    def marginal(self, images: Sequence[Path | Tensor], *, observed: str = "left", mask: Path | None = None) -> Result:
        """Exact probability of a part of each picture, all other pixels summed out: bits, -log2 p.

        Args:
            images: only the observed part of them matters.
            observed: left, right, top, bottom, or a box "x,y,width,height".
            mask: a picture that is not black where pixels are observed; goes before `observed`.
        """
        pixels, _ = gather_pixels(images)
        rows = self.rows_of(pixels, self.model.values).to(self.device)
        seen = self.region(observed, mask)
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
        seen = ~self.region(hidden, mask).to(self.device)
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


# -- the experiment ----------------------------------------------------------------------------------------------------


def _prepare(data: Splits, trainer: Trainer, seed: int) -> Tree:
    """The Chow-Liu tree of the training images, once for all arms."""
    del seed
    learner = PixelModel(PixelModelConfig(information_bins=16))
    return learner.learn_tree(learner.pixels(data.train), data.peak + 1)


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


def _compare(timed: int, second: Mapping[str, SystemConfig], codecs: Sequence[str] | None = None) -> Any:
    """What needs several arms: codecs, schedules, a fresh process, the second data set."""

    def compare(trial: Trial) -> dict[str, dict[str, float]]:
        first, system = next(iter(trial.systems.items()))
        assert isinstance(system, PCCompression)
        images = system.pixels(trial.data.test).view(-1, *system.shape.tolist())
        threads = 1 if torch.get_num_threads() > 1 else 2
        elsewhere = _decoded_elsewhere(trial.folder / first, system.encode_images(images), images, threads)
        schedules = compare_schedules(system.coder, images[:timed].flatten(1).to(system.device))
        arms = {first: {"exact_in_fresh_process": elsewhere, **schedules}, **codec_arms(images, only=codecs)}
        if second:
            digits = load("digits", "image")
            tree = _prepare(digits, Trainer(None, seed=trial.seed, progress=False), trial.seed)
            for name, config in second.items():
                folder = trial.folder / name.replace(" ", "-")
                arms[name] = train(config, digits, folder, seed=trial.seed, prepared=tree, progress=False)[1]
            pixels = to_tensor(digits.test["image"], None, "L")
            arms |= codec_arms(pixels, prefix="digits ")
        return arms

    return compare


def tree_picture(system: PCCompression, *, docs: bool = False) -> Picture:
    """The learned tree, each pixel joined to its parent, coloured by depth."""
    tree = system.model.tree
    c, h, w = system.shape.tolist()
    made, axis = figure(5.2, 5.2 * h / w + 0.3)
    depth = {v: d for d, level in enumerate(tree.levels) for v in level}
    bands: dict[int, tuple[list[float], list[float]]] = {}
    for child, parent in enumerate(tree.parent.tolist()):
        if parent < 0:
            continue
        xs, ys = bands.setdefault(min(depth[child] * 6 // len(tree.levels), 5), ([], []))
        for node in (child, parent):  # channels of one pixel stand side by side
            xs.append(node % w + 0.25 * (node // (h * w) - (c - 1) / 2))
            ys.append(node // w % h)
        xs.append(math.nan)
        ys.append(math.nan)
    for band, (xs, ys) in sorted(bands.items()):
        axis.plot(xs, ys, color=COLOURS[band], linewidth=1.1, solid_capstyle="round")
    axis.plot([tree.root % w], [tree.root // w % h], "o", color=INK, markersize=6)
    axis.set_xlim(-1, w)
    axis.set_ylim(h, -1)
    axis.set_aspect("equal")
    axis.set_axis_off()
    caption = f"The Chow-Liu tree of the pixels: {len(tree.levels)} levels below the root (dot), coloured by depth."
    return from_figure(made, "tree", caption, docs=docs)


def _pictures(trial: Trial) -> list[Picture]:
    system = next(iter(trial.systems.values()))
    assert isinstance(system, PCCompression)
    shape = system.shape.tolist()
    rows = system.pixels(trial.data.test)
    rows = rows[:: max(1, len(rows) // 12)][:12]
    white = system.model.values - 1

    def view(rows: UInt8[Tensor, "n d"]) -> UInt8[Tensor, "n c h w"]:
        return (rows.cpu().view(-1, *shape).float() * (255 / white)).round().to(torch.uint8)

    seen = ~system.region("right", None)
    generator = torch.Generator().manual_seed(trial.seed)
    erased = torch.where(seen, rows, torch.full_like(rows, white // 2))
    lines = {
        "test image, right half hidden": view(erased),
        "filled in: a draw from p(right | left)": view(system.fill(rows, seen, "sample", generator)),
        "filled in: the conditional mean": view(system.fill(rows, seen, "mean", generator)),
        "the test image": view(rows),
    }
    drawn = {f"drawn from {name}": view(torch.stack([i.pixels.flatten() for i in arm.sample(count=12).value]))
        for name, arm in trial.systems.items() if isinstance(arm, PCCompression)}  # fmt: skip
    scale = max(1, 56 // shape[1])
    return [
        _bars(trial),
        grid(lines, "inpainting", "Exact conditioning: the right half given the left.", scale=scale, docs=True),
        tree_picture(system, docs=True),
        grid(drawn, "samples", "Images drawn from each circuit.", scale=scale),
        _learning(trial),
    ]


def _bars(trial: Trial) -> Picture:
    """Bits per dimension of all arms on the first data set."""
    found = {n: m["bits_per_dimension"] for n, m in trial.metrics.items() if "digits" not in n and n != "best codec"}
    names = sorted(found, key=lambda n: -found[n])
    made, axis = figure(7.0, 0.6 + 0.36 * len(names))
    for row, name in enumerate(names):
        axis.barh(row, found[name], color=COLOURS[0] if name in trial.systems else COLOURS[5], height=0.7)
        axis.text(found[name], row, f" {found[name]:.3f}", va="center", fontsize=9, color=INK)
    axis.set_yticks(range(len(names)), names)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("bits per pixel of the test images (models: in theory, tables not counted; codecs: better packing)")
    return from_figure(made, "rates", "Bits per pixel: models (blue) and codecs (grey).", docs=True)


def _learning(trial: Trial) -> Picture:
    series = {}
    for name, traced in trial.curves.items():
        for key, label in (("bits_per_dimension", "training"), ("eval/bits_per_dimension", "validation")):
            points = [(float(step), value) for step, _, value in traced.get(f"mini_batch/{key}", ())]
            if points:
                last = points[-1][0]
                points += [(last + step, value) for step, _, value in traced.get(f"full_batch/{key}", ())]
                series[f"{name}, {label}"] = points
    caption = "Learning: mini-batch EM, then full-batch EM (the last steps)."
    return curves(series, "learning", caption, x="EM steps", y="bits per pixel")


def _page(figures: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in figures.items())
    kinds = {"svg": "image/svg+xml", "webp": "image/webp"}
    shown = "".join(
        f'<figure><img alt="{html.escape(p.name)}" src="data:{kinds[p.kind]};base64,'
        f'{base64.b64encode(p.content).decode()}"><figcaption>{html.escape(p.caption)}</figcaption></figure>'
        for p in pictures
    )
    style = "body{font:16px/1.5 system-ui;margin:2em auto;max-width:60em;color:#1f2430}td{padding:.1em 1em .1em 0}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{CARD.title}</title><style>{style}</style>'
        f"<h1>A hidden Chow-Liu tree</h1><table>{rows}</table>{shown}</html>\n"
    )


_COLUMNS = {
    "bits_per_dimension": "test, bits per pixel",
    "train_bits_per_dimension": "training, bits per pixel",
    "file_bits_per_dimension": "one file for all, bits per pixel",
    "each_file_bits_per_dimension": "a stream or file each, bits per pixel",
    "encode_mb_per_second": "encode, MB/s",
    "decode_mb_per_second": "decode, MB/s",
    "model_megabytes": "tables, MB (not counted in the bits)",
}


def _claims(
    main: str, more: Sequence[tuple[str, str]], rivals: Sequence[tuple[str, str]], *, sizes: bool = True
) -> list[Claim]:
    """Claims about `main`; `more`: pairs (more latents, fewer); `rivals`: pairs (fewer bits, more bits).

    `sizes`: also those that need images of some hundred pixels and hundreds of them.
    """
    bits = "bits_per_dimension"
    claims = [
        Claim(statement=statement, metric=metric, system=main, bound=1.0, kind="exact")
        for statement, metric in (
            ("every test image comes back bit for bit", "exact_images"),
            ("and so from a stream of its own", "each_exact_images"),
            ("and in a fresh process with another thread count", "exact_in_fresh_process"),
            ("naive, structured and sweeping marginals give the same bytes", "same_bytes_by_all_schedules"),
        )
    ]
    for system, rival in rivals:
        statement = f"{system} needs fewer bits than {rival}"
        claims.append(Claim(statement=statement, metric=bits, system=system, rival=rival, better="lower"))
    for large, small in more:
        statement, metric = "more latent states fit the training images better", "train_bits_per_dimension"
        claims.append(Claim(statement=statement, metric=metric, system=large, rival=small, better="lower"))

    def against(statement: str, metric: str, rival: str, rival_metric: str, **how: Any) -> Claim:
        how = {"better": "lower", **how}
        return Claim(statement=statement, metric=metric, system=main, rival=rival, rival_metric=rival_metric, **how)

    claims += [
        against("units evaluated for an image: at most (log2 D + 1) |p|", "units_per_circuit", main, "units_bound",
            times=1.0),
    ]  # fmt: skip
    if not sizes:
        return claims
    speed, whole, each = "encode_mb_per_second", "file_bits_per_dimension", "each_file_bits_per_dimension"
    return [
        *claims,
        against("at most 0.95 x the bits of the best codec in either packing", bits, "best codec", bits,
            times=0.95, kind="target"),
        against("the file of all test images is at most 0.2 % longer than theory", whole, main, bits,
            times=1.002, kind="target"),
        against("a stream for each image costs at most 0.1 bit per pixel more than theory", each, main, bits, by=-0.1),
        Claim(statement="at least 70 x fewer units than one pass for each pixel", metric="naive_over_structured_units",
            system=main, bound=70.0),
        Claim(statement="marginals for coding are at least 5 x as fast as naive ones", kind="speed", bound=5.0,
            metric="naive_over_encode_seconds", system=main),
        against("encodes at 0.1 x the speed of JPEG XL, effort 7, or more", speed, "jxl-7", speed,
            better="higher", times=0.1, kind="speed"),
    ]  # fmt: skip


def _em(steps: int, batch: int, full: int, *, eta: float = 0.8, final: float = 0.05, log: int = 10) -> dict[str, Any]:
    return {
        "training": TrainingConfig(
            steps=steps,
            batch_size=batch,
            optimiser=SGD(lr=eta),
            schedule=Schedule(shape="exponential", final=final),
            log_every=log,
            evaluate_every=4 * log,
        ),
        "full_batch": TrainingConfig(
            steps=full, optimiser=SGD(lr=1.0), schedule=Schedule(shape="constant"), log_every=1
        ),
    }


def _circuit(latents: int, *, weight: float = 2000.0, kappa: float = 1.0, own: float = 0.3) -> HiddenChowLiuTree.Config:
    backoff = Backoff.Config(bins=12, weight=weight, own=own)
    return HiddenChowLiuTree.Config(latents=latents, pseudo_count=kappa, backoff=backoff)


_FAIRNESS = (
    "All models share one tree, the same training images and the same kind of smoothing; the rivals' strength of it and"
    " their parent bins are chosen on the validation set in the run, the circuit's were chosen on it beforehand."
    " Codecs are given both packings and count by the better one. The models' tables are not counted in any figure, and"
    " they are larger than the test set."
)


def experiment(preset: Preset) -> Experiment:
    """MNIST-type images: circuits of several sizes, plain trees, codecs; digits as a second data set."""
    if preset == Preset.SMOKE:
        return Experiment(
            data="digits",
            systems={
                "pc-4": PCCompression.Config(circuit=_circuit(4, weight=64.0), **_em(12, 200, 1, log=4)),
                "pc-2": PCCompression.Config(circuit=_circuit(2, weight=64.0), **_em(12, 200, 1, log=4)),
                "chow-liu": ChowLiu.Config(weights=(64.0, 256.0), owns=(4.0,), parent_bins=(8, 17)),
                "independent": IndependentPixels.Config(weights=(64.0,), owns=(4.0,)),
            },
            claims=_claims("pc-4", [("pc-4", "pc-2")], [("pc-4", "independent")], sizes=False),
            seeds=1,
            prepare=_prepare,
            compare=_compare(4, {}, ("png", "xz")),
            pictures=_pictures,
            columns=_COLUMNS,
            fairness=_FAIRNESS,
        )
    if preset == Preset.PAPER:
        em = _em(11_700, 512, 10, eta=0.1, final=0.01, log=100)
        return Experiment(
            data="hf:ylecun/mnist",
            systems={
                f"pc-{m}": PCCompression.Config(shape=(1, 28, 28), values=256, circuit=_circuit(m, weight=64.0), **em)
                for m in (16, 24, 32)
            },
            claims=[],
            prepare=_prepare,
        )
    if preset == Preset.GPU:
        em = _em(4000, 500, 5, final=0.02, log=50)
        sizes = {f"pc-{m}": PCCompression.Config(circuit=_circuit(m), shift=1, **em) for m in (64, 128, 32)}
        return Experiment(
            data="mnist-5k",
            systems={**sizes, "chow-liu": ChowLiu.Config(), "independent": IndependentPixels.Config()},
            claims=_claims(
                "pc-64",
                [("pc-64", "pc-32"), ("pc-128", "pc-64")],
                [("pc-64", "chow-liu"), ("chow-liu", "independent")],
            ),
            seeds=1,
            prepare=_prepare,
            compare=_compare(8, {}),
            pictures=_pictures,
            columns=_COLUMNS,
            fairness=_FAIRNESS + " The circuits' training images are shifted by up to a pixel, the rivals' are not.",
        )
    digits = {
        "digits pc-16": PCCompression.Config(circuit=_circuit(16, weight=64.0), **_em(84, 200, 3)),
        "digits chow-liu": ChowLiu.Config(weights=(16.0, 64.0, 256.0), owns=(4.0, 16.0), parent_bins=(4, 8, 12, 17)),
        "digits independent": IndependentPixels.Config(weights=(1.0, 16.0), owns=(1.0, 16.0)),
    }
    return Experiment(
        data="mnist-5k",
        systems={
            "pc-16": PCCompression.Config(circuit=_circuit(16), **_em(240, 200, 3)),
            "pc-8": PCCompression.Config(circuit=_circuit(8), **_em(240, 200, 3)),
            "pc-32": PCCompression.Config(circuit=_circuit(32), **_em(240, 200, 3)),
            "chow-liu": ChowLiu.Config(),
            "independent": IndependentPixels.Config(),
        },
        claims=_claims(
            "pc-16",
            [("pc-16", "pc-8"), ("pc-32", "pc-16")],
            [
                ("pc-16", "chow-liu"),
                ("chow-liu", "independent"),
                ("digits pc-16", "digits chow-liu"),
                ("digits pc-16", "digits best codec"),
            ],
        ),
        seeds=2,
        prepare=_prepare,
        compare=_compare(8, digits),
        pictures=_pictures,
        columns=_COLUMNS,
        fairness=_FAIRNESS,
    )
