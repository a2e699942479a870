"""The user's own text: files of prose cut into units, and files of records (JSON lines, CSV, Parquet) as columns."""

import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from encyclo.data.sniff import HEAD, article, kind_of_bytes
from encyclo.errors import InputError

__all__ = ["PROSE", "RECORDS", "Text", "Unit", "decode", "read_records", "read_text", "read_units", "stream_records"]

Unit = Literal["paragraph", "line", "file"]

PROSE = (".txt", ".md", ".rst")
"""Extensions of files that are cut into units."""

RECORDS = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
"""Extensions of files that hold records."""

_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class Text:
    """What was read of one file.

    Attributes:
        units: paragraphs, lines or the whole, none of them blank.
        undecodable: bytes that are no UTF-8 (or UTF-16 with its mark), each run replaced by U+FFFD.
    """

    units: tuple[str, ...]
    undecodable: int


def decode(data: bytes) -> tuple[str, int]:
    """Text from bytes: UTF-8, or what a byte-order mark says. Also the count of bytes that could not be decoded."""
    encoding = next((encoding for mark, encoding in _BOMS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding), 0
    except UnicodeDecodeError:
        bad = 0
        rest = data
        while True:  # each failure names the bytes it fell over
            try:
                rest.decode(encoding)
                break
            except UnicodeDecodeError as error:
                bad += error.end - error.start
                rest = rest[error.end :]
                if encoding != "utf-8":
                    encoding = "utf-16-be" if data.startswith(b"\xfe\xff") else "utf-16-le"
        return data.decode(encoding, errors="replace"), bad


def read_units(text: str, unit: Unit = "paragraph") -> list[str]:
    """Cut a text into units and drop the blank ones.

    A paragraph is what stands between blank lines, its lines joined by spaces where they were only wrapped (lines
    that are indented, listed or quoted keep their breaks).
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if unit == "file":
        return [text.strip()] if text.strip() else []
    if unit == "line":
        return [line.strip() for line in text.split("\n") if line.strip()]
    return [_unwrap(part) for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def _unwrap(paragraph: str) -> str:
    lines = paragraph.strip("\n").rstrip().split("\n")
    if any(re.match(r"[ \t]|[-*+>|#]|\d+[.)] ", line) for line in lines[1:]):
        return "\n".join(line.rstrip() for line in lines).strip()
    return " ".join(line.strip() for line in lines)


def _bytes(path: Path, name: str) -> bytes:
    if not path.exists():
        raise InputError(f"{name} does not exist: check the path")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}): check its permissions") from error
    if not data:
        raise InputError(f"{name} is empty (0 bytes): give a file with text")
    kind = kind_of_bytes(data[:HEAD])
    if kind is not None and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{name} is {article(kind)}, text is needed: give .txt, .md, .rst, .jsonl, .csv or .parquet")
    return data


def read_text(path: str | Path, unit: Unit = "paragraph") -> Text:
    """Read a file of prose (.txt, .md, .rst).

    Raises:
        InputError: missing, unreadable, empty, or no text.
    """
    name = f"'{path}'"
    text, bad = decode(_bytes(Path(path), name))
    if "\x00" in text:
        raise InputError(f"{name} is a binary file, text is needed: give .txt, .md, .rst, .jsonl, .csv or .parquet")
    units = read_units(text, unit)
    if not units:
        raise InputError(f"{name} holds only blank lines: give a file with text")
    return Text(tuple(units), bad)


def read_records(path: str | Path) -> tuple[pa.Table, list[str]]:
    """Read a file of records (.jsonl, .jsonl.gz, .csv, .parquet) as a table, with notes on what was lossy.

    Raises:
        InputError: missing, unreadable, empty, damaged, or without records.
    """
    name, suffix = f"'{path}'", Path(path).name.lower()
    data = _bytes(Path(path), name)
    notes: list[str] = []
    try:
        if suffix.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
        else:
            if suffix.endswith(".gz"):
                data = gzip.decompress(data)
            text, bad = decode(data)
            if bad:
                notes.append(f"{name}: {bad} bytes could not be decoded")
            if suffix.endswith(".csv"):
                table = pyarrow.csv.read_csv(io.BytesIO(text.encode()), parse_options=_CSV)
            else:
                rows = _jsonl(text.split("\n"), name)
                table = pa.Table.from_pylist(rows, schema=_schema(rows)) if rows else pa.table({})
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"{name} is damaged ({str(error).splitlines()[0]}): replace it") from error
    if table.num_rows == 0:
        raise InputError(f"{name} holds no records: give a file with some")
    return table, notes


def _schema(rows: Iterable[dict[str, Any]]) -> pa.Schema | None:
    """Every column of any row, in order of appearance; `pyarrow` by itself looks at the first row only."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for column in row:
            columns.setdefault(column, [])
    for row in rows:
        for column, values in columns.items():
            values.append(row.get(column))
    return pa.schema([(column, pa.array(values).type) for column, values in columns.items()])


def _jsonl(lines: Iterable[str], name: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{name} line {number} is no JSON ({error.msg}): mend or remove the line") from error
        if not isinstance(row, dict):
            raise InputError(f"{name} line {number} is no JSON object: write one {{...}} a line")
        rows.append(row)
    return rows


_CSV = pyarrow.csv.ParseOptions(newlines_in_values=True)


def stream_records(path: str) -> Iterator[dict[str, Any]]:
    """The records (of prose: the paragraphs) of one shard, one by one, without holding the shard in memory.

    Raises:
        InputError: unreadable, damaged, or an unknown extension.
    """
    name, lower = f"'{path}'", path.lower()
    try:
        if lower.endswith(".parquet"):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1024):
                    yield from batch.to_pylist()
            return
        with gzip.open(path, "rb") if lower.endswith(".gz") else open(path, "rb") as stream:
            if lower.endswith((".jsonl", ".jsonl.gz")):
                for line in stream:
                    yield from _jsonl([decode(line)[0]], name)
            elif lower.endswith((".csv", ".csv.gz")):
                for batch in pyarrow.csv.open_csv(stream, parse_options=_CSV):
                    yield from batch.to_pylist()
            elif lower.endswith((*PROSE, ".txt.gz")):
                paragraph: list[str] = []
                for line in stream:
                    if line.strip():
                        paragraph.append(decode(line)[0].rstrip("\r\n"))
                    elif paragraph:
                        yield {"text": _unwrap("\n".join(paragraph))}
                        paragraph = []
                if paragraph:
                    yield {"text": _unwrap("\n".join(paragraph))}
            else:
                raise InputError(f"{name} is no shard that can be streamed: use .parquet, .jsonl, .csv, .txt or .tar")
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"{name} is damaged ({str(error).splitlines()[0]}): replace or remove it") from error
