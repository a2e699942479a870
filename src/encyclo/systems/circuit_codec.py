"""A probabilistic circuit over the pixels of images of one size, put to use: a lossless codec and exact answers."""

import hashlib
import json
import math
import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from encyclo.data.atomic import atomic_path
from encyclo.data.exact_pixels import gather_pixels
from encyclo.data.images import Image, write_image
from encyclo.errors import InputError
from encyclo.nn.hidden_chow_liu_tree import HiddenChowLiuTree
from encyclo.nn.integer_flow import IntegerFlow
from encyclo.nn.part import parameter_count
from encyclo.page import figure, page, table, write
from encyclo.picture import grid
from encyclo.systems.pixel_model import NATS, PixelModel
from encyclo.systems.pixel_pictures import tree_picture
from encyclo.tokens.circuit_codec import GROUP, Streams, decode_samples, encode_samples
from encyclo.tokens.container import pack, unpack
from encyclo.tokens.prefix_marginals import IntegerCircuit
from encyclo.verbs import Result

__all__ = ["CircuitCodec", "decoded_elsewhere"]

MOST_BYTES = 1 << 31
"""Pixels that one compressed file may unfold to."""


class CircuitCodec(PixelModel):
    """What can be asked of a hidden Chow-Liu tree over pixels, or over the latents of an integer flow of them.

    A subclass fills `circuit` (and `flow`, where there is one) and gives `card`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.circuit: HiddenChowLiuTree | None = None
        self.flow: IntegerFlow | None = None
        self._coder: IntegerCircuit | None = None

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

    @property
    def digest(self) -> str:
        """16 hex digits that are equal for all models that code alike."""
        if self.flow is None:
            return self.coder.digest
        return hashlib.sha256((self.coder.digest + self.flow.digest()).encode()).hexdigest()[:16]

    def codes(self, rows: UInt8[Tensor, "n d"]) -> UInt8[Tensor, "n d"]:
        """What the circuit is a model of: the pixels, or the flow's latents of them (a bijection)."""
        return rows if self.flow is None else self.flow.encode(rows)

    def pixels_of(self, codes: UInt8[Tensor, "n d"]) -> UInt8[Tensor, "n d"]:
        """The pixels that have these codes."""
        return codes if self.flow is None else self.flow.decode(codes)

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
        header = {"n": len(rows), "shape": self.shape.tolist(), "model": self.digest}
        if streams != "one":
            header["streams"] = streams
        sections = {"payload": encode_samples(self.coder, self.codes(rows), streams=streams)}
        if any(names):
            sections["names"] = zlib.compress(json.dumps(list(names)).encode(), 9)
        return pack(self.card.slug, header, sections)

    def decode_images(self, blob: bytes) -> UInt8[Tensor, "n c h w"]:
        """The images of a file that a model with equal tables wrote, bit for bit.

        Raises:
            InputError: a damaged or foreign file, or one of another model (both hashes are named).
        """
        return self._decode(blob)[0]

    def _decode(self, blob: bytes) -> tuple[UInt8[Tensor, "n c h w"], list[str]]:
        file = unpack(blob, system=self.card.slug)
        header, shape = file.header, self.shape.tolist()
        if header.get("model") != self.digest:
            raise InputError(
                f"the file was written by model {header.get('model')}, this is model {self.digest}:"
                " open the run that wrote it"
            )
        n, streams, payload = header.get("n"), header.get("streams", "one"), file.sections.get("payload")
        if not isinstance(n, int) or streams not in ("one", "each") or header.get("shape") != shape or payload is None:
            raise InputError("the file's header is not one of this system: it was not written by encyclo")
        if not 0 <= n <= MOST_BYTES // math.prod(shape):
            raise InputError(f"the file claims {n} images, too many to unfold at once: it is damaged")
        codes = decode_samples(self.coder, payload, n, streams=streams, group=GROUP)
        rows = self.pixels_of(codes.to(self.device)).cpu()
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
            "model": self.digest,
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
        found = self.bits(self.coder.dequantised().log_likelihood(self.codes(rows))).cpu()
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
        self._needs_pixels("marginal")
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
        drawn = self.pixels_of(torch.cat([self.model.sample(generator, part) for part in rows.split(64)])).cpu()
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
        self._needs_pixels("inpaint")
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
        drawn = torch.stack([image.pixels for image in self.sample(count=16).value])
        shown = [grid({"drawn from the model": drawn}, "samples", "Samples.", scale=2)]
        if self.flow is None:
            shown.insert(0, tree_picture(self.model.tree, self.shape.tolist()))
        body = table([{"figure": name, "value": value} for name, value in figures.items()])
        return Result(write(out, page("A hidden Chow-Liu tree", body + "".join(map(figure, shown)))), report=figures)

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
            "model": self.digest,
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

    def _needs_pixels(self, verb: str) -> None:
        if self.flow is not None:
            raise InputError(
                f"{verb} needs a circuit over pixels, this one stands on a flow's latents, each of which mixes many"
                " pixels: train a run without flow"
            )


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
    with atomic_path(out) as path, path.open("wb") as file:
        np.save(file, images.numpy(), allow_pickle=False)
    return out


_DECODE = """
import sys, torch
torch.set_num_threads(int(sys.argv[4]))
import encyclo
from pathlib import Path
encyclo.open(sys.argv[1]).decompress(Path(sys.argv[2]).read_bytes(), out=Path(sys.argv[3]))
"""


def decoded_elsewhere(run: Path, blob: bytes, images: UInt8[Tensor, "n c h w"], threads: int) -> float:
    """Share of the images that a fresh process with another number of threads gives back bit for bit."""
    packed, out = run / "test.pc", run / "test.npy"
    packed.write_bytes(blob)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", _DECODE, str(run), str(packed), str(out), str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"decoding in a fresh process failed: {done.stderr.strip().splitlines()[-1:]}")
    return float((torch.from_numpy(np.load(out)) == images).flatten(1).all(1).double().mean())
