"""What established lossless codecs need for a set of small images: one file an image, or all as one sheet."""

import bz2
import io
import lzma
import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

__all__ = ["CodecResult", "codec_arms", "codec_results", "codecs"]

WEBP_SIDE = 16383
"""Longest side of a WebP file."""

Pixels = UInt8[ndarray, "..."]


@dataclass(frozen=True)
class CodecResult:
    """What a codec made of a set of images, verified by decoding."""

    each_bits: int
    """Sum of the sizes of one file an image, headers included."""
    sheet_bits: int
    """Size of one file that holds all images: one column of them or a near square, whichever is smaller."""
    seconds: float
    """To encode the files of one image each."""


Encode = Callable[[Pixels], bytes]
Decode = Callable[[bytes], Pixels]


def codecs() -> dict[str, tuple[Encode, Decode]]:
    """Encoders and decoders of [h, w] or [h, w, 3] uint8 arrays by name, those whose libraries are installed.

    png (Pillow, optimised), webp (lossless, method 6) and, with imagecodecs, jxl-7 and jxl-9 (JPEG XL by effort).
    """
    found: dict[str, tuple[Encode, Decode]] = {
        "png": (lambda a: _pillow(a, "PNG", optimize=True), _unpillow),
        "webp": (lambda a: _pillow(a, "WEBP", lossless=True, quality=100, method=6, exact=True), _unpillow),
    }
    try:
        import imagecodecs
    except ImportError:
        return found
    if imagecodecs.JPEGXL.available:
        for effort in (7, 9):
            found[f"jxl-{effort}"] = (
                lambda a, e=effort: bytes(imagecodecs.jpegxl_encode(a, lossless=True, effort=e)),
                lambda blob: np.asarray(imagecodecs.jpegxl_decode(blob)),
            )
    return found


def codec_arms(
    images: UInt8[Tensor, "n c h w"], *, only: Sequence[str] | None = None, prefix: str = ""
) -> dict[str, dict[str, float]]:
    """Rows of a table, by codec: bits per dimension in both packings and the better of them, speed; and the best codec.

    Args:
        images: what is compressed.
        only: names of `codecs`, and of what packs raw bytes: xz (preset 9e), bz2 and zlib (level 9); None: all.
        prefix: put before the names.
    """
    size = images.numel()
    arms = {
        prefix + name: {
            "bits_per_dimension": min(result.each_bits, result.sheet_bits) / size,
            "file_bits_per_dimension": result.sheet_bits / size,
            "each_file_bits_per_dimension": result.each_bits / size,
            "encode_mb_per_second": size / 1e6 / result.seconds,
        }
        for name, result in codec_results(images, only=only).items()
    }
    best = min(arms.values(), key=lambda arm: arm["bits_per_dimension"])
    arms[prefix + "best codec"] = {"bits_per_dimension": best["bits_per_dimension"]}
    return arms


def codec_results(images: UInt8[Tensor, "n c h w"], *, only: Sequence[str] | None = None) -> dict[str, CodecResult]:
    """Each codec's lengths for a set of images.

    Args:
        images: what is compressed.
        only: names of `codecs`, and of what packs raw bytes: xz (preset 9e), bz2 and zlib (level 9); None: all.

    Raises:
        RuntimeError: where a codec did not give the images back (it was not lossless).
    """
    arrays = [image.permute(1, 2, 0).squeeze(-1).contiguous().numpy() for image in images.cpu()]
    sheets = [_sheet(arrays, columns) for columns in {_least_columns(arrays), _square_columns(arrays)}]
    out = {}
    for name, (encode, decode) in codecs().items():
        if only is not None and name not in only:
            continue
        began = time.perf_counter()
        files = [encode(array) for array in arrays]
        seconds = time.perf_counter() - began
        for array, blob in zip(arrays[:8], files[:8], strict=True):
            _verify(name, array, decode(blob))
        packed = [encode(sheet) for sheet in sheets]
        _verify(name, sheets[0], decode(packed[0]))
        out[name] = CodecResult(8 * sum(map(len, files)), 8 * min(map(len, packed)), seconds)
    raw = b"".join(array.tobytes() for array in arrays)
    packers: dict[str, Callable[[bytes], bytes]] = {
        "xz": _xz,
        "bz2": lambda data: bz2.compress(data, 9),
        "zlib": lambda data: zlib.compress(data, 9),
    }
    for name, pack in packers.items():
        if only is not None and name not in only:
            continue
        began = time.perf_counter()
        files = [pack(array.tobytes()) for array in arrays]
        seconds = time.perf_counter() - began
        out[name] = CodecResult(8 * sum(map(len, files)), 8 * len(pack(raw)), seconds)
    return out


def _xz(raw: bytes) -> bytes:
    """Preset 9e; its window of 64 MiB is cut to the data, which changes no byte of substance and saves its set-up."""
    window = max(1 << 12, 1 << (len(raw) - 1).bit_length()) if raw else 1 << 12
    chain = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": min(window, 1 << 26)}
    return lzma.compress(raw, format=lzma.FORMAT_XZ, filters=[chain])


def _least_columns(arrays: list[Pixels]) -> int:
    """One column, or as many as the longest side of a WebP file asks for."""
    return max(1, math.ceil(len(arrays) * int(arrays[0].shape[0]) / WEBP_SIDE))


def _square_columns(arrays: list[Pixels]) -> int:
    height, width = int(arrays[0].shape[0]), int(arrays[0].shape[1])
    return max(_least_columns(arrays), int(math.sqrt(len(arrays) * height / width) + 0.5))


def _sheet(arrays: list[Pixels], columns: int) -> Pixels:
    rows = math.ceil(len(arrays) / columns)
    blank = [np.zeros_like(arrays[0])] * (rows * columns - len(arrays))
    tiles = [*arrays, *blank]
    return np.concatenate([np.concatenate(tiles[r * columns : (r + 1) * columns], axis=1) for r in range(rows)], axis=0)


def _pillow(array: Pixels, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, format=format, **options)
    return out.getvalue()


def _unpillow(blob: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(blob)))


def _verify(name: str, wanted: Pixels, got: Pixels) -> None:
    if got.ndim > wanted.ndim:  # WebP knows no grey: it stores three equal channels
        got = got[..., 0]
    if not np.array_equal(wanted, got):
        raise RuntimeError(f"{name} did not give back what it was given")
