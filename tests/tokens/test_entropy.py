"""Entropy coding: exact round trips, the length that theory asks for, integers fixed by hand, and damaged payloads."""

import contextlib
import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encyclo.errors import InputError
from encyclo.tokens.entropy import (
    BITS,
    IntervalDecoder,
    RangeReader,
    RangeWriter,
    cumulative_frequencies,
    decode_rows,
    decode_symbols,
    decode_table,
    encode_intervals,
    encode_rows,
    encode_symbols,
    encode_table,
    huffman_lengths,
    join,
    split,
)

CODERS = ("ans", "range")


def draw(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
    """Rows of probabilities, symbols drawn from them, and their information in bits."""
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(k, 0.2), size=n)
    cumulative = cumulative_frequencies(rows)
    symbols = (cumulative[:, 1:] <= rng.integers(0, 1 << BITS, n)[:, None]).sum(1)
    chosen = np.take_along_axis(cumulative, symbols[:, None] + np.array([0, 1]), 1)
    return rows, symbols, float(-np.log2((chosen[:, 1] - chosen[:, 0]) / 2**BITS).sum())


# -- integer frequencies


def test_cumulative_frequencies_by_hand():
    got = cumulative_frequencies(np.array([[0.5, 0.0, 0.25, 0.25], [0.0, 0.0, 0.0, 3.0]]), bits=4)
    # 12 shares are given by probability, one to each symbol
    assert got.tolist() == [[0, 7, 8, 12, 16], [0, 1, 2, 3, 16]]


@given(st.integers(1, 300), st.integers(0, 1000), st.sampled_from([9, 16, 24]))
@settings(max_examples=60, deadline=None)
def test_cumulative_frequencies_are_a_code(k, seed, bits):
    rows = np.random.default_rng(seed).gamma(0.05, size=(5, k)) + 1e-300
    got = cumulative_frequencies(rows, bits=bits)
    assert (got[:, 0] == 0).all()
    assert (got[:, -1] == 1 << bits).all()
    assert (np.diff(got) >= 1).all()
    assert np.abs(np.diff(got) / (1 << bits) - rows / rows.sum(1, keepdims=True)).max() <= (k + 2) / (1 << bits)


def test_cumulative_frequencies_do_not_depend_on_the_batch():
    rows, _, _ = draw(64, 256)
    whole = cumulative_frequencies(rows)
    assert np.array_equal(whole, np.concatenate([cumulative_frequencies(row[None]) for row in rows]))
    assert np.array_equal(whole, cumulative_frequencies(np.asfortranarray(rows)))


@pytest.mark.parametrize("row", [[0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_cumulative_frequencies_refuse(row):
    with pytest.raises(ValueError, match="finite"):
        cumulative_frequencies(np.array([row]))
    with pytest.raises(ValueError, match="do not fit"):
        cumulative_frequencies(np.ones((1, 16)), bits=4)


# -- rows and tables


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(("n", "k"), [(0, 5), (1, 2), (7, 1), (3000, 200)])
def test_rows(coder, n, k):
    rows, symbols, bits = draw(n, k)
    payload = encode_rows(symbols, rows, coder=coder)
    assert np.array_equal(decode_rows(payload, rows), symbols)
    assert 8 * len(payload) <= 1.0005 * bits + 100


@pytest.mark.parametrize("coder", CODERS)
def test_rows_of_float32_and_of_any_scale(coder):
    rows, symbols, _ = draw(500, 30)
    for other in (rows.astype(np.float32), rows * 1e6, rows[:, ::-1][:, ::-1]):
        assert np.array_equal(decode_rows(encode_rows(symbols.astype(np.uint8), other, coder=coder), other), symbols)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("k", [1, 2, 256])
def test_table(coder, k):
    rng = np.random.default_rng(1)
    table = rng.dirichlet(np.ones(k))
    symbols = rng.choice(k, size=5000, p=table)
    payload = encode_table(symbols, table, coder=coder)
    assert np.array_equal(decode_table(payload, table), symbols)
    assert 8 * len(payload) <= 1.0005 * -np.log2(table[symbols]).sum() + 100
    assert decode_table(encode_table(symbols[:0], table, coder=coder), table).shape == (0,)


def test_range_coding_piece_by_piece():
    rows, symbols, bits = draw(2000, 256)
    writer = RangeWriter()
    pieces = [slice(0, 0), slice(0, 700), slice(700, 701), slice(701, 2000)]
    for piece in pieces:
        writer.put(symbols[piece], rows[piece])
    payload = writer.finish()
    reader = RangeReader(payload)
    assert np.array_equal(np.concatenate([reader.take(rows[piece]) for piece in pieces]), symbols)
    reader.finish()
    assert 8 * len(payload) <= 1.0005 * bits + 100


def test_range_reader_tells_what_is_left():
    rows, symbols, _ = draw(2000, 256)
    writer = RangeWriter()
    writer.put(symbols, rows)
    reader = RangeReader(writer.finish())
    reader.take(rows[:100])
    with pytest.raises(InputError, match="damaged"):
        reader.finish()
    with pytest.raises(InputError, match="cut off"):
        RangeReader(b"\x01\x0212345")


@pytest.mark.parametrize("seed", range(40))
def test_range_reader_refuses_a_piece_more_or_less(seed):
    """By stored numbers, not by luck: a range decoder alone often takes a stream without its last words for whole."""
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 400)), int(rng.integers(2, 40))
    rows = rng.dirichlet(np.full(k, 0.3), size=n)
    symbols = np.array([rng.choice(k, p=row) for row in rows])
    writer = RangeWriter()
    writer.put(symbols, rows)
    payload = writer.finish()
    cut = [payload[:-size] for size in (1, 4, 8, len(payload) - 3, len(payload)) if size <= len(payload)]
    for bad in (*cut, payload + b"\0", payload + bytes(4), payload + bytes(8), payload + payload):
        with pytest.raises(InputError):
            RangeReader(bad)
    reader = RangeReader(payload)
    assert np.array_equal(reader.take(rows), symbols)
    with pytest.raises(InputError, match="0 symbols left"):
        reader.take(rows[:1])
    few = RangeReader(payload)
    few.take(rows[:-1])
    with pytest.raises(InputError, match="1 symbols more"):
        few.finish()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [4, 8])
def test_range_payloads_cut_or_lengthened(seed, size):
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(7, 0.3), size=100)
    symbols = np.array([rng.choice(7, p=row) for row in rows])
    for encoded, decode in (
        (encode_rows(symbols, rows, coder="range"), lambda bad, rows=rows: decode_rows(bad, rows)),
        (encode_table(symbols, rows[0], coder="range"), lambda bad, table=rows[0]: decode_table(bad, table)),
        (encode_symbols(symbols, coder="range"), decode_symbols),
    ):
        for bad in (encoded[:-size], encoded + bytes(size)):
            with pytest.raises(InputError):
                decode(bad)


@pytest.mark.parametrize("coder", CODERS)
def test_rows_damaged(coder):
    rows, symbols, _ = draw(300, 40)
    payload = encode_rows(symbols, rows, coder=coder)
    for bad in (b"", b"\x09" + payload[1:], payload[:-1], payload[:-40], payload + bytes(8), payload[:1]):
        with pytest.raises(InputError):
            decode_rows(bad, rows)
    with pytest.raises(InputError, match="300 symbols where 299"):
        decode_rows(payload, rows[:-1])
    with pytest.raises(ValueError, match="alphabet"):
        encode_rows(symbols + 40, rows, coder=coder)


# -- own histogram


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), max_size=80),
    st.sampled_from(["ans", "range", "huffman"]),
)
@settings(max_examples=150, deadline=None)
def test_symbols(values, coder):
    payload = encode_symbols(np.array(values, dtype=np.int64), coder=coder)
    assert decode_symbols(payload).tolist() == values


@pytest.mark.parametrize("coder", ["ans", "range", "huffman"])
@pytest.mark.parametrize("n", [4095, 4096, 4097, 30_000])
def test_symbols_in_bulk(coder, n):
    values = np.random.default_rng(0).geometric(0.07, n) * 3 - 70
    counts = np.unique(values, return_counts=True)[1]
    entropy = -(counts * np.log2(counts / n)).sum()
    payload = encode_symbols(values.astype(np.int16), coder=coder)
    assert np.array_equal(decode_symbols(payload), values)
    assert 8 * len(payload) <= (1.02 if coder == "huffman" else 1.001) * entropy + 8 * 300


def test_symbols_damaged():
    values = np.random.default_rng(0).integers(0, 40, 6000)
    for coder in ("ans", "range", "huffman"):
        payload = encode_symbols(values, coder=coder)
        for bad in (b"", payload[:5], payload[:-3], payload[:-40], payload + bytes(8), b"\x00" + payload[1:]):
            with pytest.raises(InputError):
                decode_symbols(bad)
        with pytest.raises(InputError, match="at most 100"):
            decode_symbols(payload, most=100)
        rng = np.random.default_rng(1)
        for _ in range(60):  # an altered payload may decode to other numbers (the container's checksum is for that)
            changed = bytearray(payload)
            changed[rng.integers(len(payload))] ^= 1 << rng.integers(8)
            with contextlib.suppress(InputError):
                assert decode_symbols(bytes(changed)).shape == (6000,)


def test_constant_symbols_cost_nothing_and_are_bounded():
    payload = encode_symbols(np.full(1_000_000, -5))
    assert len(payload) < 20
    assert np.array_equal(decode_symbols(payload), np.full(1_000_000, -5))
    with pytest.raises(InputError, match="at most"):
        decode_symbols(payload, most=999_999)


def test_too_many_distinct_values():
    with pytest.raises(ValueError, match="quantise"):
        encode_symbols(np.arange((1 << 16) + 1), coder="huffman")


# -- Huffman


def heap_cost(counts: list[int]) -> int:
    """Bits of an unlimited optimal prefix code, by the textbook's heap."""
    heap, cost = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        cost += both
        heapq.heappush(heap, both)
    return cost


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=200))
@settings(max_examples=100, deadline=None)
def test_huffman_is_optimal(counts):
    lengths = huffman_lengths(np.array(counts))
    assert int((lengths * np.array(counts)).sum()) == heap_cost(counts)
    assert sum(2.0 ** -int(x) for x in lengths) == 1.0


def test_huffman_lengths_are_limited():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman_lengths(np.array(fibonacci), longest=10)
    assert int(lengths.max()) == 10
    assert sum(2.0 ** -int(x) for x in lengths) == 1.0
    with pytest.raises(ValueError, match="more than 3 bits"):
        huffman_lengths(np.ones(9, dtype=np.int64), longest=3)


# -- intervals


@pytest.mark.parametrize(("steps", "streams", "k"), [(300, 7, 256), (1, 3, 2), (40, 1, 300), (0, 2, 2), (50, 4, 1)])
def test_intervals(steps, streams, k):
    rows, symbols, bits = draw(steps * streams, k)
    cumulative = cumulative_frequencies(rows).reshape(steps, streams, k + 1)
    symbols = symbols.reshape(steps, streams)
    pair = np.take_along_axis(cumulative, symbols[..., None] + np.array([0, 1]), 2)
    payloads = encode_intervals(pair[..., 0], pair[..., 1] - pair[..., 0])
    assert sum(map(len, payloads)) * 8 <= bits + 40 * streams
    decoder = IntervalDecoder(split(join(payloads)))
    for step in range(steps):
        found = (cumulative[step, :, 1:] <= decoder.slots()[:, None]).sum(1)
        assert np.array_equal(found, symbols[step])
        pair = np.take_along_axis(cumulative[step], found[:, None] + np.array([0, 1]), 1)
        decoder.advance(pair[:, 0], pair[:, 1] - pair[:, 0])
    decoder.finish()


def test_a_stream_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 1 << 23, (60, 5))
    widths = rng.integers(1, 1 << 22, (60, 5))
    together = encode_intervals(starts, widths)
    assert together == [encode_intervals(starts[:, i : i + 1], widths[:, i : i + 1])[0] for i in range(5)]


def test_interval_arithmetic_by_hand():
    # state 0, interval [3, 5) of 2^4: 0 // 2 * 16 + 0 % 2 + 3 = 3; interval [0, 8): 3 // 8 * 16 + 3 % 8 + 0 = 3;
    # interval [8, 16): 3 + 8 = 11
    starts, widths = np.array([[8], [0], [3]]), np.array([[8], [8], [2]])
    assert encode_intervals(starts, widths, bits=4) == [bytes([11])]


def test_intervals_damaged():
    rng = np.random.default_rng(0)
    starts, widths = rng.integers(0, 1 << 23, (60, 2)), rng.integers(1, 1 << 12, (60, 2))
    payloads = encode_intervals(starts, widths)

    def run(parts):
        decoder = IntervalDecoder(parts)
        for start, width in zip(starts, widths, strict=True):
            decoder.advance(start, width)
        decoder.finish()

    run(payloads)
    for bad in (payloads[0][:-4], payloads[0] + bytes(4), bytes([payloads[0][0] ^ 1]) + payloads[0][1:], b""):
        with pytest.raises(InputError):
            run([bad, payloads[1]])
    for start, width in ((-1, 5), (0, 0), (1 << 24, 1)):
        with pytest.raises(ValueError, match="intervals"):
            encode_intervals(np.array([[start]]), np.array([[width]]))


@given(st.lists(st.binary(max_size=200), max_size=20))
@settings(max_examples=40, deadline=None)
def test_join(parts):
    assert split(join(parts)) == parts
    with pytest.raises(InputError):
        split(join([*parts, b"x"])[:-1])
