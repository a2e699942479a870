"""Behind `load`: one door for bundled packs, the user's own files, hub data sets and streams of shards."""

import hashlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.table import InMemoryTable

from encyclo.data import columns, shards, splitting
from encyclo.data.bundled import Manifest, PackFile, manifest, names, nearest, pack_folder
from encyclo.data.hub import read_hub
from encyclo.data.own import Tables, read_files, read_path
from encyclo.data.splits import Splits
from encyclo.errors import InputError

__all__ = ["read"]


def read(spec: str, kind: str | None, seed: int) -> Splits:
    """What `encyclo.data.load` tells of."""
    columns.check_kind(kind)
    if not spec.strip():
        raise InputError("no data set is named: give a pack, a file, a folder, hf:ID or a glob of shards")
    parts = [spec] if Path(spec).exists() or (spec.startswith("hf:") and "+" not in spec) else spec.split("+")
    if len(parts) == 1:
        return _load_one(spec, kind, seed)
    loaded = [_load_one(part.strip(), kind, seed) for part in parts]
    return _join(spec, loaded)


def _load_one(spec: str, kind: str | None, seed: int) -> Splits:
    if spec in names():
        splits = _load_pack(manifest(spec), kind)
        if Path(spec).exists():
            note = f"'{spec}' is the bundled pack; for the file or folder of that name write './{spec}'"
            splits = Splits(**{**vars(splits), "notes": (*splits.notes, note)})
        return splits
    if spec.startswith("hf:"):
        return _from_tables(spec, read_hub(spec, kind, seed))
    path = Path(spec).expanduser()
    if path.exists():
        return _from_tables(spec, read_path(path, kind, seed))
    if any(letter in spec for letter in "*?["):
        matched = shards.match(str(path))
        if not all(file.name.lower().endswith(shards.STREAMABLE) for file in matched):
            return _from_tables(spec, read_files(_parent(matched), matched, kind, seed))
        found, streams, fingerprint, notes = shards.stream(str(path), kind, seed)
        return Splits(spec, found, streams["train"], streams["validation"], streams["test"], fingerprint, tuple(notes))
    if "/" in spec or Path(spec).suffix:
        raise InputError(f"'{spec}' does not exist: check the path")
    raise InputError(
        f"there is no data set, file or folder '{spec}'{nearest(spec)}; the bundled ones are {', '.join(names())}"
    )


def _parent(files: list[Path]) -> Path:
    """The deepest folder that holds all files."""
    folders = [file.parent for file in files]
    return next(
        folder for folder in (folders[0], *folders[0].parents) if all(f.is_relative_to(folder) for f in folders)
    )


def _dataset(table: pa.Table, fingerprint: str) -> datasets.Dataset:
    return datasets.Dataset(InMemoryTable(table), fingerprint=fingerprint[:16])


def _media_rows(rows: list[tuple[str, str, dict[str, Any]]], kind: str, digest: str) -> Iterator[dict[str, Any]]:
    del digest  # is there for `datasets`, whose cache goes by the arguments
    for name, path, values in rows:
        yield {**values, kind: Path(path).read_bytes(), "name": name}


def _from_tables(spec: str, read: Tables) -> Splits:
    made: dict[str, datasets.Dataset] = {}
    notes = list(read.notes)
    if read.files:
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        extra = [
            column
            for column in columns.KINDS[read.kind].optional
            if column != "name" and any(column in values for rows in read.files.values() for _, _, values in rows)
        ]
        features = datasets.Features(
            {read.kind: datasets.Value("binary")} | {name: datasets.Value("string") for name in [*extra, "name"]}
        )
        for split, rows in read.files.items():
            if not rows:
                made[split] = _dataset(features.arrow_schema.empty_table(), read.digest)
                continue
            plain = [(name, str(path), {c: values.get(c) for c in extra}) for name, path, values in rows]
            made[split] = datasets.Dataset.from_generator(
                _media_rows,
                features=features,
                gen_kwargs={"rows": plain, "kind": read.kind, "digest": read.digest},
                writer_batch_size=8,
            )
    else:
        for split, table in read.tables.items():
            made[split] = _dataset(table, hashlib.sha256(f"{read.digest}:{split}".encode()).hexdigest())
    return Splits(spec, read.kind, made["train"], made["validation"], made["test"], read.digest, tuple(notes))


def _load_pack(pack: Manifest, kind: str | None) -> Splits:
    if kind is not None and kind not in pack.views:
        others = [name for name in names() if kind in manifest(name).views]
        remedy = f"use {', '.join(others)}" if others else "give your own"
        raise columns.wrong_kind(f"'{pack.name}'", pack.kind, kind, f"{remedy}, or a file or folder")
    view = kind or pack.views[0]
    digest = hashlib.sha256(view.encode())
    made: dict[str, datasets.Dataset] = {}
    parts: dict[str, list[pa.Table]] = {split: [] for split in splitting.SPLITS}
    for file in pack.files:
        if file.kinds and view not in file.kinds:
            continue
        digest.update(f"{file.split}:{file.sha256}".encode())
        parts[file.split].append(_pack_table(pack, file, view))
    schema = next(tables[0].schema for tables in parts.values() if tables)
    for split, tables in parts.items():
        table = pa.concat_tables(tables) if tables else schema.empty_table()
        made[split] = _dataset(table, hashlib.sha256(digest.digest() + split.encode()).hexdigest())
    return Splits(
        pack.name,
        view,
        made["train"],
        made["validation"],
        made["test"],
        digest.hexdigest(),
        peak=pack.peak,
    )


def _pack_table(pack: Manifest, file: PackFile, view: str) -> pa.Table:
    """One file of a pack, checked against its checksum, with the view's columns."""
    try:
        data = (pack_folder(pack.name) / file.path).read_bytes()
    except OSError as error:
        raise InputError(f"file '{file.path}' of pack '{pack.name}' is missing: install encyclo again") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise InputError(f"file '{file.path}' of pack '{pack.name}' does not match its checksum: install encyclo again")
    if not file.path.endswith(".parquet"):
        return pa.table({view: pa.array([data], pa.binary()), "name": pa.array([file.path], pa.string())})
    table = pq.read_table(io.BytesIO(data)).replace_schema_metadata(None)
    for column, template in pack.columns.get(view, {}).items():
        values = _fill(template, table)
        if column in table.column_names:
            table = table.set_column(table.schema.get_field_index(column), column, values)
        else:
            table = table.append_column(column, values)
    # The kind's own columns first, in their order, then the rest.
    own = [column for column in columns.KINDS[view].columns if column in table.column_names]
    return table.select([*own, *(name for name in table.column_names if name not in own)])


def _fill(template: str, table: pa.Table) -> Any:
    """The column that a template such as '{lemma} ({pos})' makes of a table's columns."""
    parts: list[Any] = []
    for literal, column, _, _ in Formatter().parse(template):
        parts += [pa.scalar(literal)] if literal else []
        parts += [table.column(column)] if column else []
    return pc.binary_join_element_wise(*parts, "")


def _join(spec: str, loaded: list[Splits]) -> Splits:
    """Several data sets of one kind as one, with the columns of the kind that any of them has."""
    first = loaded[0]
    for other in loaded[1:]:
        if other.kind != first.kind:
            raise InputError(
                f"'{spec}' joins {first.kind} ('{first.name}') with {other.kind} ('{other.name}'): join one kind"
            )
    streamed = [part.name for part in loaded if part.streaming]
    if streamed:
        raise InputError(f"'{streamed[0]}' is streamed and cannot be joined by '+': use one glob for all shards")
    if len({part.peak for part in loaded}) > 1:
        raise InputError(
            f"'{spec}' joins pictures whose white is {', '.join(str(p.peak) for p in loaded)}: use one alone"
        )
    digest = hashlib.sha256("+".join(part.fingerprint for part in loaded).encode()).hexdigest()
    made = {}
    for split in splitting.SPLITS:
        tables = [_kind_columns(getattr(part, split).with_format("arrow")[:], first.kind, part.name) for part in loaded]
        table = pa.concat_tables(tables, promote_options="permissive")
        made[split] = _dataset(table, hashlib.sha256(f"{digest}:{split}".encode()).hexdigest())
    notes = tuple(f"{part.name}: {note}" for part in loaded for note in part.notes)
    return Splits(spec, first.kind, made["train"], made["validation"], made["test"], digest, notes, first.peak)


def _kind_columns(table: pa.Table, kind: str, name: str) -> pa.Table:
    if kind == "table":
        return table
    chosen = {column: table.column(column) for column in columns.KINDS[kind].columns if column in table.column_names}
    if kind == "text" and "document" in chosen:  # two sets may use the same names for their documents
        chosen["document"] = pa.array([f"{name}/{v}" for v in table.column("document").to_pylist()], pa.string())
    return pa.table(chosen)
