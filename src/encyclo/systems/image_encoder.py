"""What every image encoder of the library offers: pictures in, and the verbs encode, probe, finetune and classify.

A system of the image wing derives from `ImageEncoder`, gives its encoder and its training, and has these verbs.
"""

import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from encyclo.data import Batches, Splits, load
from encyclo.data.augment import Augment, normalise
from encyclo.data.images import to_tensor
from encyclo.data.sniff import EXTENSIONS
from encyclo.errors import InputError
from encyclo.metrics import probes
from encyclo.metrics.probes import Labelled, Probe
from encyclo.nn.vit import ViT
from encyclo.system import System, SystemConfig
from encyclo.training import Trainer
from encyclo.verbs import Result

__all__ = ["ImageEncoder", "ImageEncoderConfig", "Picture", "labels_of"]

Picture = Path | Tensor
"""A picture file, or a uint8 tensor [c, h, w] of the model's size."""
Pool = Literal["cls", "mean"]

logger = logging.getLogger(__name__)

_IN_MEMORY = 4 << 30
"""Bytes up to which a data set is decoded once and kept; larger ones are decoded batch by batch."""
_KEPT = 1 << 30
"""Bytes of decoded splits that are kept for the next arm of an experiment."""
_decoded: dict[tuple[Any, ...], Tensor] = {}


class ImageEncoderConfig(SystemConfig):
    """What all image encoders have: a vision transformer, how pixels are prepared, and classes once fine-tuned."""

    encoder: ViT.Config = ViT.Config()
    mean: tuple[float, ...] = Field((0.5,), description="of the pixels in 0..1, for all channels or one each")
    std: tuple[float, ...] = Field((0.5,), description="of the pixels in 0..1, for all channels or one each")
    augment: Augment = Augment()
    pool: Pool = Field("cls", description="the vector of a picture: the class token's, or the mean over patches")
    probe_epochs: int = Field(20, ge=1, description="passes of the linear and attentive probes in an evaluation")
    classes: tuple[str, ...] = Field((), description="names of the classes, where a classifier was fine-tuned")


class ImageEncoder(System):
    """A vision transformer over pictures of one size, and what a user does with it."""

    reads = "image"
    Config = ImageEncoderConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.pool == "cls" and not config.encoder.cls_token:
            raise InputError("pool='cls' needs encoder.cls_token=true: use pool='mean'")
        self.encoder = config.encoder.build()
        self.grid = self.encoder.grid
        self.classifier = nn.Linear(config.encoder.dim, len(config.classes)) if config.classes else None

    # -- pictures in -----------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return int(self.config.encoder.image_size)

    def read(self, pictures: Sequence[Picture], notes: list[str]) -> UInt8[Tensor, "n c h w"]:
        """Pictures as the model takes them: folders opened, cropped to a square, resized, in its colours.

        Raises:
            InputError: no picture, one that cannot be read, or a tensor of another shape.
        """
        channels = self.config.encoder.channels
        shape = (channels, self.size, self.size)
        items: list[Picture] = []
        for picture in pictures:
            items += _folder(picture) if isinstance(picture, Path) and picture.is_dir() else [picture]
        if not items:
            raise InputError("no picture was given")
        tensors = [item for item in items if isinstance(item, Tensor)]
        for tensor in tensors:
            if tuple(tensor.shape) != shape or tensor.dtype != torch.uint8:
                raise InputError(f"a picture tensor is {list(tensor.shape)} {tensor.dtype}, give uint8 {list(shape)}")
        if tensors and len(tensors) == len(items):
            return torch.stack(tensors)
        if tensors:
            raise InputError("give either picture files or tensors, not both in one call")
        return self._decode([item for item in items if isinstance(item, Path)], notes)

    def _decode(self, column: Sequence[bytes | Path], notes: list[str] | None) -> UInt8[Tensor, "n c h w"]:
        if self.config.encoder.channels != 1:
            return to_tensor(column, self.size, "RGB", notes=notes)
        pixels = to_tensor(column, self.size, "L", notes=notes)
        coloured = sum(_coloured(item) for item in column)
        if coloured:
            note = f"{coloured} of {len(column)} coloured pictures read in grey (encoder.channels=1)"
            if notes is None:
                logger.warning(note)
            else:
                notes.append(note)
        return pixels

    def pictures_of(self, rows: Any, peak: int = 255) -> UInt8[Tensor, "n c h w"]:
        """A split's pictures, decoded; values stretched so that white is 255. Not to be changed in place."""
        key = (getattr(rows, "_fingerprint", None), self.size, self.config.encoder.channels, peak)
        if key[0] is not None and key in _decoded:
            return _decoded[key]
        images = self._decode(list(rows["image"]), None)
        if peak != 255:
            images = (images.float() * (255 / peak)).round().clamp(max=255).to(torch.uint8)
        if key[0] is not None and images.numel() <= _KEPT:
            _decoded[key] = images
            while sum(kept.numel() for kept in _decoded.values()) > _KEPT:
                _decoded.pop(next(iter(_decoded)))
        return images

    def batches(self, data: Splits, trainer: Trainer) -> tuple[UInt8[Tensor, "n c h w"], Batches]:
        """The training pictures to fit codebooks on (all, or the first that fit into memory), and the batches."""
        size = self.config.training.batch_size
        each = self.config.encoder.channels * self.size**2
        seed = trainer.generator.initial_seed()
        if data.streaming or len(data.train) * each > _IN_MEMORY:
            first = data.train.take(4096) if data.streaming else data.train.select(range(4096))
            sample = self.pictures_of({"image": [row["image"] for row in first]}, data.peak)
            return sample, Batches(data.train, size, seed=seed, collate=lambda rows: self.pictures_of(rows, data.peak))
        if not len(data.train):
            raise InputError(f"'{data.name}' has no picture to train on")
        images = self.pictures_of(data.train, data.peak)
        if len(images) < size:
            logger.warning("only %d pictures: batches hold all of them instead of %d", len(images), size)
        kept = images.to(trainer.device)
        return images, Batches(kept, min(size, len(images)), seed=seed)

    def held_out(self, data: Splits, most: int = 4096) -> UInt8[Tensor, "n c h w"] | None:
        """Test pictures (the first `most` of them); None where the data has none."""
        if data.streaming:
            rows = [row["image"] for row in data.test.take(most)]
            return self.pictures_of({"image": rows}, data.peak) if rows else None
        if not len(data.test):
            return None
        return self.pictures_of(data.test.select(range(most)) if len(data.test) > most else data.test, data.peak)

    def prepared(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalised pixels."""
        return normalise(images, self.config.mean, self.config.std)

    # -- vectors out -----------------------------------------------------------------------------------------------

    def tokens(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        """The encoder's output for whole pictures: class token (where there is one), then patches row by row."""
        encoded: Tensor = self.encoder(self.prepared(images.to(self.device)))
        return encoded

    def pooled(self, tokens: Float[Tensor, "b t d"], pool: Pool | None = None) -> Float[Tensor, "b d"]:
        """One vector a picture; `pool` None takes the configuration's."""
        if (pool or self.config.pool) == "cls":
            if not self.config.encoder.cls_token:
                raise InputError("this model has no class token: use pool=mean")
            return tokens[:, 0]
        return tokens[:, int(self.config.encoder.cls_token) :].mean(1)

    def encode(
        self,
        images: Sequence[Path | Tensor],
        *,
        pool: Literal["cls", "mean", "patches"] | None = None,
        batch_size: int = 256,
    ) -> Result:
        """Turn pictures into vectors.

        Args:
            images: picture files, folders of them, or uint8 tensors [c, h, w] of the model's size.
            pool: 'cls' (the class token's vector), 'mean' (over the patches), 'patches' (the map, one vector each);
                None takes the configuration's.
            batch_size: pictures at a time.

        Returns:
            [n, dim], or [n, rows, columns, dim] for 'patches'; in the order given, folders by name.
        """
        notes: list[str] = []
        pixels = self.read(images, notes)
        self.eval()
        found = []
        for part in torch.split(pixels, batch_size):
            tokens = probes.extract(self.tokens, part)
            if pool == "patches":
                patches = tokens[:, int(self.config.encoder.cls_token) :]
                found.append(patches.reshape(len(part), *self.grid, -1).cpu())
            else:
                found.append(self.pooled(tokens, pool).cpu())
        return Result(torch.cat(found), {"pictures": len(pixels), "dim": self.config.encoder.dim}, notes)

    # -- with labels -----------------------------------------------------------------------------------------------

    def labelled(self, data: Splits) -> tuple[list[str], dict[str, Labelled]] | None:
        """Class names and the three splits with class numbers; None where the data has no labels or lacks a split."""
        parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
        if data.streaming or any("label" not in p.column_names or not len(p) for p in parts.values()):
            return None
        rows = {name: [i for i, label in enumerate(p["label"]) if label is not None] for name, p in parts.items()}
        if not all(rows.values()):
            return None
        names = labels_of(parts["train"].select(rows["train"])["label"])
        number = {name: index for index, name in enumerate(names)}
        made = {}
        for split, part in parts.items():
            known = [i for i in rows[split] if str(part[i]["label"]) in number]
            chosen = part.select(known) if len(known) < len(part) else part
            if not known:
                return None
            labels = torch.tensor([number[str(label)] for label in chosen["label"]])
            made[split] = Labelled(self.pictures_of(chosen, data.peak), labels)
        return names, made

    def _labelled_folder(self, folder: Path) -> tuple[list[str], dict[str, Labelled], list[str]]:
        data = load(str(folder), "image")
        found = self.labelled(data)
        if found is None:
            raise InputError(
                f"'{folder}' has no labelled pictures for all of train, validation and test: give one folder per class"
                " (FOLDER/CLASS/picture.png) with a few pictures each"
            )
        return *found, list(data.notes)

    def probed(self, parts: dict[str, Labelled], kinds: Sequence[Probe], **options: Any) -> dict[str, probes.Probed]:
        """The probe suite on labelled pictures; vectors are pooled as configured."""
        self.eval()
        heads = self.config.encoder.blocks.heads
        parts = {name: part.to(self.device) for name, part in parts.items()}
        return probes.probe_suite(self.tokens, *parts.values(), kinds=kinds, pool=self.pooled, heads=heads, **options)

    def probe_metrics(self, data: Splits) -> dict[str, float]:
        """Test accuracies in percent of the linear, attentive and kNN probes; nothing where the data has no labels.

        `linear` is on the configured vector, as papers report it; `linear_mean` and `knn` on the mean over patches.
        """
        found = self.labelled(data)
        if found is None or len(found[0]) < 2 or len(found[1]["train"]) < 2 * len(found[0]):
            return {}
        self.eval()
        parts = [part.to(self.device) for part in found[1].values()]
        sets = [Labelled(probes.extract(self.tokens, part.inputs), part.labels) for part in parts]
        vectors = [Labelled(self.pooled(s.inputs), s.labels) for s in sets]
        means = [Labelled(self.pooled(s.inputs, "mean"), s.labels) for s in sets]
        epochs, heads = self.config.probe_epochs, self.config.encoder.blocks.heads
        measured = {
            "linear": probes.linear_probe(*vectors, epochs=epochs),
            "linear_mean": probes.linear_probe(*means, epochs=epochs),
            "attentive": probes.attentive_probe(*sets, heads=heads, epochs=epochs),
            "knn": probes.knn_probe(*means),
        }
        return {name: 100 * probed.accuracy for name, probed in measured.items()}

    def probe(
        self, folder: Path, *, kinds: tuple[Probe, ...] = ("linear", "attentive", "knn", "logistic"), seed: int = 0
    ) -> Result:
        """Measure the frozen representation on labelled pictures.

        Args:
            folder: one folder per class, within folders train, validation and test or not (then 90 / 5 / 5).
            kinds: which probes, as a JSON list.
            seed: of the probes.

        Returns:
            A row a probe: accuracy on test and validation in percent, and the setting that validation chose.
        """
        names, parts, notes = self._labelled_folder(folder)
        found = self.probed(parts, kinds, seed=seed)
        rows = [
            {
                "probe": kind,
                "test accuracy (%)": 100 * probed.accuracy,
                "validation accuracy (%)": 100 * probed.validation,
                "setting": ", ".join(f"{name}={value:g}" for name, value in probed.chosen.items()),
            }
            for kind, probed in found.items()
        ]
        report = {"classes": len(names), **{f"{name} pictures": len(part) for name, part in parts.items()}}
        return Result(rows, report, notes)

    def finetune(
        self,
        folder: Path,
        *,
        out: Path | None = None,
        epochs: int = 20,
        rates: tuple[float, ...] = (3e-4, 1e-3),
        layer_decays: tuple[float, ...] = (0.65, 0.85),
        batch_size: int = 64,
        seed: int = 0,
    ) -> Result:
        """Train encoder and a classifier on labelled pictures, and save the classifier as a run of its own.

        Args:
            folder: as for `probe`.
            out: where the new run goes.
            epochs: passes over the training pictures.
            rates, layer_decays: settings, of which validation chooses one.
            batch_size: pictures a step.
            seed: of everything random.

        Returns:
            The new run's folder.
        """
        if out is None:
            raise InputError("finetune makes a new run: say where with --out DIR")
        names, parts, notes = self._labelled_folder(folder)
        result = self.tuned(
            parts, epochs=epochs, rates=rates, layer_decays=layer_decays, batch_size=batch_size, seed=seed
        )
        config = self.config.replace(classes=tuple(names))
        made: ImageEncoder = config.build()
        made.load_assets(self.assets())
        state = {f"encoder.{name}": value for name, value in result.model.encoder.state_dict().items()}
        state |= {f"classifier.{name}": value for name, value in result.model.head.state_dict().items()}
        made.load_state_dict({**self.state_dict(), **state}, strict=True)
        accuracy = {"test accuracy (%)": 100 * result.accuracy, "validation accuracy (%)": 100 * result.validation}
        made.save_pretrained(out, results=accuracy)
        return Result(out, {**accuracy, "classes": len(names), **result.chosen}, notes)

    def tuned(self, parts: dict[str, Labelled], **options: Any) -> Any:
        """Fine-tune a copy of the encoder; see `encyclo.metrics.probes.finetune`."""

        def pool(encoder: nn.Module, images: Tensor) -> Tensor:
            return self.pooled(encoder(self.prepared(images)))

        depth = self.config.encoder.blocks.depth
        return probes.finetune(
            self.encoder,
            pool,
            *parts.values(),
            dim=self.config.encoder.dim,
            depth_of=lambda name: _depth(name, depth),
            augment=None if self.config.augment.idle else self.config.augment,
            **options,
        )

    def classify(
        self, images: Sequence[Path | Tensor], *, labelled: Path | None = None, neighbours: int = 10
    ) -> Result:
        """Name the class of pictures: by the fine-tuned classifier, or by the nearest pictures of a labelled folder.

        Args:
            images: picture files, folders of them, or uint8 tensors [c, h, w] of the model's size.
            labelled: one folder per class; its nearest pictures (cosine of the encoded vectors) vote. Not needed where
                the run was made by `finetune`.
            neighbours: how many vote.

        Returns:
            A row a picture: class and its share of the vote, or its probability.
        """
        notes: list[str] = []
        pixels = self.read(images, notes)
        self.eval()
        vectors = self.pooled(probes.extract(self.tokens, pixels))
        if labelled is not None:
            data = load(str(labelled), "image")
            known = [row for part in (data.train, data.validation, data.test) for row in part if row.get("label")]
            if not known:
                raise InputError(f"'{labelled}' has no labels: give one folder per class, FOLDER/CLASS/picture.png")
            names = labels_of([row["label"] for row in known])
            base = self.pooled(probes.extract(self.tokens, self._decode([row["image"] for row in known], notes)))
            numbers = torch.tensor([names.index(str(row["label"])) for row in known], device=base.device)
            shares = _votes(vectors, base, numbers, len(names), neighbours)
        elif self.classifier is not None:
            names = list(self.config.classes)
            with torch.no_grad():
                shares = self.classifier(vectors).softmax(1)
        else:
            raise InputError("this run has no classifier: give labelled=FOLDER, or make one with `encyclo finetune`")
        best = shares.max(1)
        shown = [str(p) if isinstance(p, Path) else f"tensor {i}" for i, p in enumerate(_flat(images))]
        rows = [
            {"picture": name, "class": names[index], "share": share}
            for name, index, share in zip(shown, best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return Result(rows, {"classes": len(names)}, notes)


def labels_of(labels: Sequence[Any]) -> list[str]:
    """The names of the classes, sorted (numbers by value)."""
    names = {str(label) for label in labels}
    return sorted(names, key=lambda name: (0, int(name), "") if name.isdigit() else (1, 0, name))


def _coloured(picture: bytes | Path) -> bool:
    """Whether a picture's file can hold colours; reads its header only."""
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
        return opened.mode not in ("1", "L", "LA", "I", "F") and not opened.mode.startswith("I;")


def _votes(
    vectors: Float[Tensor, "n d"], base: Float[Tensor, "m d"], labels: Int64[Tensor, " m"], classes: int, k: int
) -> Float[Tensor, "n c"]:
    near, index = (F.normalize(vectors, dim=1) @ F.normalize(base, dim=1).T).topk(min(k, len(base)), dim=1)
    weights = (near / 0.07).softmax(1)
    return weights.new_zeros(len(vectors), classes).scatter_add_(1, labels[index], weights)


def _folder(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS["image"] and p.is_file())
    if not found:
        raise InputError(f"'{folder}' holds no pictures: give {', '.join(EXTENSIONS['image'][:4])}")
    return found


def _flat(pictures: Sequence[Picture]) -> Iterator[Picture]:
    for picture in pictures:
        if isinstance(picture, Path) and picture.is_dir():
            yield from _folder(picture)
        else:
            yield picture


def _depth(name: str, depth: int) -> int:
    """Depth of a ViT's parameter: 0 for patches and positions, i + 1 in block i, the last for the final norm."""
    if name.startswith("blocks.blocks."):
        return int(name.split(".")[2]) + 1
    return depth if name.startswith("blocks.") else 0
