"""Entropy coding in bulk: arrays of symbols <-> bytes at the length that their probabilities ask for.

Four ways, by what is known:

- `encode_symbols`: only the symbols. Their histogram travels along; ANS, range or Huffman coding.
- `encode_table`: one table of probabilities for all symbols, known to both sides.
- `encode_rows`: a distribution for each symbol, known to both sides; `RangeWriter` and `RangeReader` do the same piece
  by piece, first in, first out, for models whose next distribution depends on what was decoded.
- `encode_intervals` and `IntervalDecoder`: the coder's own integers, many streams side by side (one an image, say). The
  encoder needs only the interval of the symbol that occurred, not the whole row.

The first three are `constriction` (Bamler 2022, arXiv 2201.01741), one call for a whole array, with `perfect=False`: at
equal length 250 times the speed of its default. The last is range asymmetric numeral systems (Duda 2013, arXiv
1311.2540, section 3) in numpy.

Probabilities must be equal to the last bit on both sides. What makes them so is the model's affair; from equal floats
all functions here get equal integers on every machine.
"""

import zlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, UInt, UInt8, UInt32, UInt64
from numpy import ndarray

from encyclo.errors import InputError
from encyclo.tokens.container import Reader, varint

__all__ = [
    "BITS",
    "IntervalDecoder",
    "RangeReader",
    "RangeWriter",
    "cumulative_frequencies",
    "decode_rows",
    "decode_symbols",
    "decode_table",
    "encode_intervals",
    "encode_rows",
    "encode_symbols",
    "encode_table",
    "huffman_lengths",
    "join",
    "split",
]

BITS: Final = 24
"""Precision of integer frequencies: probabilities are multiples of 2^-24, and no symbol has less."""
MOST_SYMBOLS: Final = 1 << 28
"""Symbols that one payload may hold unless the caller allows more."""
LONGEST_CODE: Final = 20
"""Bits of the longest Huffman code word."""
MOST_DISTINCT: Final = 1 << 20
"""Distinct values that a stored histogram may hold."""

Coder = Literal["ans", "range"]
_MARKS: Final[dict[str, int]] = {"ans": 1, "range": 2, "huffman": 3, "constant": 4}


# -- integer frequencies ---------------------------------------------------------------------------------------------


def cumulative_frequencies(probabilities: Float[ndarray, "*n k"], *, bits: int = BITS) -> Int64[ndarray, "*n k+1"]:
    """Rows of probabilities as integer cumulatives c_0 = 0 < c_1 < ... < c_k = 2^bits; symbol s has [c_s, c_{s+1}).

    c_s = floor((2^bits - k) * (p_0 + ... + p_{s-1}) / sum(p)) + s: every symbol keeps at least 1, at a cost of less
    than k 2^-bits of the mass. Sums run from left to right and the rest is elementwise, so equal floats give equal
    integers whatever the machine. This one function serves encoder and decoder.

    Args:
        probabilities: rows >= 0, not all zero; they need not sum to 1.

    Raises:
        ValueError: for negative, infinite or all-zero rows, or more symbols than 2^bits.
    """
    k = probabilities.shape[-1]
    if k >= 1 << bits:
        raise ValueError(f"{k} symbols do not fit into {bits} bits")
    sums = np.cumsum(probabilities, axis=-1, dtype=np.float64)
    total = sums[..., -1:]
    if not (np.isfinite(total).all() and (total > 0).all() and (probabilities >= 0).all()):
        raise ValueError("probabilities must be finite, >= 0 and not all zero")
    out = np.zeros((*probabilities.shape[:-1], k + 1), dtype=np.int64)
    # the last quotient is exactly 1, so the row ends at exactly 2^bits
    out[..., 1:] = np.floor(sums / total * float((1 << bits) - k)).astype(np.int64) + np.arange(1, k + 1)
    return out


# -- constriction ------------------------------------------------------------------------------------------------------


def encode_rows(
    symbols: Int[ndarray, " n"] | UInt[ndarray, " n"], probabilities: Float[ndarray, "n k"], *, coder: Coder = "ans"
) -> bytes:
    """Code each symbol with its own row of probabilities, in one call.

    Args:
        symbols: values 0..k-1.
        probabilities: rows >= 0 that need not sum to 1; float32 or float64, the same on both sides.

    Returns:
        Self-describing bytes: coder, number of symbols, payload.
    """
    coded = _check(symbols, probabilities.shape[-1])
    head = bytes([_MARKS[coder]]) + varint(len(coded))
    if len(coded) == 0 or probabilities.shape[-1] == 1:
        return head
    rows = np.ascontiguousarray(probabilities)
    return head + _encode(coded, coder, _family(), rows)


def decode_rows(payload: bytes, probabilities: Float[ndarray, "n k"]) -> Int64[ndarray, " n"]:
    """The symbols that `encode_rows` coded with the same probabilities.

    Raises:
        InputError: a damaged payload, or one of another number of symbols.
    """
    reader = Reader(payload)
    coder, count = _coder(reader), reader.varint()
    if count != len(probabilities):
        raise InputError(f"the payload holds {count} symbols where {len(probabilities)} were expected: it is damaged")
    if count == 0 or probabilities.shape[-1] == 1:
        _ended(reader)
        return np.zeros(count, dtype=np.int64)
    return _decode(reader.rest(), coder, _family(), np.ascontiguousarray(probabilities))


def encode_table(
    symbols: Int[ndarray, " n"] | UInt[ndarray, " n"], probabilities: Float[ndarray, " k"], *, coder: Coder = "ans"
) -> bytes:
    """Code all symbols with one table of probabilities that the decoder knows too (see `encode_rows`)."""
    coded = _check(symbols, len(probabilities))
    head = bytes([_MARKS[coder]]) + varint(len(coded))
    if len(coded) == 0 or len(probabilities) == 1:
        return head
    return head + _encode(coded, coder, _fixed(probabilities))


def decode_table(
    payload: bytes, probabilities: Float[ndarray, " k"], *, most: int = MOST_SYMBOLS
) -> Int64[ndarray, " n"]:
    """The symbols that `encode_table` coded with the same table.

    Raises:
        InputError: a damaged payload, or one that claims more than `most` symbols.
    """
    reader = Reader(payload)
    coder, count = _coder(reader), _count(reader, most)
    if count == 0 or len(probabilities) == 1:
        _ended(reader)
        return np.zeros(count, dtype=np.int64)
    return _decode(reader.rest(), coder, _fixed(probabilities), count)


class RangeWriter:
    """Range coding piece by piece: what was put first is taken first.

    The payload begins with the numbers of symbols and of words (together 2 to 8 bytes). A range decoder cannot know
    where its words should end: without the numbers, one that was cut off may pass for whole.
    """

    def __init__(self) -> None:
        self._coder: Any = _constriction().stream.queue.RangeEncoder()
        self._count = 0

    def put(self, symbols: Int[ndarray, " n"] | UInt[ndarray, " n"], probabilities: Float[ndarray, "n k"]) -> None:
        """Append symbols, each with its own row of probabilities (k >= 2)."""
        coded = _check(symbols, probabilities.shape[-1])
        if len(coded):
            self._coder.encode(coded, _family(), np.ascontiguousarray(probabilities))
            self._count += len(coded)

    def finish(self) -> bytes:
        """All that was put, as bytes."""
        return varint(self._count) + _sealed(self._coder.get_compressed())


class RangeReader:
    """Takes what a `RangeWriter` put, in the same order and pieces.

    Raises:
        InputError: for a payload that is cut off or goes on behind its last word.
    """

    def __init__(self, payload: bytes) -> None:
        reader = Reader(payload)
        self._left = reader.varint()
        self._coder: Any = _constriction().stream.queue.RangeDecoder(_unsealed(reader))

    def take(self, probabilities: Float[ndarray, "n k"]) -> Int64[ndarray, " n"]:
        """The next n symbols, one for each row.

        Raises:
            InputError: where fewer are left, or the payload cannot have come from these probabilities.
        """
        if len(probabilities) > self._left:
            raise InputError(
                f"the payload has {self._left} symbols left where {len(probabilities)} are needed: it is damaged"
            )
        if len(probabilities) == 0:
            return np.zeros(0, dtype=np.int64)
        self._left -= len(probabilities)
        try:
            return _signed(self._coder.decode(_family(), np.ascontiguousarray(probabilities)))
        except (ValueError, AssertionError):
            raise _damaged() from None

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            InputError: where the payload goes on.
        """
        if self._left:
            raise InputError(f"the payload has {self._left} symbols more than were expected: it is damaged")
        if not self._coder.maybe_exhausted():
            raise _damaged()


def _constriction() -> Any:
    try:
        import constriction
    except ImportError:
        raise InputError("entropy coding needs constriction: pip install 'encyclo[codecs]'") from None
    return constriction


def _family() -> Any:
    return _constriction().stream.model.Categorical(perfect=False)


def _fixed(probabilities: Float[ndarray, " k"]) -> Any:
    table = np.ascontiguousarray(probabilities, dtype=np.float64)
    return _constriction().stream.model.Categorical(table, perfect=False)


def _encode(symbols: Any, coder: Coder, *model: Any) -> bytes:
    stream = _constriction().stream
    if coder == "ans":  # last in, first out: pushed from the end
        stack = stream.stack.AnsCoder()
        stack.encode_reverse(symbols, *model)
        return _from_words(stack.get_compressed())
    queue = stream.queue.RangeEncoder()
    queue.encode(symbols, *model)
    return _sealed(queue.get_compressed())


def _decode(payload: bytes, coder: Coder, *model: Any) -> Int64[ndarray, " n"]:
    stream = _constriction().stream
    words = _to_words(payload) if coder == "ans" else _unsealed(Reader(payload))
    try:
        decoder = stream.stack.AnsCoder(words) if coder == "ans" else stream.queue.RangeDecoder(words)
        symbols = decoder.decode(*model)
        done = decoder.is_empty() if coder == "ans" else decoder.maybe_exhausted()
    except (ValueError, AssertionError):
        raise _damaged() from None
    if not done:
        raise _damaged()
    return _signed(symbols)


def _check(symbols: Int[ndarray, " n"] | UInt[ndarray, " n"], k: int) -> Int[ndarray, " n"]:
    if len(symbols) and (int(symbols.min()) < 0 or int(symbols.max()) >= k):
        raise ValueError(f"symbols {symbols.min()}..{symbols.max()} do not lie in an alphabet of {k}")
    return np.ascontiguousarray(symbols, dtype=np.int32)


def _signed(symbols: Any) -> Int64[ndarray, " n"]:
    return np.asarray(symbols, dtype=np.int64)


def _from_words(words: Any) -> bytes:
    return bytes(np.asarray(words, dtype="<u4").tobytes())


def _to_words(payload: bytes) -> UInt32[ndarray, " w"]:
    if len(payload) % 4:
        raise InputError(f"a payload of {len(payload)} bytes is no whole number of words: it is cut off")
    return np.frombuffer(payload, dtype="<u4").astype(np.uint32)


def _sealed(words: Any) -> bytes:
    """Words behind their number."""
    return varint(len(words)) + _from_words(words)


def _unsealed(reader: Reader) -> UInt32[ndarray, " w"]:
    """What `_sealed` made of words, up to the reader's end."""
    words = reader.take(4 * reader.varint())
    _ended(reader)
    return _to_words(words)


def _damaged() -> InputError:
    return InputError("the payload does not fit its model: it is damaged or was written by another model")


def _coder(reader: Reader) -> Coder:
    mark = reader.take(1)[0]
    if mark == _MARKS["ans"]:
        return "ans"
    if mark == _MARKS["range"]:
        return "range"
    raise InputError(f"the payload begins with {mark}, which names no coder: it is damaged")


def _count(reader: Reader, most: int) -> int:
    count = reader.varint()
    if count > most:
        raise InputError(f"the payload claims {count} symbols, at most {most} are allowed here: it is damaged")
    return count


def _ended(reader: Reader) -> None:
    if not reader.finished:
        raise _damaged()


# -- symbols with their own histogram ----------------------------------------------------------------------------------


def encode_symbols(
    values: Int[ndarray, "..."] | UInt[ndarray, "..."], *, coder: Literal["ans", "range", "huffman"] = "ans"
) -> bytes:
    """Code whole numbers with nothing but their own histogram, which travels along.

    Args:
        values: any int64 values, at most 2^20 distinct ones (2^16 with Huffman); the shape is not kept.

    Returns:
        Self-describing bytes.

    Raises:
        ValueError: too many distinct values.
    """
    flat = np.asarray(values, dtype=np.int64).ravel()
    distinct, symbols, counts = np.unique(flat, return_inverse=True, return_counts=True)
    if len(distinct) > (1 << 16 if coder == "huffman" else MOST_DISTINCT):
        raise ValueError(f"{len(distinct)} distinct values are too many for a histogram: quantise more coarsely")
    if len(distinct) < 2:
        kind, column, body = "constant", counts, b""
    elif coder == "huffman":
        lengths = huffman_lengths(counts)
        kind, column, body = coder, lengths, _huffman_encode(symbols.ravel(), lengths)
    else:
        kind, column, body = coder, counts, _encode(symbols.ravel().astype(np.int32), coder, _fixed(counts / len(flat)))
    head = _histogram(distinct, column)
    return bytes([_MARKS[kind]]) + varint(len(flat)) + varint(len(head)) + head + body


def decode_symbols(payload: bytes, *, most: int = MOST_SYMBOLS) -> Int64[ndarray, " n"]:
    """The numbers that `encode_symbols` coded, flat.

    Raises:
        InputError: a damaged payload, or one that claims more than `most` numbers.
    """
    reader = Reader(payload)
    mark = reader.take(1)[0]
    if mark not in _MARKS.values():
        raise InputError(f"the payload begins with {mark}, which names no coder: it is damaged")
    count = _count(reader, most)
    distinct, column = _read_histogram(reader.take(reader.varint()))
    if mark == _MARKS["huffman"]:
        return _signed(distinct[_huffman_decode(reader.rest(), count, column)])
    if int(column.sum()) != count or len(distinct) > max(count, 0) or (count > 0) != (len(distinct) > 0):
        raise _damaged()
    if mark == _MARKS["constant"]:
        if len(distinct) > 1:
            raise _damaged()
        _ended(reader)
        return np.repeat(distinct, count)
    if len(distinct) < 2:
        raise _damaged()
    coder: Coder = "ans" if mark == _MARKS["ans"] else "range"
    return _signed(distinct[_decode(reader.rest(), coder, _fixed(column / count), count)])


def _histogram(distinct: Int64[ndarray, " k"], column: Int64[ndarray, " k"]) -> bytes:
    """Values as differences and a positive number for each, as deflated varints."""
    if len(distinct) == 0:
        return b""
    first = int(distinct[0])
    zigzag = 2 * first if first >= 0 else -2 * first - 1
    steps = np.diff(distinct.astype(np.uint64))
    numbers = [len(distinct), zigzag, *steps.tolist(), *column.tolist()]
    return zlib.compress(b"".join(map(varint, numbers)), 9, wbits=-15)


def _read_histogram(head: bytes) -> tuple[Int64[ndarray, " k"], Int64[ndarray, " k"]]:
    if not head:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    try:
        inflater = zlib.decompressobj(wbits=-15)
        reader = Reader(inflater.decompress(head, 20 * MOST_DISTINCT))
    except zlib.error:
        raise _damaged() from None
    k = reader.varint()
    if k > MOST_DISTINCT or not inflater.eof:
        raise _damaged()
    zigzag = reader.varint()
    first = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
    steps = [reader.varint() for _ in range(max(k - 1, 0))]
    column = [reader.varint() for _ in range(k)]
    if min(steps + column, default=0) < 1 or max(first + sum(steps), sum(column)) >= 1 << 63:
        raise _damaged()
    _ended(reader)
    values = np.array(list(accumulate(steps, initial=first))[:k], dtype=np.int64)
    return values, np.array(column, dtype=np.int64)


# -- Huffman -----------------------------------------------------------------------------------------------------------


def huffman_lengths(counts: Int64[ndarray, " k"], *, longest: int = LONGEST_CODE) -> Int64[ndarray, " k"]:
    """Lengths of the code words of an optimal prefix code none of whose words exceeds `longest` bits.

    Package-merge (Larmore & Hirschberg 1990): `longest` rounds of merging sorted weights, each one array operation.

    Args:
        counts: how often each of k >= 2 symbols occurs, >= 1.

    Raises:
        ValueError: more symbols than 2^longest.
    """
    k = len(counts)
    if k > 1 << longest:
        raise ValueError(f"{k} symbols need code words of more than {longest} bits")
    order = np.argsort(counts, kind="stable")
    leaves = counts[order]
    rounds: list[Int64[ndarray, " m"]] = []  # of each round's merged list: how many leaves stand before an item
    merged = leaves
    for _ in range(longest):
        packages = merged[: len(merged) // 2 * 2].reshape(-1, 2).sum(1) if rounds else np.zeros(0, dtype=np.int64)
        both = np.concatenate([leaves, packages])
        rank = np.argsort(both, kind="stable")
        merged = both[rank]
        rounds.append(np.concatenate([[0], np.cumsum(rank < k)]))
    lengths = np.zeros(k, dtype=np.int64)
    taken = 2 * k - 2
    for before in reversed(rounds):
        chosen = int(before[taken])
        lengths[:chosen] += 1
        taken = 2 * (taken - chosen)
    out = np.empty(k, dtype=np.int64)
    out[order] = lengths
    return out


class _Canonical:
    """The canonical code of given lengths: words of equal length are consecutive numbers, in order of symbols."""

    def __init__(self, lengths: Int64[ndarray, " k"]) -> None:
        if len(lengths) < 2 or int(lengths.min()) < 1 or int(lengths.max()) > LONGEST_CODE:
            raise _damaged()
        sizes = np.bincount(lengths, minlength=LONGEST_CODE + 1)
        if int((sizes << (LONGEST_CODE - np.arange(LONGEST_CODE + 1))).sum()) != 1 << LONGEST_CODE:
            raise _damaged()  # Kraft: the words must fill the code space exactly
        self.symbols = np.argsort(lengths, kind="stable")
        self.lengths = lengths
        # all words as numbers of LONGEST_CODE bits, in canonical order: each begins where the one before ends
        starts = np.concatenate([[0], np.cumsum(1 << (LONGEST_CODE - lengths[self.symbols]))])
        self.starts = starts[:-1]
        self.words = np.empty(len(lengths), dtype=np.int64)
        self.words[self.symbols] = self.starts


_BLOCK: Final = 4096
"""Symbols between two stored positions, from which a payload is decoded side by side."""


def _huffman_encode(symbols: Int64[ndarray, " n"], lengths: Int64[ndarray, " k"]) -> bytes:
    code = _Canonical(lengths)
    bits: list[UInt8[ndarray, " b"]] = []
    sizes: list[int] = []
    for start in range(0, len(symbols), _BLOCK):
        block = symbols[start : start + _BLOCK]
        size = lengths[block]
        ends = np.cumsum(size)
        place = np.arange(int(ends[-1])) - np.repeat(ends - size, size)  # bit's place in its word, first is highest
        bits.append(((np.repeat(code.words[block], size) >> (LONGEST_CODE - 1 - place)) & 1).astype(np.uint8))
        sizes.append(int(ends[-1]))
    return b"".join(map(varint, sizes)) + np.packbits(np.concatenate(bits)).tobytes()


def _huffman_decode(payload: bytes, count: int, lengths: Int64[ndarray, " k"]) -> Int64[ndarray, " n"]:
    code = _Canonical(lengths)
    blocks = -(-count // _BLOCK)
    reader = Reader(payload)
    if blocks > len(payload):
        raise _damaged()
    sizes = np.array([reader.varint() for _ in range(blocks)], dtype=np.int64)
    body = reader.rest()
    if int(sizes.max(initial=0)) > _BLOCK * LONGEST_CODE or -(-int(sizes.sum()) // 8) != len(body):
        raise _damaged()
    data = np.frombuffer(body + bytes(4), dtype=np.uint8).astype(np.int64)
    at = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    stop = np.cumsum(sizes)
    out = np.zeros((blocks, _BLOCK), dtype=np.int64)
    last = count - (blocks - 1) * _BLOCK
    for step in range(min(count, _BLOCK)):
        if step == last and blocks > 1:  # the short last block is done
            at, stop, final = at[:-1], stop[:-1], (at[-1:], stop[-1:])
        byte = np.minimum(at >> 3, len(data) - 4)
        window = (data[byte] << 24) | (data[byte + 1] << 16) | (data[byte + 2] << 8) | data[byte + 3]
        window = (window >> (32 - LONGEST_CODE - (at & 7))) & ((1 << LONGEST_CODE) - 1)
        found = code.symbols[np.searchsorted(code.starts, window, side="right") - 1]
        out[: len(at), step] = found
        at = at + lengths[found]
    if last < _BLOCK and blocks > 1:
        at, stop = np.concatenate([at, final[0]]), np.concatenate([stop, final[1]])
    if (at != stop).any():
        raise _damaged()
    return out.ravel()[:count]


# -- intervals: many streams side by side ------------------------------------------------------------------------------


def encode_intervals(
    starts: Int64[ndarray, "steps streams"], frequencies: Int64[ndarray, "steps streams"], *, bits: int = BITS
) -> list[bytes]:
    """Code symbols given as intervals [start, start + frequency) of 2^bits; each column is a stream of its own.

    rANS with states below 2^64 and words of 32 bits. Pushing turns state x into
    (x // f) 2^bits + x mod f + start; while that would overflow, a word leaves first. The last step is pushed first, so
    that decoding runs forward. A stream costs about 21 bits beside its content.

    Args:
        starts: >= 0.
        frequencies: >= 1, with start + frequency <= 2^bits.

    Raises:
        ValueError: for an interval outside these bounds.
    """
    steps, streams = starts.shape
    ends = starts + frequencies
    if starts.size and (int(starts.min()) < 0 or int(frequencies.min()) < 1 or int(ends.max()) > 1 << bits):
        raise ValueError(f"intervals must be non-empty and lie in 0..2^{bits}")
    low, width = starts.astype(np.uint64), frequencies.astype(np.uint64)
    words = np.zeros((steps, streams), dtype=np.uint32)
    written = np.zeros((steps, streams), dtype=np.bool_)
    state = np.zeros(streams, dtype=np.uint64)
    shift, half, up = np.uint64(64 - bits), np.uint64(32), np.uint64(bits)
    for step in range(steps - 1, -1, -1):
        f = width[step]
        full = (state >> shift) >= f
        words[step] = state  # the low 32 bits; kept only where a word leaves
        written[step] = full
        state >>= np.where(full, half, np.uint64(0))
        quotient = state // f
        state -= quotient * f
        state += (quotient << up) + low[step]
    return _streams(state, words, written)


def _streams(
    state: UInt64[ndarray, " s"], words: UInt32[ndarray, "steps s"], written: Bool[ndarray, "steps s"]
) -> list[bytes]:
    """Final state (without its leading zero bytes), then the words in the order in which decoding wants them."""
    ordered = np.ascontiguousarray(words.T)[np.ascontiguousarray(written.T)].astype("<u4").tobytes()
    ends = 4 * np.cumsum(written.sum(0))
    heads = [int(x).to_bytes((int(x).bit_length() + 7) // 8, "little") for x in state]
    return [
        head + ordered[start:end]
        for head, start, end in zip(heads, [0, *ends[:-1].tolist()], ends.tolist(), strict=True)
    ]


class IntervalDecoder:
    """Decodes streams of `encode_intervals` side by side, one symbol of each at a time.

    At each step `slots()` tells a number in 0..2^bits-1 for each stream; the caller finds the interval in which it lies
    and hands it to `advance`.

    Raises:
        InputError: for payloads of impossible length.
    """

    def __init__(self, payloads: Sequence[bytes], *, bits: int = BITS) -> None:
        heads = [len(p) if len(p) <= 8 else 5 + (len(p) - 5) % 4 for p in payloads]
        self._state = np.array(
            [int.from_bytes(p[:h], "little") for p, h in zip(payloads, heads, strict=True)], dtype=np.uint64
        )
        sizes = np.array([(len(p) - h) // 4 for p, h in zip(payloads, heads, strict=True)], dtype=np.int64)
        joined = b"".join(p[h:] for p, h in zip(payloads, heads, strict=True))
        self._words = np.frombuffer(joined + bytes(4), dtype="<u4").astype(np.uint64)
        self._stop = np.cumsum(sizes)
        self._at = self._stop - sizes
        self._up, self._mask = np.uint64(bits), np.uint64((1 << bits) - 1)

    def slots(self) -> Int64[ndarray, " streams"]:
        """Where in 0..2^bits-1 the next symbol of each stream lies."""
        return (self._state & self._mask).astype(np.int64)

    def advance(self, starts: Int64[ndarray, " streams"], frequencies: Int64[ndarray, " streams"]) -> None:
        """Take the symbols whose intervals are given off the streams."""
        slot = self._state & self._mask
        self._state = frequencies.astype(np.uint64) * (self._state >> self._up) + slot - starts.astype(np.uint64)
        more = (self._state < np.uint64(1 << 32)) & (self._at < self._stop)
        if more.any():
            word = self._words[self._at]
            self._state = np.where(more, (self._state << np.uint64(32)) | word, self._state)
            self._at += more

    def finish(self) -> None:
        """Check that every stream ended where its symbols do.

        Raises:
            InputError: where one did not.
        """
        if (self._state != 0).any() or (self._at != self._stop).any():
            raise _damaged()


def join(payloads: Sequence[bytes]) -> bytes:
    """Several payloads as one: their number, their lengths, their contents."""
    return b"".join([varint(len(payloads)), *(varint(len(p)) for p in payloads), *payloads])


def split(payload: bytes) -> list[bytes]:
    """What `join` joined.

    Raises:
        InputError: for a damaged payload.
    """
    reader = Reader(payload)
    count = reader.varint()
    if count > len(payload):
        raise _damaged()
    lengths = [reader.varint() for _ in range(count)]
    parts = [reader.take(length) for length in lengths]
    _ended(reader)
    return parts
