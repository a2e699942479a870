"""Checkpoints: tensors in safetensors, the rest in JSON, whole or absent.

A checkpoint is a folder `STAGE-STEP` with

    model.safetensors       parameters and buffers, by their names in the model
    average.safetensors     the running average of the parameters, where there is one
    optimiser.safetensors   OBJECTIVE:PARAMETER:SLOT, and the tensors of the state as `state:N`
    state.json              everything else, and the size and checksum of each file

It is written to a temporary folder, forced to the disk and renamed: a name without a leading dot is a whole checkpoint,
unless the disk itself failed, which the checksums tell.
"""

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9_.-]*[A-Za-z0-9_]")
"""What a stage may be called: it is part of a folder's name."""
WRITING, REMOVING = ".writing-", ".removing-"
FULL = {errno.ENOSPC, errno.EDQUOT}


class Damaged(Exception):
    """A checkpoint that is not what was written."""


class NotWritten(Exception):
    """A checkpoint could not be written; those before it are untouched. The message is the reason."""


def write(root: Path, name: str, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint `name` under `root`: a safetensors file for each of `files`, and `state`.

    Tensors inside `state` go to `optimiser.safetensors`.

    Raises:
        NotWritten: a full disk, a folder that may not be written.
    """
    temporary, target = root / (WRITING + name), root / name
    tree, loose = lift(state)
    contents = {file: dict(tensors) for file, tensors in files.items()}
    contents.setdefault("optimiser", {}).update(loose)
    try:
        with reasons():
            _remove(temporary)
            temporary.mkdir(parents=True)
            sums = {}
            for file, tensors in contents.items():
                path = temporary / f"{file}.safetensors"
                save_file(plain(tensors), path)
                _sync(path)
                sums[path.name] = {"bytes": path.stat().st_size, "crc32": _checksum(path)}
            record: dict[str, Any] = {"format": FORMAT, "files": sums, **tree}
            record["crc32"] = _json_checksum(record)
            path = temporary / "state.json"
            path.write_text(json.dumps(record), encoding="utf-8")
            _sync(path)
            _sync(temporary)
            _remove(target)
            temporary.rename(target)
            _sync(root)
    except NotWritten:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def read(path: Path, check: bool = True) -> dict[str, Any]:
    """The state of a checkpoint, all its files checked (unless another process has).

    Raises:
        Damaged: a file that is missing, cut short or altered.
    """
    try:
        record = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.pop("crc32", None) != _json_checksum(record):
            raise Damaged("state.json is altered")
        if record["format"] != FORMAT:
            raise Damaged(f"its format is {record['format']}, this version reads {FORMAT}")
        for name, expected in record["files"].items():
            file = path / name
            if not file.exists():
                raise Damaged(f"{name} is missing")
            if file.stat().st_size != expected["bytes"] or (check and _checksum(file) != expected["crc32"]):
                raise Damaged(f"{name} is altered")
        loose = load_file(path / "optimiser.safetensors")
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is missing") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise Damaged(str(error)) from None
    state = lower(record, {name: tensor.clone() for name, tensor in loose.items()})
    assert isinstance(state, dict)
    return state


def tensors(path: Path, file: str) -> dict[str, Tensor]:
    """One file of a checkpoint; the tensors lie in the file itself, to be copied from."""
    return load_file(path / f"{file}.safetensors")


def found(root: Path, stage: str | None = None) -> list[Path]:
    """The checkpoints under `root` (of one stage), newest first."""
    if not root.is_dir():
        return []
    steps = {}
    for path in root.iterdir():
        name, _, step = path.name.rpartition("-")
        if path.is_dir() and step.isdigit() and not path.name.startswith(".") and stage in (None, name):
            steps[path] = int(step)
    return sorted(steps, key=lambda path: steps[path], reverse=True)


def newest(root: Path, stage: str, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest good checkpoint of a stage with its state; every damaged one on the way is told of."""
    for path in found(root, stage):
        try:
            return path, read(path)
        except Damaged as error:
            say(f"checkpoint {path} is damaged ({error}): skipped for the one before")
    return None


def prune(root: Path, stage: str, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a stage."""
    for path in found(root, stage)[keep:]:
        _remove(path)


def clean(root: Path) -> None:
    """Remove what a killed run left half written or half removed."""
    if root.is_dir():
        for path in root.iterdir():
            if path.name.startswith((WRITING, REMOVING)):
                shutil.rmtree(path, ignore_errors=True)


def lift(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """A tree for JSON, with the tensors taken out of it, by number."""
    taken: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            key = f"state:{len(taken)}"
            taken[key] = value
            return {"tensor": key}
        if isinstance(value, Mapping):
            return {str(name): walk(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [walk(item) for item in value]
        return value.item() if hasattr(value, "item") else value  # numbers of numpy

    return walk(tree), taken


def lower(tree: Any, taken: Mapping[str, Tensor]) -> Any:
    """The tree with its tensors put back."""
    if isinstance(tree, Mapping):
        if set(tree) == {"tensor"}:
            return taken[tree["tensor"]]
        return {name: lower(item, taken) for name, item in tree.items()}
    return [lower(item, taken) for item in tree] if isinstance(tree, list) else tree


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, each with a memory of its own, as safetensors wants them."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


@contextmanager
def reasons() -> Iterator[None]:
    """Tell of errors of the file system as `NotWritten`, in plain words."""
    try:
        yield
    except OSError as error:
        full = error.errno in FULL
        raise NotWritten("the disk is full" if full else f"{error.filename or 'the disk'}: {error.strerror}") from error
    except SafetensorError as error:  # it wraps what the system said
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        number = int(code.group(1))
        raise NotWritten("the disk is full" if number in FULL else os.strerror(number)) from error


def _remove(path: Path) -> None:
    """Remove a folder that other runs may look at: first by name, at one stroke, then its files."""
    if path.exists():
        doomed = path if path.name.startswith(".") else path.with_name(REMOVING + path.name)
        if doomed != path:
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def _json_checksum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
