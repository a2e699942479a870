"""Uniform quantisation of tensors, and sets of quantised tensors as entropy-coded bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from encyclo.config import Config
from encyclo.errors import InputError
from encyclo.tokens import entropy
from encyclo.tokens.container import Reader, varint

__all__ = [
    "Quantised",
    "TensorCoding",
    "decode_tensors",
    "encode_tensors",
    "quantise",
    "quantise_best",
    "straight_through",
]

MOST_BITS: Final = 16
LONG_AXIS: Final = 50
"""HNeRV tries ranges over an axis only where it is longer than this."""
_SMALL: Final = 2048
"""Tensors of fewer numbers share one histogram: their own would cost more than it saves."""


@dataclass(frozen=True)
class Quantised:
    """Whole numbers 0..2^bits-1 with the range that each of them divides.

    `symbols` has the tensor's shape; `minimum` and `scale` have the same number of axes, of length 1 where a range is
    shared. x is restored as minimum + scale * symbol.
    """

    symbols: Int64[Tensor, "*shape"]
    minimum: Float16[Tensor, "*ranges"]
    scale: Float16[Tensor, "*ranges"]
    bits: int
    axis: int | None
    """The axis along which a range is shared; None: by the whole tensor."""

    def dequantise(self) -> Float[Tensor, "*shape"]:
        """The restored tensor, float32."""
        return self.symbols.float() * self.scale.float() + self.minimum.float()

    @property
    def range_bits(self) -> int:
        """Bits that the ranges take: 16 for each minimum and scale."""
        return 16 * (self.minimum.numel() + self.scale.numel())


def quantise(values: Float[Tensor, "*shape"], bits: int, *, axis: int | None = None) -> Quantised:
    """Divide ranges into 2^bits levels: scale = (max - min) / (2^bits - 1), symbol = clamp(round((x - min) / scale)).

    Minimum and scale are rounded to float16, as they are stored, before the symbols are formed: what is restored is
    exactly what a decoder restores. Constant values (or a spread below float16's least number) take symbol 0.

    Args:
        values: any shape.
        bits: 1..16.
        axis: share a range along this axis, one for each position of the others; None: one range for all.

    Raises:
        InputError: values that are not finite or exceed float16 (65504), bits out of bounds.
    """
    if not 1 <= bits <= MOST_BITS:
        raise InputError(f"bits={bits}: give 1 to {MOST_BITS}")
    x = values.detach().float()
    if axis is None:
        low, high = (x.min(), x.max()) if x.numel() else (x.new_zeros(()), x.new_zeros(()))
        low, high = (bound.reshape((1,) * x.ndim) for bound in (low, high))
    else:
        axis %= x.ndim
        low, high = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
    minimum, scale = low.half(), ((high - low) / (2**bits - 1)).half()
    if not bool(minimum.isfinite().all() and scale.isfinite().all()):
        raise InputError("a tensor holds values beyond float16 or not finite: it cannot be quantised")
    step = scale.float()
    symbols = ((x - minimum.float()) / torch.where(step > 0, step, torch.inf)).round().clamp(0, 2**bits - 1)
    return Quantised(symbols.long(), minimum, scale, bits, axis)


def quantise_best(values: Float[Tensor, "*shape"], bits: int, *, longer_than: int = LONG_AXIS) -> Quantised:
    """The better of several ranges, by mean absolute error (HNeRV's code; the paper's section 3.3 leaves it open).

    Tried are one range for the tensor and, for every axis longer than `longer_than`, ranges along that axis: for
    embeddings [frames, d, h, w], one range for each coordinate over all frames.
    """
    x = values.detach()
    axes = [None, *(axis for axis, length in enumerate(x.shape) if length > longer_than)]
    tried = [quantise(x, bits, axis=axis) for axis in axes]
    errors = [float((q.dequantise() - x).abs().mean()) if x.numel() else 0.0 for q in tried]
    return tried[errors.index(min(errors))]


def straight_through(values: Float[Tensor, "*shape"], bits: int, *, axis: int | None = None) -> Float[Tensor, "*shape"]:
    """The restored values, with the gradient of the values themselves (Bengio et al. 2013, arXiv 1308.3432)."""
    return values + (quantise(values, bits, axis=axis).dequantise() - values.detach())


# -- sets of tensors ---------------------------------------------------------------------------------------------------


class TensorCoding(Config):
    """How a set of tensors becomes bytes."""

    bits: int = Field(8, ge=1, le=MOST_BITS, description="of weights")
    sequence_bits: int = Field(8, ge=1, le=MOST_BITS, description="of tensors with a time axis (embeddings)")
    ranges: Literal["best", "tensor"] = Field(
        "best", description="candidates of `quantise_best`, or one range a tensor"
    )
    coder: Literal["plain", "huffman", "ans", "range"] = Field(
        "ans", description="plain: bits as they are; huffman: one table, as in the paper; else tables by tensor or one"
    )
    predict: bool = Field(
        True, description="may code a time axis by differences of neighbouring symbols (not with plain)"
    )


def encode_tensors(
    tensors: Mapping[str, Float[Tensor, "..."]], coding: TensorCoding, *, sequences: Sequence[str] = ()
) -> tuple[dict[str, bytes], dict[str, Float[Tensor, "..."]]]:
    """Quantise and code tensors.

    Args:
        tensors: by name; the decoder must know names and shapes, which are not stored.
        sequences: names of those whose first axis is time.

    Returns:
        The payloads by section (`layout`, `ranges`, `symbols`; all that a decoder needs beside names and shapes), and
        the tensors as `decode_tensors` restores them.
    """
    quantised = {
        name: _quantise(tensor, coding.sequence_bits if name in sequences else coding.bits, coding)
        for name, tensor in tensors.items()
    }
    streams: dict[str, Int64[ndarray, " n"]] = {}
    layout = bytearray()
    for name, q in quantised.items():
        symbols = q.symbols.cpu().numpy()
        predicted = coding.predict and coding.coder != "plain" and name in sequences and len(symbols) > 1
        if predicted:
            differences = np.diff(symbols, axis=0, prepend=0)
            predicted = _entropy(differences) < _entropy(symbols)
            symbols = differences if predicted else symbols
        streams[name] = symbols.ravel()
        layout += bytes([q.bits | (0x80 if predicted else 0), 0 if q.axis is None else q.axis + 1])
    ranges = b"".join(
        half.cpu().contiguous().numpy().astype("<f2").tobytes()
        for q in quantised.values()
        for half in (q.minimum, q.scale)
    )
    bits = [q.bits for q in quantised.values()]
    sections = {"layout": bytes(layout), "ranges": ranges, "symbols": _code(list(streams.values()), bits, coding.coder)}
    return sections, {name: q.dequantise() for name, q in quantised.items()}


def decode_tensors(
    sections: Mapping[str, bytes], shapes: Mapping[str, Sequence[int]], *, sequences: Sequence[str] = ()
) -> dict[str, Float[Tensor, "..."]]:
    """What `encode_tensors` coded, restored.

    Args:
        sections: its payloads.
        shapes: by name, in the order in which the tensors were coded.
        sequences: as they were given to it.

    Raises:
        InputError: payloads that are damaged or of other shapes.
    """
    missing = [name for name in ("layout", "ranges", "symbols") if name not in sections]
    if missing:
        raise InputError(f"the file has no part '{missing[0]}': it was not written by encyclo")
    layout, ranges = Reader(sections["layout"]), Reader(sections["ranges"])
    plans: list[tuple[int, bool, int | None]] = []
    for shape in shapes.values():
        mark, place = layout.take(2)
        if not 1 <= mark & 0x7F <= MOST_BITS or place > len(shape):
            raise _damaged()
        plans.append((mark & 0x7F, bool(mark & 0x80), place - 1 if place else None))
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]
    streams = _decode(sections["symbols"], sizes, [bits for bits, _, _ in plans])
    restored = {}
    for (name, shape), (bits, predicted, axis), stream in zip(shapes.items(), plans, streams, strict=True):
        symbols = stream.reshape(tuple(shape))
        if predicted:
            if name not in sequences:
                raise _damaged()
            symbols = np.cumsum(symbols, axis=0)
        if symbols.size and (int(symbols.min()) < 0 or int(symbols.max()) >= 1 << bits):
            raise _damaged()
        shared = [1] * len(shape) if axis is None else [1 if i == axis else n for i, n in enumerate(shape)]
        minimum, scale = (_halves(ranges, shared) for _ in range(2))
        restored[name] = Quantised(torch.from_numpy(symbols), minimum, scale, bits, axis).dequantise()
    if not (layout.finished and ranges.finished):
        raise _damaged()
    return restored


def _quantise(tensor: Float[Tensor, "..."], bits: int, coding: TensorCoding) -> Quantised:
    return quantise_best(tensor, bits) if coding.ranges == "best" else quantise(tensor, bits)


def _halves(reader: Reader, shape: Sequence[int]) -> Float16[Tensor, "..."]:
    data = np.frombuffer(reader.take(2 * int(np.prod(shape, dtype=np.int64))), dtype="<f2").astype(np.float16)
    if not np.isfinite(data).all():
        raise _damaged()
    return torch.from_numpy(data).reshape(tuple(shape))


def _entropy(symbols: Int64[ndarray, "..."]) -> float:
    """Bits a symbol of the histogram."""
    counts = np.unique(symbols, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


# -- symbols of several tensors --------------------------------------------------------------------------------------

_PLAIN, _JOINT, _APART = 0, 1, 2


def _groups(sizes: Sequence[int]) -> list[list[int]]:
    """Indices of tensors that share a histogram: every large one has its own, the small ones share."""
    large = [[index] for index, size in enumerate(sizes) if size >= _SMALL]
    small = [index for index, size in enumerate(sizes) if size < _SMALL]
    return [*large, small] if small else large


def _code(streams: Sequence[Int64[ndarray, " _"]], bits: Sequence[int], coder: str) -> bytes:
    if coder == "plain":
        flat = [
            ((stream[:, None] >> np.arange(b - 1, -1, -1)) & 1).astype(np.uint8).ravel()
            for stream, b in zip(streams, bits, strict=True)
        ]
        return bytes([_PLAIN]) + np.packbits(np.concatenate(flat)).tobytes()
    kind: Literal["ans", "range", "huffman"] = (
        "range" if coder == "range" else "huffman" if coder == "huffman" else "ans"
    )
    joint = bytes([_JOINT]) + entropy.encode_symbols(np.concatenate(streams), coder=kind)
    if kind == "huffman":
        return joint
    parts = [
        entropy.encode_symbols(np.concatenate([streams[i] for i in group]), coder=kind)
        for group in _groups([len(stream) for stream in streams])
    ]
    apart = bytes([_APART]) + b"".join(varint(len(part)) + part for part in parts)
    return min(apart, joint, key=len)


def _decode(payload: bytes, sizes: Sequence[int], bits: Sequence[int]) -> list[Int64[ndarray, " _"]]:
    reader = Reader(payload)
    kind = reader.take(1)[0]
    if kind == _PLAIN:
        needed = sum(size * b for size, b in zip(sizes, bits, strict=True))
        data = reader.take((needed + 7) // 8)
        flat = np.unpackbits(np.frombuffer(data, dtype=np.uint8))[:needed]
        ends = np.cumsum([size * b for size, b in zip(sizes, bits, strict=True)])
        out = [
            part.reshape(-1, b).astype(np.int64) @ (1 << np.arange(b - 1, -1, -1, dtype=np.int64))
            for part, b in zip(np.split(flat, ends[:-1]), bits, strict=True)
        ]
    elif kind == _JOINT:
        out = _parted(entropy.decode_symbols(reader.rest(), most=sum(sizes)), sizes)
    elif kind == _APART:
        out = [np.zeros(0, dtype=np.int64)] * len(sizes)
        for group in _groups(sizes):
            inside = [sizes[i] for i in group]
            joined = entropy.decode_symbols(reader.take(reader.varint()), most=sum(inside))
            for index, part in zip(group, _parted(joined, inside), strict=True):
                out[index] = part
    else:
        raise _damaged()
    if not reader.finished:
        raise _damaged()
    return out


def _parted(joined: Int64[ndarray, " n"], sizes: Sequence[int]) -> list[Int64[ndarray, " _"]]:
    if len(joined) != sum(sizes):
        raise InputError(f"the file holds {len(joined)} numbers where {sum(sizes)} are needed: it is damaged")
    return np.split(joined, np.cumsum(sizes)[:-1])


def _damaged() -> InputError:
    return InputError("the file's tensors are malformed: it was not written by encyclo, or is damaged")
