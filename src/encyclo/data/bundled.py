"""The bundled packs: which there are, and what each one's manifest says. Needs neither torch nor datasets."""

import difflib
from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from encyclo.errors import InputError

__all__ = ["Manifest", "PackFile", "manifest", "names", "nearest", "pack_folder"]


class PackFile(BaseModel):
    """One file of a pack.

    Attributes:
        path: relative to the pack's folder.
        split: 'train', 'validation' or 'test'.
        rows: samples in it.
        bytes: its size.
        sha256: its checksum, in hex.
        kinds: the views that read it; empty means all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    split: str
    rows: int
    bytes: int
    sha256: str
    kinds: tuple[str, ...] = ()


class Manifest(BaseModel):
    """Where a pack comes from, what one may do with it, and what it holds.

    Attributes:
        name: the pack's name.
        kind: what it holds, and the view that `load` gives when none is asked for.
        title, description: for people.
        source: where the material was first published.
        package: the Debian package or wheel it was taken from, with its version.
        licence, licence_url, attribution: the terms, and the line that they ask for.
        files: the pack's files.
        rows: samples in each split of the first view.
        script: the committed script that made the pack.
        views: every kind that `load` can give, the first included.
        columns: for a view whose columns do not lie in the files under their own names: column -> template over the
            stored columns, such as '{lemma} ({pos})'.
        rows_by_view: samples in each split of the other views, where they differ from the first's.
        peak: in pictures, the value that means white.
        notes: what a user should know before trusting a number made from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    title: str
    description: str
    source: str
    package: str
    licence: str
    licence_url: str
    attribution: str
    files: tuple[PackFile, ...]
    rows: dict[str, int]
    script: str
    views: tuple[str, ...]
    columns: dict[str, dict[str, str]] = {}
    rows_by_view: dict[str, dict[str, int]] = {}
    peak: int = 255
    notes: tuple[str, ...] = ()


def _root() -> Path:
    return Path(str(files("encyclo.data"))) / "packs"


def pack_folder(name: str) -> Path:
    """The folder of a pack's files."""
    return _root() / name


def names() -> list[str]:
    """The names of the bundled packs, sorted."""
    return sorted(path.parent.name for path in _root().glob("*/manifest.json"))


@cache
def manifest(name: str) -> Manifest:
    """The manifest of a bundled pack.

    Raises:
        InputError: an unknown name (the nearest is suggested), or a manifest that is damaged.
    """
    if name not in names():
        raise InputError(f"there is no data set '{name}'{nearest(name)}; the bundled ones are {', '.join(names())}")
    try:
        return Manifest.model_validate_json((pack_folder(name) / "manifest.json").read_bytes())
    except (ValidationError, OSError) as error:
        raise InputError(f"the manifest of pack '{name}' is damaged: install encyclo again") from error


def nearest(name: str) -> str:
    """', did you mean X?' with the bundled pack whose name is nearest, or nothing when none is near."""
    close = difflib.get_close_matches(name.lower(), names(), n=1)
    return f", did you mean '{close[0]}'?" if close else ""
