"""A data set as ordinary files that `load` reads back: for other programs, and for looking at it."""

import io
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from encyclo.data.columns import MEDIA
from encyclo.data.sniff import HEAD, kind_of_bytes
from encyclo.data.splits import load
from encyclo.errors import InputError

__all__ = ["export"]

_SUFFIXES = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"fLaC", ".flac"),
    (b"ID3", ".mp3"),
    (b"\x1aE\xdf\xa3", ".mkv"),
)
_USUAL = {"image": ".png", "audio": ".g722", "video": ".mp4"}


def export(spec: str, folder: str | Path) -> int:
    """Write a data set out as ordinary files.

    Pictures, sounds and videos as they are stored, FOLDER/SPLIT/[LABEL/]NUMBER.SUFFIX, with captions and other columns
    in FOLDER/SPLIT/metadata.jsonl; pictures whose white is not 255 are stretched, and written as PNG. Texts, pairs and
    tables become FOLDER/SPLIT/rows.jsonl. `load(FOLDER)` gives the same splits.

    Args:
        spec: as for `load`.
        folder: made; it must not exist, or be empty. It appears whole or not at all.

    Returns:
        How many files were written.

    Raises:
        InputError: what `load` refuses; a stream; a folder that holds something already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"'{folder}' is there already and not empty: name a new folder")
    data = load(spec)
    if data.streaming:
        raise InputError(f"'{spec}' is a stream of shards: export them one by one")
    parent = folder.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=parent))
    except OSError as error:
        raise InputError(f"cannot write '{folder}': {error.strerror}; choose another place") from None
    try:
        count = 0
        for split in ("train", "validation", "test"):
            rows: Any = getattr(data, split)
            if len(rows):
                (staged / split).mkdir()
                write = _media if data.kind in MEDIA else _records
                count += write(rows, staged / split, data.kind, data.peak)
        staged.chmod(0o755)  # mkdtemp makes folders only their owner can enter
        if folder.exists():
            folder.rmdir()
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return count


def _records(rows: Any, folder: Path, kind: str, peak: int) -> int:
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return 1


def _media(rows: Any, folder: Path, kind: str, peak: int) -> int:
    width = len(str(len(rows) - 1))
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            content = row.pop(kind)
            if kind == "image" and peak != 255:
                content = _stretched(content, peak)
            label = row.get("label")
            name = f"{number:0{width}d}{_suffix(content, kind)}"
            if label is not None:
                name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', str(label)).strip('.') or '_'}/{name}"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
            known = {key: value for key, value in row.items() if value is not None and key != "file_name"}
            file.write(json.dumps({"file_name": name, **known}, ensure_ascii=False) + "\n")
    return len(rows) + 1


def _suffix(content: bytes, kind: str) -> str:
    head = content[:HEAD]
    if head[:4] == b"RIFF":
        return {b"WEBP": ".webp", b"WAVE": ".wav"}.get(head[8:12], ".avi")
    if head[:4] == b"OggS":
        return ".ogv" if kind_of_bytes(head) == "video" else ".opus" if b"OpusHead" in head else ".ogg"
    return next((suffix for start, suffix in _SUFFIXES if head.startswith(start)), _USUAL[kind])


def _stretched(content: bytes, peak: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(content)) as opened:
        opened.point([min(255, round(value * 255 / peak)) for value in range(256)] * len(opened.getbands())).save(
            out, format="PNG"
        )
    return out.getvalue()
