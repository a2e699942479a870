"""A glob of shards as streams, one per split: nothing is read before it is asked for."""

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import datasets

from encyclo.data import columns, splitting
from encyclo.data.sniff import EXTENSIONS
from encyclo.data.text import PROSE, decode, stream_records
from encyclo.errors import InputError

__all__ = ["STREAMABLE", "match", "stream"]

STREAMABLE = (".parquet", ".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tar", *PROSE, ".txt.gz")
"""Extensions of shards."""

_BLOCK = 16  # neighbouring paragraphs of a shard that stay together
_ENDS = 2**16  # bytes at either end of a shard that go into the fingerprint


def match(pattern: str) -> list[Path]:
    """The files that a glob names, sorted.

    Raises:
        InputError: when there is none.
    """
    found = sorted(Path(name) for name in glob(pattern, recursive=True) if Path(name).is_file())
    if not found:
        raise InputError(f"no file matches '{pattern}': check the pattern, and quote it against the shell")
    return found


def _records(shard: str) -> Iterator[dict[str, Any]]:
    """The records of one shard; of a tar, files that share a stem are one record, keyed by their extensions."""
    if not shard.lower().endswith(".tar"):
        yield from stream_records(shard)
        return
    try:
        with tarfile.open(shard, "r|") as archive:
            record: dict[str, Any] = {}
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if record and record["__key__"] != key:
                    yield record
                    record = {}
                file = archive.extractfile(member)
                assert file is not None
                content = file.read()
                is_text = extension.lower() in ("txt", "json", "cls")
                record["__key__"] = key
                record[extension.lower()] = decode(content)[0] if is_text else content
            if record:
                yield record
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"'{shard}' is damaged ({error}): replace or remove it") from error


def _rows(shards: list[str], found: dict[str, str], kind: str, want: str | None, seed: int) -> Iterator[dict[str, Any]]:
    """The rows of the shards with the kind's columns; of those, when `want` is given, the ones of that split."""
    key = next(iter(columns.KINDS[kind].required), None)
    for shard in shards:
        for number, record in enumerate(_records(shard)):
            row = {column: record.get(name) for column, name in found.items()}
            if key is not None and isinstance(media := row[key], dict):  # as `datasets` stores media
                row[key] = media.get("bytes")
            if key is not None and row[key] is None:
                raise InputError(
                    f"'{shard}' record {number} has no '{found[key]}': remove it, or give one kind of record"
                )
            if kind == "text" and row.get("document") is None:
                row["document"] = f"{Path(shard).name}#{number // _BLOCK}"
            if want is not None:
                value = row["document"] if kind == "text" else row[key] if key else repr(row)
                data = value if isinstance(value, bytes) else str(value).encode()
                if splitting.split_of(hashlib.sha256(data).hexdigest(), seed) != want:
                    continue
            yield {name: str(v) if v is not None and name != key else v for name, v in row.items()} if key else row


def _by_name(shards: Sequence[Path]) -> dict[str, list[str]] | None:
    """Splits that the shards' own names give, when they name a train split."""
    chosen: dict[str, list[str]] = {split: [] for split in splitting.SPLITS}
    for shard in shards:
        words = [*re.split(r"[^a-zA-Z]+", shard.name), shard.parent.name]
        split = next((split for word in words if (split := splitting.split_of_name(word))), None)
        if split:
            chosen[split].append(str(shard))
    return chosen if chosen["train"] and sum(map(len, chosen.values())) == len(shards) else None


def stream(pattern: str, kind: str | None, seed: int) -> tuple[str, dict[str, Any], str, list[str]]:
    """Kind, streams by split, fingerprint and notes of the shards that `pattern` matches.

    Splits are those that the shards' names give (train-000.parquet); else, of three shards or more, whole shards by the
    hash of their names; else single documents by their hash, so that each stream reads all shards.

    Raises:
        InputError: no match, several formats, an empty shard, or another kind of record.
    """
    shards = match(pattern)
    other = [shard for shard in shards if not shard.name.lower().endswith(STREAMABLE)]
    if other:
        raise InputError(f"'{other[0]}' is no shard that can be streamed: use {', '.join(STREAMABLE)}")
    empty = [shard for shard in shards if shard.stat().st_size == 0]
    if empty:
        raise InputError(f"'{empty[0]}' is empty (0 bytes): remove it")
    first = next(_records(str(shards[0])), None)
    if first is None:
        raise InputError(f"'{shards[0]}' holds no records: remove it")
    found, kind = columns.rows_conform(first, kind, f"'{shards[0]}'")
    notes = [f"streaming {len(shards)} shards: the fingerprint covers their names, sizes, first and last 64 KiB"]
    chosen = _by_name(shards)
    if chosen is not None and not all(chosen.values()):
        lacking = [split for split in splitting.SPLITS if not chosen[split]]
        if len(chosen["train"]) <= len(lacking):
            chosen = None
        else:
            drawn = splitting.split_by_name([Path(shard).name for shard in chosen["train"]], seed)
            for split in lacking:
                chosen[split] = [shard for shard in chosen["train"] if drawn[Path(shard).name] == split]
            chosen["train"] = [shard for shard in chosen["train"] if drawn[Path(shard).name] not in lacking]
    if chosen is None and len(shards) >= 3:
        drawn = splitting.split_by_name([str(shard) for shard in shards], seed)
        chosen = {split: [str(s) for s in shards if drawn[str(s)] == split] for split in splitting.SPLITS}
    features = _features(kind, found)
    streams = {}
    for split in splitting.SPLITS:
        arguments = {
            "shards": chosen[split] if chosen else [str(shard) for shard in shards],
            "found": found,
            "kind": kind,
            "want": None if chosen else split,
            "seed": seed,
        }
        streams[split] = datasets.IterableDataset.from_generator(_rows, gen_kwargs=arguments, features=features)
    return kind, streams, _fingerprint(shards, kind, chosen, seed), notes


def _features(kind: str, found: dict[str, str]) -> datasets.Features | None:
    if kind == "table":
        return None
    names = {*found, "document"} if kind == "text" else set(found)
    order = [column for column in columns.KINDS[kind].columns if column in names]
    return datasets.Features(
        {
            name: datasets.Value("binary" if name == kind and kind in EXTENSIONS and kind != "text" else "string")
            for name in order
        }
    )


def _fingerprint(shards: Sequence[Path], kind: str, chosen: dict[str, list[str]] | None, seed: int) -> str:
    digest = hashlib.sha256(f"{kind}:{seed}:{chosen is None}".encode())
    for shard in shards:
        with shard.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            head = file.read(_ENDS)
            file.seek(max(0, size - _ENDS))
            tail = file.read(_ENDS)
        digest.update(f"{shard.name}:{size}".encode() + hashlib.sha256(head + tail).digest())
    return digest.hexdigest()
