"""The user's own files and folders as tables, one per split."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from encyclo.data import columns, splitting
from encyclo.data.sniff import EXTENSIONS, HEAD, article, describe, kind_of_bytes, kind_of_name
from encyclo.data.text import RECORDS, Unit, decode, read_records, read_text
from encyclo.errors import InputError

__all__ = ["Tables", "read_path"]

_FEW_FILES = 20
"""With fewer files than this, files are cut into blocks for the split: whole ones would leave a split all but empty."""

_BLOCK = 16
"""Neighbouring units that stay in one split when a file is cut into blocks."""


@dataclass
class Tables:
    """What was read: a table per split, and what to say about it.

    Attributes:
        kind: the kind of all tables.
        tables: split -> table, all with the same columns.
        digest: sha256 over names, splits and content.
        notes: what was lossy.
        files: media too large for memory, as split -> [(name, path, other columns)]; then `tables` is empty.
    """

    kind: str
    tables: dict[str, pa.Table]
    digest: str
    notes: list[str] = field(default_factory=list)
    files: dict[str, list[tuple[str, Path, dict[str, Any]]]] = field(default_factory=dict)


_IN_MEMORY = 2**30
"""Bytes of media up to which they are held in memory; beyond it they go through the `datasets` cache on disk."""


def read_path(path: Path, kind: str | None, seed: int, unit: Unit = "paragraph") -> Tables:
    """Read a file or a folder.

    Raises:
        InputError: missing, empty, of another kind, or nothing in it that can be read.
    """
    if not path.exists():
        raise InputError(f"'{path}' does not exist: check the path")
    if path.is_dir():
        found = sorted(
            (file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))),
            key=lambda file: file.relative_to(path).as_posix(),
        )
        if not found:
            raise InputError(f"'{path}' is an empty folder: put files in it or name another")
        return read_files(path, found, kind, seed, unit)
    if not path.is_file():
        raise InputError(f"'{path}' is neither a file nor a folder: name one of those")
    return read_files(path.parent, [path], kind, seed, unit, name=path)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def kind_of_file(path: Path) -> str | None:
    """What a file is, from its first bytes before its name; 'text' for prose and records."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    named = kind_of_name(path)
    if named == "text" or path.name.lower().endswith(RECORDS):
        found = kind_of_bytes(head)
        return found if found and not head.startswith((b"\xff\xfe", b"\xfe\xff")) else "text"
    return kind_of_bytes(head) or named


def read_files(
    root: Path, files: Sequence[Path], kind: str | None, seed: int, unit: Unit = "paragraph", name: Path | None = None
) -> Tables:
    """Read `files`, whose names below `root` decide their split. `name`, when it was the one file the user named, makes
    every flaw an error; otherwise flawed files are left out and noted.

    Raises:
        InputError: as in `read_path`.
    """
    notes: list[str] = []
    by_kind: dict[str, list[Path]] = {}
    flawed: dict[str, list[Path]] = {}
    for file in files:
        try:
            found = "empty" if file.stat().st_size == 0 else kind_of_file(file) or "unknown"
        except OSError:
            found = "unreadable"
        if found in columns.KINDS:
            by_kind.setdefault(found, []).append(file)
        else:
            flawed.setdefault(found, []).append(file)
    if name is not None and flawed:
        raise _flaw(name, next(iter(flawed)), kind)
    for flaw, these in flawed.items():
        said = {"unknown": "of no known kind"}.get(flaw, flaw)
        notes.append(f"{_count(these)} {said} left out (first: '{these[0].relative_to(root)}')")
    shown = name if name is not None else root
    if not by_kind:
        raise InputError(f"'{shown}' holds no file that can be read ({'; '.join(notes)}): add some or name another")
    wanted = _choose(by_kind, kind, shown, single=name is not None)
    # A folder of media may carry text beside them (captions, licences); of other kinds nothing is used.
    for other, these in by_kind.items():
        if other not in (wanted, "text") and wanted != other:
            notes.append(
                f"{_count(these)} left out that hold {describe(other)} (first: '{these[0].relative_to(root)}')"
            )
    chosen = by_kind[wanted]
    if wanted == "text":
        return _read_text(root, chosen, kind, seed, unit, notes, strict=name is not None)
    return _read_media(root, chosen, by_kind.get("text", []), wanted, seed, notes, strict=name is not None)


def _count(files: Sequence[Path]) -> str:
    return f"{len(files)} file{'s' if len(files) != 1 else ''}"


def _flaw(path: Path, flaw: str, kind: str | None) -> InputError:
    give = ", ".join(EXTENSIONS.get(kind or "text", EXTENSIONS["text"])[:4])
    if flaw == "empty":
        return InputError(f"'{path}' is empty (0 bytes): give a file with content")
    if flaw == "unreadable":
        return InputError(f"'{path}' cannot be read: check its permissions")
    return InputError(f"'{path}' is of no known kind: give a file such as {give}")


def _choose(by_kind: dict[str, list[Path]], kind: str | None, shown: Path, single: bool) -> str:
    """The kind of files to use out of those that are there."""
    wanted = "text" if kind in ("pair", "table") else kind
    if wanted is None:
        media = [found for found in by_kind if found != "text"]
        if len(media) > 1:
            what = " and ".join(f"{len(by_kind[found])} {describe(found)}" for found in media)
            raise InputError(f"'{shown}' holds {what}: name a folder with one kind of file")
        return media[0] if media else "text"
    if wanted not in by_kind:
        # A table of records may hold pictures or sound in a column.
        if wanted in columns.MEDIA and any(str(file).lower().endswith(RECORDS) for file in by_kind.get("text", [])):
            return "text"
        found = next(iter(by_kind))
        give = ", ".join(EXTENSIONS[wanted][:4])
        is_or_holds = f"is {article(found)}" if single else f"holds {describe(found)}"
        raise InputError(f"'{shown}' {is_or_holds}, {article(kind or wanted)} is needed: give {give}")
    return wanted


def _folder_splits(root: Path, files: Sequence[Path]) -> dict[Path, str] | None:
    """The split of each file where folders below the root are called train, validation and test; else None."""
    splits = {file: splitting.split_of_name(file.relative_to(root).parts[0]) for file in files}
    named = {file: split for file, split in splits.items() if split and len(file.relative_to(root).parts) > 1}
    return named if "train" in named.values() else None


class _Digest:
    """sha256 over (split, name, content) of everything read, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, *parts: str | bytes) -> None:
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            self._hash.update(len(data).to_bytes(8, "big") + data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _read_text(
    root: Path, files: Sequence[Path], kind: str | None, seed: int, unit: Unit, notes: list[str], strict: bool
) -> Tables:
    """Prose and records."""
    parts: list[tuple[Path, pa.Table]] = []
    bad_files: list[str] = []
    undecodable = 0
    for file in files:
        try:
            if file.name.lower().endswith(RECORDS):
                table, said = read_records(file)
                notes += said
            elif kind not in (None, "text"):
                raise InputError(
                    f"'{file}' is {article('text')}, {article(kind)} is needed: give .jsonl, .csv or .parquet"
                )
            else:
                text = read_text(file, unit)
                undecodable += text.undecodable
                table = pa.table({"text": pa.array(text.units, pa.string())})
        except InputError as error:
            if strict:
                raise
            bad_files.append(str(error))
            continue
        parts.append((file, table))
    if not parts:
        raise InputError(f"none of {_count(files)} in '{root}' can be read (first: {bad_files[0]})")
    if bad_files:
        notes.append(f"{len(bad_files)} unreadable files left out (first: {bad_files[0]})")
    if undecodable:
        notes.append(f"{undecodable} bytes could not be decoded as UTF-8 and became U+FFFD")
    settled: list[tuple[Path, pa.Table]] = []
    for file, table in parts:
        conformed, found = columns.conform(table, kind, f"'{file}'")
        kind = kind or found
        settled.append((file, conformed))
    assert kind is not None
    named = _folder_splits(root, [file for file, _ in settled])
    outside = [file for file, _ in settled if named and file not in named]
    if outside:
        notes.append(
            f"{_count(outside)} outside train/validation/test left out (first: '{outside[0].relative_to(root)}')"
        )
    settled = [(file, table) for file, table in settled if file not in outside]
    documents: list[str] = []
    given: list[str | None] = []
    digest = _Digest()
    for file, table in settled:
        documents += _documents(file.relative_to(root).as_posix(), table, kind, whole=len(settled) >= _FEW_FILES)
        given += [named[file] if named else None] * table.num_rows
        digest.add(file.relative_to(root).as_posix(), hashlib.sha256(file.read_bytes()).digest())
    splits, said = splitting.assign(documents, given, seed)
    digest.add(kind, unit, *splits)
    try:
        joined = pa.concat_tables([table for _, table in settled], promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"the files in '{root}' have different columns ({error}): give one kind of record") from error
    if kind == "text":
        joined = pa.table({"text": joined.column("text"), "document": pa.array(documents, pa.string())})
    return Tables(kind, split_table(joined, splits), digest.hexdigest(), notes + said)


def split_table(table: pa.Table, splits: Sequence[str]) -> dict[str, pa.Table]:
    """The rows of each split."""
    labels = pa.array(splits, pa.string())
    return {split: table.filter(pc.equal(labels, split)) for split in splitting.SPLITS}


def _documents(name: str, table: pa.Table, kind: str, whole: bool) -> list[str]:
    """For each row the document that it belongs to, which a split keeps together."""
    if kind != "text":  # every record stands alone, but equal queries, pictures ... stay together
        key = next(iter(columns.KINDS[kind].required), None)
        values = table.column(key).to_pylist() if key else table.to_pylist()
        return [hashlib.sha256(v if isinstance(v, bytes) else repr(v).encode()).hexdigest() for v in values]
    if "document" in table.column_names:
        return [f"{name}#{row if v is None else v}" for row, v in enumerate(table.column("document").to_pylist())]
    return [name if whole else f"{name}#{row // _BLOCK}" for row in range(table.num_rows)]


def _check_media(kind: str, data: bytes, path: Path) -> None:
    """Raise `InputError` unless the file's header can be read as its kind."""
    try:
        if kind == "image":
            from encyclo.data.images import probe_image

            probe_image(data)
        elif kind == "audio":
            from encyclo.data.audio import probe_audio

            probe_audio(path)
        else:
            from encyclo.data.video import probe_video

            probe_video(path)
    except ModuleNotFoundError as error:
        raise InputError(f"{describe(kind)} need '{error.name}': pip install 'encyclo[{kind}]'") from error


_SIDECAR = {"image": "caption", "audio": "text", "video": "text"}


def _sidecars(root: Path, media: Sequence[Path], beside: Sequence[Path], kind: str) -> dict[Path, dict[str, Any]]:
    """What text files say about media: NAME.txt beside NAME.png, and metadata.csv/.jsonl with a column `file_name`."""
    said: dict[Path, dict[str, Any]] = {}
    by_stem = {file.with_suffix(""): file for file in beside if file.suffix.lower() == ".txt"}
    for file in media:
        sidecar = by_stem.get(file.with_suffix(""))
        if sidecar is not None:
            said.setdefault(file, {})[_SIDECAR[kind]] = decode(sidecar.read_bytes())[0].strip()
    known = set(media)
    for table_file in beside:
        if table_file.name.lower() not in ("metadata.csv", "metadata.jsonl", "metadata.parquet"):
            continue
        table, _ = read_records(table_file)
        if "file_name" not in table.column_names:
            raise InputError(f"'{table_file.relative_to(root)}' has no column 'file_name': add it or remove the file")
        found = columns.renames(dict(zip(table.schema.names, table.schema.types, strict=True)), kind)
        for row in table.to_pylist():
            file = table_file.parent / str(row["file_name"])
            if file in known:
                values = {column: row[name] for column, name in found.items() if row.get(name) is not None}
                said.setdefault(file, {}).update({k: str(v) for k, v in values.items() if k not in (kind, "name")})
    return said


def _read_media(
    root: Path, files: Sequence[Path], beside: Sequence[Path], kind: str, seed: int, notes: list[str], strict: bool
) -> Tables:
    """Pictures, sound and video: bytes in a table."""
    content: dict[Path, str] = {}
    bad: list[str] = []
    total = 0
    for file in files:
        try:
            data = file.read_bytes()
            _check_media(kind, data, file)
        except OSError as error:
            bad.append(f"'{file}' cannot be read ({error.strerror})")
            continue
        except InputError as error:
            if strict:
                raise
            bad.append(str(error) if kind != "image" else f"'{file.relative_to(root)}': {error}")
            continue
        content[file] = hashlib.sha256(data).hexdigest()
        total += len(data)
    if not content:
        raise InputError(f"none of {_count(files)} in '{root}' can be read (first: {bad[0]}): replace them")
    if bad:
        notes.append(f"{len(bad)} unreadable files left out (first: {bad[0]})")
    first: dict[str, Path] = {}
    for file, digest in content.items():
        first.setdefault(digest, file)
    unique = list(first.values())
    named = _folder_splits(root, unique)
    outside = [file for file in unique if named and file not in named]
    if outside:
        notes.append(
            f"{_count(outside)} outside train/validation/test left out (first: '{outside[0].relative_to(root)}')"
        )
        unique = [file for file in unique if file not in outside]
    drawn, told = splitting.assign(
        [file.relative_to(root).as_posix() for file in unique],
        [named[file] if named else None for file in unique],
        seed,
    )
    splits = dict(zip(unique, drawn, strict=True))
    notes += told
    copies = [file for file, digest in content.items() if first[digest] != file]
    if copies:
        notes.append(f"{_count(copies)} left out, exact copies of another (first: '{copies[0].relative_to(root)}')")
    said = _sidecars(root, list(splits), beside, kind)
    chosen: dict[str, list[tuple[str, Path, dict[str, Any]]]] = {split: [] for split in splitting.SPLITS}
    digests = _Digest()
    for file, split in splits.items():
        relative = file.relative_to(root)
        folders = relative.parts[1:-1] if named else relative.parts[:-1]
        values = {"label": folders[0], **said.get(file, {})} if kind == "image" and folders else said.get(file, {})
        chosen[split].append((relative.as_posix(), file, values))
        digests.add(split, relative.as_posix(), content[file], repr(sorted(values.items())))
    if total > _IN_MEMORY:
        return Tables(kind, {}, digests.hexdigest(), notes, chosen)
    extra = [
        column
        for column in columns.KINDS[kind].optional
        if any(column in values for rows in chosen.values() for _, _, values in rows)
    ]
    tables = {split: media_table(rows, kind, extra) for split, rows in chosen.items()}
    return Tables(kind, tables, digests.hexdigest(), notes)


def media_table(rows: Sequence[tuple[str, Path, dict[str, Any]]], kind: str, extra: Sequence[str]) -> pa.Table:
    """Rows of media as a table: the bytes, the values of `extra`, and the name (below the folder)."""
    arrays = {kind: pa.array([path.read_bytes() for _, path, _ in rows], pa.binary())}
    for column in extra:
        arrays[column] = pa.array([values.get(column) for _, _, values in rows], pa.string())
    arrays["name"] = pa.array([name for name, _, _ in rows], pa.string())
    return pa.table(arrays)
