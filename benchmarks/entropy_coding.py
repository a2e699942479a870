"""Entropy coding: symbols a second and length over entropy, ours beside constriction called directly.

python benchmarks/entropy_coding.py --out entropy_coding.json
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import constriction
import numpy as np

from encyclo.experiment import environment
from encyclo.metrics.cost import interleaved
from encyclo.tokens.entropy import (
    BITS,
    IntervalDecoder,
    cumulative_frequencies,
    decode_rows,
    decode_symbols,
    encode_intervals,
    encode_rows,
    encode_symbols,
)

STREAMS = 1000


def run(n: int, k: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.full(k, 0.1), size=n)
    cumulative = cumulative_frequencies(rows)
    symbols = (cumulative[:, 1:] <= rng.integers(0, 1 << BITS, n)[:, None]).sum(1)
    pair = np.take_along_axis(cumulative, symbols[:, None] + np.array([0, 1]), 1)
    starts, widths = pair[:, 0].reshape(-1, STREAMS), (pair[:, 1] - pair[:, 0]).reshape(-1, STREAMS)
    bits = float(-np.log2(widths / 2**BITS).sum())
    words = symbols.astype(np.int32)
    family = constriction.stream.model.Categorical(perfect=False)

    def direct() -> Any:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(words, family, rows)
        return coder.get_compressed()

    def intervals(streams: list[bytes]) -> None:
        decoder = IntervalDecoder(streams)
        for start, width in zip(starts, widths, strict=True):
            decoder.slots()
            decoder.advance(start, width)
        decoder.finish()

    streams, ans, ranged, bare = (
        encode_intervals(starts, widths),
        encode_rows(symbols, rows),
        encode_rows(symbols, rows, coder="range"),
        direct(),
    )
    plain = {coder: encode_symbols(symbols, coder=coder) for coder in ("ans", "range", "huffman")}
    arms: dict[str, Callable[[], Any]] = {
        "constriction, ANS rows, encode": direct,
        "constriction, ANS rows, decode": lambda: constriction.stream.stack.AnsCoder(bare).decode(family, rows),
        "encode_rows, ANS": lambda: encode_rows(symbols, rows),
        "decode_rows, ANS": lambda: decode_rows(ans, rows),
        "encode_rows, range": lambda: encode_rows(symbols, rows, coder="range"),
        "decode_rows, range": lambda: decode_rows(ranged, rows),
        f"encode_intervals, {STREAMS} streams": lambda: encode_intervals(starts, widths),
        f"IntervalDecoder, {STREAMS} streams, symbols known": lambda: intervals(streams),
        "cumulative_frequencies": lambda: cumulative_frequencies(rows),
    }
    for coder in plain:
        arms[f"encode_symbols, {coder}"] = lambda c=coder: encode_symbols(symbols, coder=c)  # type: ignore[misc]
        arms[f"decode_symbols, {coder}"] = lambda c=coder: decode_symbols(plain[c])  # type: ignore[misc]
    seconds = interleaved(arms, rounds=rounds)
    intervals(streams)
    rates = {name: n / 1e6 / value for name, value in seconds.items()}
    direct_encode = rates["constriction, ANS rows, encode"]
    return {
        "symbols": n,
        "alphabet": k,
        "million_symbols_per_second": rates,
        "bits_over_entropy": {
            "constriction, ANS rows": 32 * len(bare) / bits - 1,
            "encode_rows, ANS": 8 * len(ans) / bits - 1,
            "encode_rows, range": 8 * len(ranged) / bits - 1,
            f"encode_intervals, {STREAMS} streams": 8 * sum(map(len, streams)) / bits - 1,
        },
        "bits_more_a_stream": (8 * sum(map(len, streams)) - bits) / STREAMS,
        "ratios": {
            "encode_rows / constriction (target 0.8)": rates["encode_rows, ANS"] / direct_encode,
            "decode_rows / constriction (target 0.8)": rates["decode_rows, ANS"]
            / rates["constriction, ANS rows, decode"],
            "encode_intervals / constriction's rows (target 2)": rates[f"encode_intervals, {STREAMS} streams"]
            / direct_encode,
        },
        "equal": {
            "rows": bool(np.array_equal(decode_rows(ans, rows), symbols)),
            "symbols": all(np.array_equal(decode_symbols(p), symbols) for p in plain.values()),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--symbols", type=int, default=40_000)
    parser.add_argument("--alphabet", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = {**run(given.symbols, given.alphabet, given.rounds), "environment": environment()}
    text = json.dumps(found, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
