"""Pictures for lossless work: every pixel as the file holds it, or an error that says why it cannot be had."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from encyclo.data.sniff import EXTENSIONS
from encyclo.errors import InputError

__all__ = ["exact_pixels", "gather_pixels", "plain_grey"]


def exact_pixels(path: Path) -> UInt8[Tensor, "c h w"]:
    """The pixels of a file of 8 bits a channel, grey (c = 1) or RGB (c = 3); neither rotated, composited nor scaled.

    Raises:
        InputError: no picture, several frames, transparency, 16 bits or another colour space: what could not be
            given back bit for bit.
    """
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            image.load()
            kind, transparent = image.mode, image.has_transparency_data
            if frames > 1:
                raise InputError(f"'{path}' has {frames} frames: give single pictures")
            if transparent or kind not in ("1", "L", "P", "RGB"):
                what = "transparency" if transparent else f"pixels of kind {kind}"
                raise InputError(f"'{path}' has {what}, which cannot be given back exactly: convert it to RGB or grey")
            array = np.array(image.convert("RGB" if kind in ("P", "RGB") else "L"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"'{path}' is no picture that can be read ({type(error).__name__}): replace it") from None
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()


def plain_grey(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n k h w"]:
    """One channel where the three are equal everywhere, else the images as they are."""
    same = images.shape[1] == 3 and bool((images[:, :1] == images).all())
    return images[:, :1] if same else images


def gather_pixels(inputs: Sequence[Path | Tensor]) -> tuple[UInt8[Tensor, "n c h w"], list[str]]:
    """Pictures of one size from files, folders of them, .npy arrays of bytes and tensors, in order, and their names.

    Arrays are uint8 [n, h, w] or [n, 1|3, h, w], tensors uint8 [1|3, h, w] or [n, 1|3, h, w]; they have no names.

    Raises:
        InputError: nothing given, another kind of array, a bad picture, or pictures of several sizes.
    """
    found: list[Tensor] = []
    names: list[str] = []
    for item in inputs:
        if isinstance(item, Tensor):
            more = _images(item if item.ndim != 3 else item[None], "the tensor")
            found += list(more)
            names += [""] * len(more)
        elif item.suffix == ".npy":
            array = _array(item)
            more = _images(array if array.ndim != 3 else array[:, None], f"'{item}'")
            found += list(more)
            names += [""] * len(more)
        else:
            files = [item]
            if item.is_dir():
                files = sorted(f for f in item.iterdir() if f.suffix.lower() in EXTENSIONS["image"])
                if not files:
                    raise InputError(f"folder '{item}' holds no pictures: give one that does")
            found += [exact_pixels(file) for file in files]
            names += [file.name for file in files]
    if not found:
        if any(isinstance(item, Tensor) or item.suffix == ".npy" for item in inputs):
            return torch.zeros(0, 1, 1, 1, dtype=torch.uint8), []
        raise InputError("no pictures are given: name files, a folder or an array")
    colours = max(len(image) for image in found)
    found = [image.expand(colours, -1, -1) if len(image) == 1 else image for image in found]
    for image, name in zip(found, names, strict=True):
        if image.shape != found[0].shape:
            sizes = " and ".join(f"{i.shape[1]}x{i.shape[2]}" for i in (found[0], image))
            raise InputError(
                f"pictures differ in size ({sizes}{f', {name}' if name else ''}): give pictures of one size"
            )
    return torch.stack(found), names


def _array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise InputError(f"'{path}' is no array that numpy can read: save it with numpy.save") from None
    if array.dtype != np.uint8:
        raise InputError(f"'{path}' holds {array.dtype}, bytes (uint8) are needed: convert it")
    return torch.from_numpy(np.ascontiguousarray(array))


def _images(array: Tensor, name: str) -> UInt8[Tensor, "n c h w"]:
    if array.dtype != torch.uint8:
        raise InputError(
            f"{name} holds {str(array.dtype).removeprefix('torch.')}, bytes (uint8) are needed: convert it"
        )
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    raise InputError(f"{name} has shape {tuple(array.shape)}: give [n, h, w] or [n, 1 or 3, h, w]")
