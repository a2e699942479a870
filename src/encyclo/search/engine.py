"""The choice among engines, and their folders on disk."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from encyclo.errors import InputError
from encyclo.search.exact import ExactIndex
from encyclo.search.hits import SparseIndex
from encyclo.search.qdrant import QdrantIndex
from encyclo.search.seismic import SeismicIndex

__all__ = ["Engine", "load_index", "save_index"]

Engine = Annotated[ExactIndex.Config | SeismicIndex.Config | QdrantIndex.Config, Field(discriminator="kind")]
"""Which index to use: `exact`, `seismic` or `qdrant`."""

_MANIFEST = "engine.json"


def save_index(index: SparseIndex, folder: Path) -> Path:
    """Write an index into a folder, which appears whole or not at all (one that is there is replaced).

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / _MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"'{folder}' is no index: name a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        index.save(staged)
        files = {path.name: _digest(path) for path in sorted(staged.iterdir())}
        config: Any = index.config  # type: ignore[attr-defined]
        manifest = {
            "format": 1,
            "vocabulary": index.vocabulary,
            "documents": len(index),
            "config": config.model_dump(mode="json"),
            "files": files,
        }
        (staged / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        os.chmod(staged, 0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def load_index(folder: Path) -> Any:
    """Open an index that `save_index` wrote; its files are checked against their checksums first.

    Raises:
        InputError: no index, damaged, or of an engine that is not installed.
    """
    path = Path(folder) / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        config: Any = TypeAdapter(Engine).validate_python(manifest["config"])
        vocabulary, files = int(manifest["vocabulary"]), dict(manifest["files"])
    except FileNotFoundError:
        raise InputError(f"'{folder}' holds no index ({_MANIFEST} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"'{path}' is damaged ({type(error).__name__}): build the index again") from error
    for name, digest in files.items():
        file = Path(folder) / Path(name).name
        if not file.is_file() or _digest(file) != digest:
            raise InputError(f"'{file}' is damaged (its checksum differs): build the index again")
    index = config.build(vocabulary=vocabulary)
    index.load(Path(folder))
    return index


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
