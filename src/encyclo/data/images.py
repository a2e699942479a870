"""Pictures: encoded bytes to uint8 tensors and back, with Pillow."""

import io
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError
from torch import Tensor

from encyclo.data.atomic import write_bytes
from encyclo.data.sniff import article, kind_of_bytes
from encyclo.errors import InputError

__all__ = ["Image", "encode_image", "probe_image", "read_image", "to_tensor", "write_image"]

Mode = Literal["RGB", "L"]
Fit = Literal["crop", "pad", "stretch"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    """One picture as a verb takes and gives it."""

    pixels: UInt8[Tensor, "c h w"]
    """c = 1 (grey) or 3 (RGB)."""
    name: str = ""

    @classmethod
    def read(cls, path: Path) -> "Image":
        """Read a picture file; see `read_image`."""
        return cls(read_image(path), path.name)


def _say(notes: list[str] | None, told: list[str]) -> None:
    """Hand what was lossy to the caller's list; to stderr when the caller keeps none."""
    if notes is not None:
        notes.extend(told)
        return
    for note in told:
        logger.warning(note)


def _open(source: bytes | str | Path, name: str) -> Pillow.Image:
    """A picture's header, checked: it exists, is a picture, and is not a decompression bomb."""
    if isinstance(source, bytes):
        if not source:
            raise InputError(f"{name} is empty (0 bytes): give a picture")
        head, stream = source[:512], io.BytesIO(source)
    else:
        path = Path(source)
        if not path.exists():
            raise InputError(f"{name} does not exist: check the path")
        if path.is_dir():
            raise InputError(f"{name} is a folder: name one picture in it")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{name} cannot be read ({error.strerror}): check its permissions") from error
        return _open(data, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)  # below it is an error
            image = Pillow.open(stream)
    except Pillow.DecompressionBombError as error:
        raise InputError(f"{name} declares too many pixels ({error}): shrink it first") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        found = kind_of_bytes(head)
        what = article(found) if found and found != "image" else "not a picture that Pillow can read"
        raise InputError(f"{name} is {what}: give a PNG, JPEG, WebP, GIF, BMP or TIFF") from error
    limit = Pillow.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:  # Pillow itself only warns below twice the limit
        raise InputError(f"{name} declares {image.width}x{image.height} pixels, the limit is {limit}: shrink it first")
    return image


def _decode(source: bytes | str | Path, mode: Mode, name: str) -> Pillow.Image:
    """The decoded picture in `mode`: upright, first frame, transparent pixels composited on white."""
    image = _open(source, name)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: Pillow would clip it, not scale it
            image = Pillow.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            picture = image.convert("RGBA")
            white = Pillow.new("RGBA", picture.size, (255, 255, 255, 255))
            image = Pillow.alpha_composite(white, picture)
        return image.convert(mode)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InputError(f"{name} is damaged ({error}): replace or remove it") from error


def probe_image(source: bytes | str | Path) -> tuple[int, int]:
    """Height and width of a picture from its header, with a check that its file was not cut short.

    Raises:
        InputError: as in `read_image`.
    """
    data = source if isinstance(source, bytes) else None
    image = _open(source, _name(source, None))
    if data is None:
        data = Path(str(source)).read_bytes()
    cut = {"PNG": b"IEND" not in data[-(2**16) :], "JPEG": b"\xff\xd9" not in data[-(2**16) :]}
    if image.format == "WEBP":
        cut["WEBP"] = int.from_bytes(data[4:8], "little") + 8 > len(data)
    if cut.get(image.format or "", False):
        raise InputError(f"{_name(source, None)} is damaged (cut short): replace or remove it")
    return image.height, image.width


def _resize(image: Pillow.Image, size: tuple[int, int], fit: Fit) -> Pillow.Image:
    """`image` at (height, width) `size`, antialiased."""
    height, width = size
    if fit == "stretch":
        return image.resize((width, height), Pillow.Resampling.BICUBIC)
    if fit == "crop":
        return ImageOps.fit(image, (width, height), Pillow.Resampling.BICUBIC)
    white = 255 if image.mode == "L" else (255, 255, 255)
    return ImageOps.pad(image, (width, height), Pillow.Resampling.BICUBIC, color=white)


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise InputError(f"size {height}x{width} is not a picture size: give positive numbers")
    return height, width


def read_image(
    source: bytes | str | Path, size: int | tuple[int, int] | None = None, mode: Mode = "RGB", *, fit: Fit = "crop"
) -> UInt8[Tensor, "c h w"]:
    """Read one picture.

    Args:
        source: a path, or the bytes of a file.
        size: (height, width) or one number for both; None keeps the picture's own.
        mode: 'RGB' gives c = 3, 'L' (grey) c = 1.
        fit: how a picture of another shape meets `size`: 'crop' (fill it, cut what stands over, centred),
            'pad' (all of it, on white) or 'stretch'.

    Returns:
        Values 0..255, in uint8. Rotated as the file's EXIF data says; transparent pixels lie on white; of an
        animation the first frame.

    Raises:
        InputError: missing, empty, damaged or no picture; or more pixels than `PIL.Pillow.MAX_IMAGE_PIXELS`.
    """
    image = _decode(source, mode, _name(source, None))
    if size is not None and (image.height, image.width) != _size(size):
        image = _resize(image, _size(size), fit)
    return _tensor(image)


def to_tensor(
    column: Iterable[bytes | str | Path],
    size: int | tuple[int, int] | None = None,
    mode: Mode = "RGB",
    *,
    fit: Fit = "crop",
    notes: list[str] | None = None,
) -> UInt8[Tensor, "n c h w"]:
    """Decode a column of pictures into one batch.

    Args:
        column: bytes of picture files or paths to them (a `datasets` column of bytes is one).
        size, mode, fit: as in `read_image`.
        notes: a list that is told how many pictures were resized or were animations; with None the same is
            logged as a warning.

    Returns:
        Values 0..255, in uint8.

    Raises:
        InputError: no pictures, a bad one, or pictures of several sizes and no `size`.
    """
    wanted = None if size is None else _size(size)
    batch: UInt8[Tensor, "n c h w"] | None = None
    sources = column if isinstance(column, (list, tuple)) else list(column)
    resized = 0
    for index, source in enumerate(sources):
        image = _decode(source, mode, _name(source, index))
        found = (image.height, image.width)
        wanted = wanted or found
        if found != wanted:
            if size is None:
                raise InputError(
                    f"pictures have different sizes ({wanted[0]}x{wanted[1]} and {found[0]}x{found[1]} at row {index}):"
                    " give size="
                )
            image = _resize(image, wanted, fit)
            resized += 1
        if batch is None:
            batch = torch.empty((len(sources), 1 if mode == "L" else 3, *wanted), dtype=torch.uint8)
        batch[index] = _tensor(image)
    if batch is None or wanted is None:
        raise InputError("there are no pictures to decode: the column is empty")
    if resized:
        _say(notes, [f"{resized} of {len(sources)} pictures resized to {wanted[0]}x{wanted[1]} ({fit})"])
    return batch


def encode_image(
    image: UInt8[Tensor, "c h w"] | Float[Tensor, "c h w"], format: str = "PNG", **options: object
) -> bytes:
    """Encode a picture, c = 1 (grey) or 3 (RGB), uint8 or float in 0..1 (clipped), as the bytes of a file.

    Raises:
        InputError: a shape that is no picture, or a format that Pillow cannot write.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(f"a tensor of shape {tuple(image.shape)} is no picture: give [1|3, height, width]")
    if image.dtype != torch.uint8:
        image = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    array = image.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    picture = Pillow.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    stream = io.BytesIO()
    try:
        picture.save(stream, format=format, **options)
    except (KeyError, OSError, ValueError) as error:
        raise InputError(f"cannot write a picture as '{format}': use PNG, WEBP or JPEG") from error
    return stream.getvalue()


def write_image(image: UInt8[Tensor, "c h w"] | Float[Tensor, "c h w"], path: str | Path) -> None:
    """Write a picture (as in `encode_image`) to `path`, atomically, in the format that its extension names.

    Raises:
        InputError: an unknown extension, a shape that is no picture, or a place that cannot be written.
    """
    format = Pillow.registered_extensions().get(Path(path).suffix.lower())
    if format is None:
        raise InputError(f"'{path}' has no known picture extension: end it in .png, .webp or .jpg")
    write_bytes(encode_image(image, format), path)


def _name(source: bytes | str | Path, index: int | None) -> str:
    if not isinstance(source, bytes):
        return f"'{source}'"
    return "the picture" if index is None else f"the picture at row {index}"


def _tensor(image: Pillow.Image) -> UInt8[Tensor, "c h w"]:
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()
