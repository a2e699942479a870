"""Samples of a probabilistic circuit <-> bytes, at -log2 p(x) bits each up to rounding."""

import math
import time
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from encyclo.errors import InputError
from encyclo.tokens.entropy import IntervalDecoder, RangeReader, RangeWriter, encode_intervals, join, split
from encyclo.tokens.prefix_marginals import IntegerCircuit, Intervals, Weights

__all__ = ["GROUP", "Streams", "compare_schedules", "decode_samples", "encode_samples", "interval_streams"]

GROUP = 1024
"""Samples that are worked on at once; bounds memory, changes no bit of a stream of its own."""

Streams = Literal["one", "each"]
"""All samples in one stream (range coding), or one for each (rANS; 21 bits and a length more a sample)."""


def encode_samples(
    circuit: IntegerCircuit, data: UInt8[Tensor, "n d"], *, streams: Streams = "one", group: int = GROUP
) -> bytes:
    """Code samples whose values lie in the circuit's alphabet."""
    parts = data.split(group) if len(data) else ()
    if streams == "each":
        return join([stream for part in parts for stream in interval_streams(circuit.swept(part))])
    writer = RangeWriter()
    for part in parts:
        columns = part.T.long().contiguous()

        def answer(variable: int, weights: Weights, columns: Int64[Tensor, "d n"] = columns) -> Int64[Tensor, " n"]:
            values = columns[variable]
            writer.put(values.cpu().numpy(), weights.rows().cpu().numpy())
            return values

        circuit.sweep(len(part), answer)
    return writer.finish()


def decode_samples(
    circuit: IntegerCircuit, payload: bytes, n: int, *, streams: Streams = "one", group: int = GROUP
) -> UInt8[Tensor, "n d"]:
    """The samples that `encode_samples` coded with an equal circuit, the same `streams` and `group`.

    Raises:
        InputError: a payload that cannot be n samples of this circuit.
    """
    parts = []
    reader = RangeReader(payload) if streams == "one" else None
    pieces = split(payload) if streams == "each" else []
    if streams == "each" and len(pieces) != n:
        raise InputError(f"the file holds {len(pieces)} streams where {n} were announced: it is damaged")
    for start in range(0, n, group):
        size = min(group, n - start)
        if reader is not None:
            parts.append(_from_one(circuit, reader, size))
        else:
            parts.append(_from_each(circuit, pieces[start : start + size]))
    if reader is not None:
        reader.finish()
    empty = torch.zeros(0, len(circuit.tree), dtype=torch.uint8)
    return torch.cat(parts) if parts else empty


def interval_streams(intervals: Intervals) -> list[bytes]:
    """A rANS stream for each sample from its intervals, whichever schedule found them."""
    return encode_intervals(intervals.starts.T.cpu().numpy(), intervals.frequencies.T.cpu().numpy())


def compare_schedules(circuit: IntegerCircuit, rows: UInt8[Tensor, "n d"]) -> dict[str, float]:
    """The three ways to all prefix marginals on the same samples: equal files, units evaluated, seconds."""
    seconds, streams, work = {}, {}, {}
    for name, schedule in (("sweep", circuit.swept), ("structured", circuit.structured), ("naive", circuit.naive)):
        began = time.perf_counter()
        found = schedule(rows)
        streams[name] = interval_streams(found)
        seconds[name], work[name] = time.perf_counter() - began, found.work
    same = [a == b == c for a, b, c in zip(*streams.values(), strict=True)]
    return {
        "same_bytes_by_all_schedules": sum(same) / len(same),
        "units_bound": math.log2(rows.shape[1]) + 1,
        "units_per_circuit": work["structured"].units / circuit.units,
        "sweep_units_per_circuit": work["sweep"].units / circuit.units,
        "naive_over_structured_units": work["naive"].units / work["structured"].units,
        "naive_over_encode_seconds": seconds["naive"] / seconds["sweep"],
        "naive_over_structured_seconds": seconds["naive"] / seconds["structured"],
    }


def _from_one(circuit: IntegerCircuit, reader: RangeReader, n: int) -> UInt8[Tensor, "n d"]:
    out = torch.zeros(n, len(circuit.tree), dtype=torch.uint8)

    def answer(variable: int, weights: Weights) -> Int64[Tensor, " n"]:
        values = torch.from_numpy(reader.take(weights.rows().cpu().numpy()))
        out[:, variable] = values.to(torch.uint8)
        return values.to(circuit.device)

    circuit.sweep(n, answer)
    return out


def _from_each(circuit: IntegerCircuit, payloads: Sequence[bytes]) -> UInt8[Tensor, "n d"]:
    decoder = IntervalDecoder(payloads)
    out = torch.zeros(len(payloads), len(circuit.tree), dtype=torch.uint8)

    def answer(variable: int, weights: Weights) -> Int64[Tensor, " n"]:
        cumulatives = weights.cumulatives().cpu().contiguous()
        slots = torch.from_numpy(decoder.slots())[:, None]
        values = torch.searchsorted(cumulatives, slots, right=True)[:, 0] - 1
        bounds = cumulatives.gather(1, torch.stack([values, values + 1], 1))
        decoder.advance(bounds[:, 0].numpy(), (bounds[:, 1] - bounds[:, 0]).numpy())
        out[:, variable] = values.to(torch.uint8)
        return values.to(circuit.device)

    circuit.sweep(len(payloads), answer)
    decoder.finish()
    return out
