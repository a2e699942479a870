"""Files that are either whole or absent: write beside the target, then rename."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from encyclo.errors import InputError

__all__ = ["atomic_path", "write_bytes"]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Lend a temporary path with the suffix of `path`; rename it to `path` on success, remove it on any error.

    The temporary file lies in the target's own folder, because a rename is atomic only within one file system.

    Raises:
        InputError: when the target's folder is missing or may not be written.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"'{target}' is a folder: name a file to write")
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    except OSError as error:
        reason = "no such folder" if not target.parent.is_dir() else error.strerror
        raise InputError(f"cannot write '{target}': {reason}; choose another place") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files only their owner can read
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(data: bytes, path: str | Path) -> None:
    """Write `data` to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
