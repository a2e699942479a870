"""Data sets of the Hugging Face hub: `hf:ID` and `hf:ID:CONFIG`, without running any code of theirs."""

import hashlib
import sys
from typing import Any

import datasets
import pyarrow as pa

from encyclo.data import columns, splitting
from encyclo.data.own import Tables, split_table
from encyclo.errors import InputError

__all__ = ["read_hub"]


def read_hub(spec: str, kind: str | None, seed: int) -> Tables:
    """Load `hf:ID` or `hf:ID:CONFIG` (ID may also be a folder in the hub's layout).

    Raises:
        InputError: it cannot be opened, needs code of its own, has several configurations, or lacks a column.
    """
    identifier, _, config = spec.removeprefix("hf:").partition(":")
    name = f"'{spec}'"
    if not identifier:
        raise InputError(f"{name} names no data set: write hf:OWNER/NAME or hf:OWNER/NAME:CONFIG")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(identifier, config or None)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name} cannot be loaded ({reason}): check the id, the configuration and the network"
        ) from error
    parts: list[pa.Table] = []
    named: list[str | None] = []
    notes: list[str] = []
    splits = {str(split): splitting.split_of_name(str(split)) for split in loaded}
    if "train" not in splits.values():
        splits = dict.fromkeys(splits)  # nothing is for training: draw all splits anew
    for split, meaning in splits.items():
        if meaning is None and any(splits.values()):
            notes.append(f"split '{split}' left out")
            continue
        table, kind = columns.conform(_table(loaded[split]), kind, name)
        parts.append(table)
        named += [meaning] * table.num_rows
    assert kind is not None
    joined = pa.concat_tables(parts, promote_options="permissive")
    if joined.num_rows == 0:
        raise InputError(f"{name} has no rows: name another data set or configuration")
    if "document" in joined.column_names and kind == "text":
        documents = [str(value) for value in joined.column("document").to_pylist()]
    else:
        documents = [f"{identifier}#{row}" for row in range(joined.num_rows)]
        if kind == "text":
            joined = joined.append_column("document", pa.array(documents, pa.string()))
    drawn, told = splitting.assign(documents, named, seed)
    return Tables(kind, split_table(joined, drawn), _digest(joined, drawn), notes + told)


def _table(dataset: Any) -> pa.Table:
    """The rows of a data set with media as bytes and class numbers as their names."""
    for column, feature in dataset.features.items():
        if isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video)):
            dataset = dataset.cast_column(column, type(feature)(decode=False))
    table: pa.Table = dataset.with_format("arrow")[:]
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.ClassLabel):
            known = [None if v is None or v < 0 else feature.int2str(v) for v in table.column(column).to_pylist()]
            table = table.set_column(table.schema.get_field_index(column), column, pa.array(known, pa.string()))
    return _with_bytes(table).replace_schema_metadata(None)


def _with_bytes(table: pa.Table) -> pa.Table:
    """Media that the data set left as files on disk, read into the table."""
    for index, field in enumerate(table.schema):
        kind = field.type
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0 or kind.get_field_index("path") < 0:
            continue
        values = []
        for value in table.column(index).to_pylist():
            data = None if value is None else value["bytes"]
            if value is not None and data is None and value["path"] is not None:
                try:
                    with open(value["path"], "rb") as file:
                        data = file.read()
                except OSError as error:
                    raise InputError(
                        f"'{value['path']}' cannot be read ({error.strerror}): download it again"
                    ) from error
            values.append(data)
        table = table.set_column(index, field.name, pa.array(values, pa.binary()))
    return table


def _digest(table: pa.Table, splits: list[str]) -> str:
    digest = hashlib.sha256("\n".join(splits).encode())
    for batch in table.to_batches(max_chunksize=1024):
        digest.update(batch.serialize())
    return digest.hexdigest()
