"""One file layout for every codec: who wrote it, a small header, named sections, and a checksum over all of it."""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from encyclo.errors import InputError

__all__ = ["Container", "pack", "system_of", "unpack"]

MAGIC = b"\x89ENC"
"""First bytes of a file; the high bit and the following version byte tell it from text."""
VERSION = 1
DIGEST = 8
"""Bytes of the checksum (BLAKE2b): a damaged file passes with probability 2^-64."""
LONGEST_HEADER = 1 << 24
"""Bytes of header JSON, unpacked, that a file may ask for."""
MOST_SECTIONS = 4096
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class Container:
    """What a file holds."""

    system: str
    """Slug of the system that wrote it."""
    header: dict[str, Any]
    """What the system's decoder needs to know, as plain JSON values."""
    sections: dict[str, bytes]
    """Payloads by name, in the order in which they were packed."""


def pack(system: str, header: Mapping[str, Any], sections: Mapping[str, bytes]) -> bytes:
    """A self-describing file.

    Layout (all lengths as LEB128 varints): magic, version byte, slug, header (JSON, deflated where that is shorter),
    number of sections, name and length of each, their contents, checksum over everything before it. The overhead
    is about 30 bytes beside the header.

    Args:
        system: slug of the writing system.
        header: plain JSON values; keep payloads out of it.
        sections: contents by name.

    Raises:
        ValueError: for a malformed slug, too many sections or a header that is no JSON (errors of the caller).
    """
    if not _SLUG.fullmatch(system):
        raise ValueError(f"{system!r} is no slug of a system")
    if len(sections) > MOST_SECTIONS:
        raise ValueError(f"{len(sections)} sections, at most {MOST_SECTIONS} fit")
    text = json.dumps(dict(header), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    if len(text) > LONGEST_HEADER:
        raise ValueError(f"a header of {len(text)} bytes; large data belong into a section")
    deflated = zlib.compress(text, 9, wbits=-15)
    short = deflated if len(deflated) < len(text) else text
    slug = system.encode()
    head = [
        MAGIC,
        bytes([VERSION, len(slug)]),
        slug,
        varint(len(text) if short is deflated else 0),
        varint(len(short)),
        short,
        varint(len(sections)),
    ]
    for name, content in sections.items():
        label = name.encode()
        head += [varint(len(label)), label, varint(len(content))]
    body = b"".join([*head, *(bytes(content) for content in sections.values())])
    return body + hashlib.blake2b(body, digest_size=DIGEST).digest()


def unpack(blob: bytes, *, system: str | None = None) -> Container:
    """Read what `pack` wrote, whole or not at all.

    Args:
        blob: the file's bytes.
        system: refuse a file that another system wrote.

    Raises:
        InputError: no such file, one by a newer version or another system, or a truncated or altered one.
    """
    if not blob:
        raise InputError("the file is empty (0 bytes): give one that `encyclo compress` wrote")
    if blob[: len(MAGIC)] != MAGIC[: len(blob)]:
        raise InputError("this is no file that `encyclo compress` wrote (it does not begin with its mark)")
    if len(blob) < len(MAGIC) + 2:
        raise InputError(f"the file is cut off after {len(blob)} bytes: get the whole file")
    if blob[len(MAGIC)] > VERSION:
        raise InputError(
            f"the file has format version {blob[len(MAGIC)]}, this encyclo reads up to {VERSION}: install a newer one"
        )
    writer = system_of(blob)
    if hashlib.blake2b(blob[:-DIGEST], digest_size=DIGEST).digest() != blob[-DIGEST:] or writer is None:
        raise InputError("the file is cut off or altered (its checksum does not match): get it again")
    if system is not None and writer != system:
        raise InputError(f"the file was written by system '{writer}', not by '{system}': open a run of '{writer}'")
    reader = Reader(blob[:-DIGEST], len(MAGIC) + 2 + len(writer))
    unpacked, stored = reader.varint(), reader.varint()
    if max(unpacked, stored) > LONGEST_HEADER:
        raise InputError(f"the file's header claims {max(unpacked, stored)} bytes: it was not written by encyclo")
    text = reader.take(stored)
    try:
        if unpacked:
            text = zlib.decompressobj(wbits=-15).decompress(text, unpacked)  # never more than was announced
        header = json.loads(text)
        count = reader.varint()
        if not isinstance(header, dict) or count > MOST_SECTIONS:
            raise ValueError
        table = []
        for _ in range(count):
            name = reader.take(reader.varint()).decode()
            table.append((name, reader.varint()))
    except (zlib.error, ValueError, RecursionError):
        raise InputError("the file's header is malformed: it was not written by encyclo") from None
    sections = {name: reader.take(length) for name, length in table}
    if not reader.finished or len(sections) != len(table):
        raise InputError("the file's sections do not fill it: it was not written by encyclo")
    return Container(writer, header, sections)


def system_of(blob: bytes) -> str | None:
    """Slug of the system that wrote a file, from its first 70 bytes; None where they are no such beginning."""
    start = len(MAGIC) + 2
    if blob[: len(MAGIC)] != MAGIC or len(blob) < start:
        return None
    slug = blob[start : start + blob[start - 1]]
    try:
        text = slug.decode("ascii")
    except UnicodeDecodeError:
        return None
    return text if len(slug) == blob[start - 1] and _SLUG.fullmatch(text) else None


def varint(number: int) -> bytes:
    """A whole number >= 0 as LEB128: seven bits a byte, least first.

    Raises:
        ValueError: for a negative number.
    """
    if number < 0:
        raise ValueError(f"{number} is negative")
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Reader:
    """Takes varints and byte strings off the front of a buffer; running out of it is an InputError."""

    def __init__(self, buffer: bytes, position: int = 0) -> None:
        self.buffer = buffer
        self.position = position

    @property
    def finished(self) -> bool:
        """Whether nothing is left."""
        return self.position == len(self.buffer)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        stop = self.position + count
        if stop > len(self.buffer):
            raise InputError(f"the data end after {len(self.buffer)} bytes where {stop} are needed: they are cut off")
        taken = self.buffer[self.position : stop]
        self.position = stop
        return taken

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self.buffer) - self.position)

    def varint(self) -> int:
        """The next LEB128 number, below 2^64."""
        number, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 and number < 1 << 64:
                return number
            if shift > 63:
                raise InputError("the data hold a number that is too large: they are damaged")
