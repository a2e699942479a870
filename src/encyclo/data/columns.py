"""The kinds of data set, the columns each has, and how columns under other customary names become those."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from encyclo.data.sniff import article, describe
from encyclo.errors import InputError

__all__ = ["KINDS", "Kind", "conform", "guess", "renames", "rows_conform", "wrong_kind"]


@dataclass(frozen=True)
class Kind:
    """A kind's columns: those it must have and may have, each with the customary names it also goes by."""

    required: dict[str, tuple[str, ...]]
    optional: dict[str, tuple[str, ...]]

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """All columns, the required ones first."""
        return {**self.required, **self.optional}


KINDS: dict[str, Kind] = {
    "text": Kind(
        {"text": ("content", "body", "sentence")},
        {"document": ("doc_id", "document_id", "url", "id", "title", "file")},
    ),
    "image": Kind(
        {"image": ("img", "picture", "png", "jpg", "jpeg", "webp")},
        {"label": ("category", "class", "cls"), "caption": ("text", "txt", "description")},
    ),
    "audio": Kind(
        {"audio": ("wav", "flac", "opus", "ogg", "mp3")},
        {
            "text": ("transcript", "transcription", "sentence", "txt"),
            "language": ("lang", "locale"),
            "name": ("path", "file", "file_name", "id", "__key__"),
        },
    ),
    "video": Kind({"video": ("mp4", "webm", "mkv", "avi")}, {"name": ("path", "file", "file_name", "id", "__key__")}),
    "pair": Kind(
        {
            "query": ("question", "anchor", "sentence1"),
            "document": ("positive", "passage", "answer", "context", "sentence2"),
        },
        {"negative": ("hard_negative",)},
    ),
    "table": Kind({}, {}),
}
MEDIA = ("image", "audio", "video")


def wrong_kind(name: str, found: str, wanted: str, remedy: str) -> InputError:
    """The error for data of kind `found` where `wanted` belongs."""
    return InputError(f"{name} holds {describe(found)}, {article(wanted)} is needed: {remedy}")


def check_kind(kind: str | None) -> None:
    """Raise `InputError` unless `kind` is None or one of `KINDS`."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"'{kind}' is no kind of data: use one of {', '.join(KINDS)}")


def _is_bytes(type: pa.DataType) -> bool:
    """Whether a column can hold encoded media: binary, or the {bytes, path} that `datasets` stores."""
    if pa.types.is_struct(type):
        return bool(type.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type))


def renames(columns: dict[str, pa.DataType], kind: str) -> dict[str, str]:
    """For each column of `kind` that can be found among `columns`, the name under which it lies there."""
    found: dict[str, str] = {}
    for column, others in KINDS[kind].columns.items():
        for name in (column, *others):
            fits = name in columns and (column not in MEDIA or column != kind or _is_bytes(columns[name]))
            if fits and name not in found.values():
                found[column] = name
                break
    return found


def guess(columns: dict[str, pa.DataType]) -> str:
    """The kind that columns of these names and types are."""
    for kind in ("video", "audio", "image", "pair", "text"):
        if all(column in renames(columns, kind) for column in KINDS[kind].required):
            return kind
    return "table"


def _check(columns: dict[str, pa.DataType], kind: str, name: str) -> dict[str, str]:
    found = renames(columns, kind)
    missing = [column for column in KINDS[kind].required if column not in found]
    if missing:
        raise InputError(
            f"{name} has no column '{missing[0]}', which {describe(kind)} need; it has {', '.join(columns) or 'none'}:"
            " rename the one you mean"
        )
    return found


def conform(table: pa.Table, kind: str | None, name: str) -> tuple[pa.Table, str]:
    """The table with its columns named and typed as `kind` (guessed when None) has them; others are kept.

    Raises:
        InputError: a column that the kind needs is missing, or holds another type of value.
    """
    columns = dict(zip(table.schema.names, table.schema.types, strict=True))
    kind = kind or guess(columns)
    if kind == "table":
        return table, kind
    found = _check(columns, kind, name)
    arrays: dict[str, pa.ChunkedArray] = {}
    for column, stored in found.items():
        values = table.column(stored)
        if column == kind and kind in MEDIA:
            if pa.types.is_struct(values.type):
                values = pa.chunked_array(
                    [chunk.field("bytes") for chunk in values.chunks], type=values.type.field("bytes").type
                )
            wanted = pa.binary()
        else:
            wanted = pa.string()
        try:
            arrays[column] = values.cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise InputError(
                f"{name}: column '{stored}' holds {values.type}, {wanted} is needed: convert it"
            ) from error
        if column in KINDS[kind].required and arrays[column].null_count:
            keep = arrays[column].is_valid()
            raise InputError(
                f"{name}: {arrays[column].null_count} of {len(keep)} values in column '{stored}' are missing:"
                " remove those rows"
            )
    for column, values in zip(table.schema.names, table.columns, strict=True):
        if column not in found.values() and column not in arrays:
            arrays[column] = values
    return pa.table(arrays), kind


def rows_conform(first: dict[str, Any], kind: str | None, name: str) -> tuple[dict[str, str], str]:
    """For a stream: from its first record, the renames (column -> name in the records) and the kind.

    Raises:
        InputError: as in `conform`.
    """
    columns = {column: pa.array([value]).type for column, value in first.items()}
    kind = kind or guess(columns)
    if kind == "table":
        return {column: column for column in first}, kind
    return _check(columns, kind, name), kind
