"""The file layout: round trips, and one clear line for every way a file can be wrong."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encyclo.errors import InputError
from encyclo.tokens.container import DIGEST, MAGIC, Reader, pack, system_of, unpack, varint

BLOB = pack("pc-compression", {"shape": [28, 28], "model": "ab" * 8}, {"tree": b"\x00\x01", "payload": b"x" * 90})


def sealed(body: bytes) -> bytes:
    """A forged file whose checksum is right."""
    return body + hashlib.blake2b(body, digest_size=DIGEST).digest()


@given(
    st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20) | st.lists(st.booleans()), max_size=5),
    st.dictionaries(st.text(max_size=8), st.binary(max_size=300), max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_round_trip(header, sections):
    opened = unpack(pack("hnerv", header, sections), system="hnerv")
    assert opened.header == header
    assert opened.sections == sections
    assert list(opened.sections) == list(sections)
    assert opened.system == "hnerv"


def test_overhead_is_small():
    assert len(pack("hnerv", {}, {"payload": b""})) <= 40


def test_system_of_prefix():
    assert system_of(BLOB[:70]) == "pc-compression"
    assert system_of(BLOB[:10]) is None
    assert system_of(b"") is None
    assert system_of(b"RIFF....") is None
    assert system_of(MAGIC + bytes([1, 3]) + b"\xff\xff\xff") is None


@pytest.mark.parametrize("length", range(0, len(BLOB)))
def test_every_truncation_is_refused(length):
    with pytest.raises(InputError, match=r"empty|cut off|altered"):
        unpack(BLOB[:length])


def test_every_flipped_bit_is_refused():
    for position in range(len(BLOB) * 8):
        changed = bytearray(BLOB)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(InputError):
            unpack(bytes(changed))


def test_foreign_newer_and_other():
    with pytest.raises(InputError, match="no file that"):
        unpack(b"\x89PNG\r\n\x1a\n" + b"0" * 50)
    with pytest.raises(InputError, match="newer"):
        unpack(sealed(MAGIC + bytes([2]) + BLOB[5:-DIGEST]))
    with pytest.raises(InputError, match="written by system 'pc-compression', not by 'hnerv'"):
        unpack(BLOB, system="hnerv")


@pytest.mark.parametrize(
    "body",
    [
        varint(1 << 40) + varint(4) + b"abcd",  # a header of a terabyte
        varint(0) + varint(1 << 40),
        varint(0) + varint(2) + b"[]" + varint(0),  # no object
        varint(0) + varint(2) + b"{}" + varint(1 << 30),  # a billion sections
        varint(0) + varint(2) + b"{}" + varint(1) + varint(1) + b"a" + varint(1 << 50),  # a section of a petabyte
        varint(0) + varint(2) + b"{}" + varint(0) + b"left over",
        varint(0) + varint(2) + b"{}" + varint(2) + (varint(1) + b"a" + varint(0)) * 2,  # a name twice
        varint(99) + varint(3) + b"\xff\xff\xff" + varint(0),  # no deflate stream
        b"\xff" * 30,
    ],
)
def test_forged_sizes_are_refused_before_allocation(body):
    with pytest.raises(InputError):
        unpack(sealed(MAGIC + bytes([1, 5]) + b"hnerv" + body))


def test_errors_of_the_caller():
    with pytest.raises(ValueError, match="no slug"):
        pack("No Slug", {}, {})
    with pytest.raises(ValueError, match="sections"):
        pack("hnerv", {}, {str(i): b"" for i in range(5000)})
    with pytest.raises(ValueError, match="header"):
        pack("hnerv", {"x": "\u1234" * (1 << 24)}, {})
    with pytest.raises(ValueError, match="negative"):
        varint(-1)


@given(st.integers(0, 2**63 - 1))
def test_varint(number):
    reader = Reader(varint(number) + b"z")
    assert reader.varint() == number
    assert reader.rest() == b"z"
    assert reader.finished
