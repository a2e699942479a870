"""A folder of texts as an index on disk: grown file by file, never half written, never encoding anything twice.

On disk: `index.json` (the state; replaced whole after every segment), `segments/NAME/` with the vectors and the
passages they stand for, and `engines/` with what engines keep (it can be deleted).
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool
from torch import Tensor

from encyclo.data.sniff import HEAD, kind_of_bytes
from encyclo.data.text import decode
from encyclo.errors import InputError
from encyclo.search.engine import load_index, save_index
from encyclo.search.exact import ExactIndex
from encyclo.search.passages import cut_passages
from encyclo.search.qdrant import QdrantIndex
from encyclo.search.vectors import SparseVectors

__all__ = ["SUFFIXES", "Encode", "IndexBar", "Passage", "TextIndex", "Update", "passage"]

SUFFIXES = (".txt", ".md", ".rst", ".text", ".org", ".adoc", ".tex")
"""Files that are read; others are left out and counted."""

Encode = Callable[[Sequence[str]], SparseVectors]
"""Texts -> one sparse vector each."""

_STATE = "index.json"
_LOCK = "lock"
_STAGED = ".state-"
_FIRST, _MOST, _SECONDS = 32, 8192, 10.0
"""Passages of the first segment and of the largest, and how long one should take: what a kill may cost."""
_COLUMNS = pa.schema(
    [
        ("file", pa.string()),
        ("digest", pa.string()),
        ("number", pa.int64()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("text", pa.string()),
    ]
)


class Passage(NamedTuple):
    """A stretch of a file."""

    file: str
    """Path below the folder of texts."""
    start: int
    end: int
    """In characters of the decoded file."""
    text: str


@dataclass
class Update:
    """What one call of `TextIndex.update` did, in passages and files."""

    encoded: int = 0
    kept: int = 0
    removed: int = 0
    files: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Segment:
    name: str
    vectors: SparseVectors
    table: pa.Table


class TextIndex:
    """Passages of a folder of texts with their vectors.

    The index belongs to one model: it stores a hash of the tokenizer's vocabulary and a fingerprint of the model, and
    refuses any other.

    Args:
        folder: of the index; made if missing.
        tokenizer: hash of the vocabulary that terms are numbered by.
        model: fingerprint of what encodes.
        vocabulary: number of terms.
        words: most words of a passage.

    Raises:
        InputError: the folder holds something else, a damaged index, or one made with another tokenizer or model.
    """

    def __init__(self, folder: str | Path, *, tokenizer: str, model: str, vocabulary: int, words: int = 80) -> None:
        self.folder = Path(folder)
        self.vocabulary = vocabulary
        fresh = {
            "format": 1,
            "tokenizer": tokenizer,
            "model": model,
            "vocabulary": vocabulary,
            "words": words,
            "files": {},
            "segments": {},
        }
        self._state = self._read(fresh)
        for name, what in (("tokenizer", "another tokenizer"), ("model", "another model"), ("words", "other passages")):
            if self._state[name] != fresh[name]:
                raise InputError(
                    f"the index '{self.folder}' was made with {what} ({self._state[name]}, not {fresh[name]}):"
                    " name another index or delete it"
                )
        self._segments: list[_Segment] = []
        self._reload()

    # -- state -------------------------------------------------------------------------------------------------------

    def _read(self, fresh: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / _STATE
        if not path.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(map(_foreign, self.folder.iterdir()))):
                raise InputError(f"'{self.folder}' is no index: name a new or empty folder")
            return fresh
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"'{path}' is damaged: delete the index and build it again") from error
        if not isinstance(state, dict) or not fresh.keys() <= state.keys() or state["format"] != 1:
            raise InputError(f"'{path}' is no index that this version reads: delete it and build it again")
        return state

    def _commit(self) -> None:
        path = self.folder / _STATE
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=_STAGED)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(self._state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)

    def _reload(self) -> None:
        """Read the segments that the state names."""
        known = {segment.name: segment for segment in self._segments}
        self._segments = [known.get(name) or self._load(name) for name in self._state["segments"]]

    def _load(self, name: str) -> _Segment:
        place = self.folder / "segments" / Path(name).name
        vectors = SparseVectors.load(place / "vectors.safetensors", self.vocabulary)
        try:
            table = pq.read_table(place / "passages.parquet", schema=_COLUMNS)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"'{place}' is damaged: delete the index '{self.folder}' and build it again") from error
        if table.num_rows != len(vectors):
            raise InputError(f"'{place}' is damaged: delete the index '{self.folder}' and build it again")
        return _Segment(name, vectors, table)

    def _write(self, vectors: SparseVectors, table: pa.Table) -> _Segment:
        """A new segment on disk; it counts once the state names it."""
        name = uuid.uuid4().hex[:12]
        root = self.folder / "segments"
        root.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=root, prefix=".new-"))
        try:
            vectors.save(staged / "vectors.safetensors")
            pq.write_table(table, staged / "passages.parquet", compression="zstd")
            for path in staged.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            os.chmod(staged, 0o755)
            os.replace(staged, root / name)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return _Segment(name, vectors, table)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time, where the system has file locks; others wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("w") as file:
            with contextlib.suppress(ImportError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # -- what is in it -------------------------------------------------------------------------------------------------

    def _live(self, segment: _Segment) -> Bool[Tensor, " n"]:
        """Which passages of a segment belong to the present content of their files."""
        current = pa.array([f"{entry['digest']}{name}" for name, entry in self._state["files"].items()], pa.string())
        keys = pc.binary_join_element_wise(segment.table.column("digest"), segment.table.column("file"), "")
        alive = pc.is_in(keys, value_set=current).combine_chunks()
        return torch.from_numpy(alive.to_numpy(zero_copy_only=False).copy())

    def contents(self) -> tuple[SparseVectors, pa.Table]:
        """Vectors and passages that are alive, row by row."""
        vectors: list[SparseVectors] = []
        tables: list[pa.Table] = []
        for segment in self._segments:
            rows = self._live(segment).nonzero().squeeze(1)
            whole = len(rows) == segment.table.num_rows
            vectors.append(segment.vectors if whole else segment.vectors.take(rows))
            tables.append(segment.table if whole else segment.table.take(pa.array(rows.numpy())))
        table = pa.concat_tables(tables) if tables else _COLUMNS.empty_table()
        return SparseVectors.join(vectors, self.vocabulary), table

    def __len__(self) -> int:
        return sum(int(self._live(segment).sum()) for segment in self._segments)

    # -- growing -----------------------------------------------------------------------------------------------------

    def update(
        self,
        source: str | Path,
        encode: Encode,
        *,
        segment: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Update:
        """Bring the index in line with a folder (or one file) of texts.

        Only passages that are new are encoded. Each segment is committed when it is done, so that an interruption
        costs at most one.

        Args:
            source: the texts.
            encode: texts -> vectors.
            segment: passages encoded between two commits; None: as many as take about ten seconds.
            progress: called with (encoded so far, all that must be encoded).

        Raises:
            InputError: no such folder, or no text in it.
        """
        with self._alone():
            path = self.folder / _STATE
            if path.is_file():  # another process may have gone on since this one read it
                self._state = self._read(self._state)
                self._reload()
            done, waiting = Update(), _Waiting()
            self._scan(Path(source), waiting, done)
            size = segment or _FIRST
            while done.encoded < len(waiting.rows):
                if progress is not None:
                    progress(done.encoded, len(waiting.rows))
                began = time.monotonic()
                rows = waiting.rows[done.encoded : done.encoded + size]
                made = self._write(encode([row["text"] for row in rows]), pa.Table.from_pylist(rows, schema=_COLUMNS))
                self._segments.append(made)
                self._state["segments"][made.name] = len(rows)
                self._commit()
                done.encoded += len(rows)
                if segment is None:
                    fitting = int(size * _SECONDS / max(time.monotonic() - began, 1e-3))
                    size = max(8, min(fitting, 4 * size, _MOST))
            if progress is not None and waiting.rows:
                progress(len(waiting.rows), len(waiting.rows))
            self._compact()
            return done

    def _scan(self, source: Path, waiting: "_Waiting", done: Update) -> None:
        """Find what must be encoded, and note which content of which file now counts."""
        root = source if source.is_dir() else source.parent
        found, other = _texts(source)
        there = {path.relative_to(root).as_posix(): path for path in found}
        finished: dict[tuple[str, str], set[int]] = {}
        for part in self._segments:
            columns = (part.table.column(name).to_pylist() for name in ("file", "digest", "number"))
            for name, digest, number in zip(*columns, strict=True):
                finished.setdefault((name, digest), set()).add(number)
        before, files = self._state["files"], dict[str, Any]()
        flawed: list[str] = []
        undecodable = 0
        for name, path in there.items():
            stamp = path.stat()
            known = before.get(name)
            same = known is not None and known["size"] == stamp.st_size and known["time"] == stamp.st_mtime_ns
            if same and len(finished.get((name, known["digest"]), ())) == known["passages"]:
                files[name] = known
                done.kept += known["passages"]
                continue
            content = path.read_bytes()
            kind = kind_of_bytes(content[:HEAD])
            text, bad = decode(content)
            if (kind is not None and bad) or "\x00" in text:
                flawed.append(name)
                continue
            undecodable += bad
            digest = hashlib.sha256(content).hexdigest()[:32]
            spans = cut_passages(text, words=self._state["words"])
            have = finished.get((name, digest), set())
            done.kept += len(have)
            files[name] = {
                "digest": digest,
                "size": stamp.st_size,
                "time": stamp.st_mtime_ns,
                "passages": len(spans),
            }
            for number, (start, end) in enumerate(spans):
                if number not in have:
                    waiting.rows.append(
                        {
                            "file": name,
                            "digest": digest,
                            "number": number,
                            "start": start,
                            "end": end,
                            "text": text[start:end],
                        }
                    )
        if not any(entry["passages"] for entry in files.values()):
            raise InputError(f"'{source}' holds no text: give a folder with {', '.join(SUFFIXES[:3])} files")
        was = len(self)
        self._state["files"] = files
        done.removed, done.files = was - len(self), len(files)
        self._commit()
        if other:
            done.notes.append(f"{other} files that are no prose left out of the index")
        if flawed:
            done.notes.append(f"{len(flawed)} files that are no text left out of the index (first: '{flawed[0]}')")
        if undecodable:
            done.notes.append(f"{undecodable} bytes could not be decoded as UTF-8 and became U+FFFD")

    def _compact(self, *, most: int = 32) -> None:
        """One segment for all, where there are many or half of what they hold is dead; then clear what is not named."""
        held = sum(segment.table.num_rows for segment in self._segments)
        if len(self._segments) > most or (held and len(self) * 2 < held):
            whole = self._write(*self.contents())
            self._segments = [whole]
            self._state["segments"] = {whole.name: whole.table.num_rows}
            self._commit()
        # what is not named was left by a process that was killed, as nobody else writes now
        for path in (self.folder / "segments").glob("*"):
            if path.name not in self._state["segments"]:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(f"{_STAGED}*"):
            path.unlink(missing_ok=True)

    # -- searching -----------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Changes when what a search can find changes."""
        files = {name: entry["digest"] for name, entry in self._state["files"].items()}
        text = json.dumps([self._state["model"], sorted(self._state["segments"].items()), files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def engine(self, config: Any, *, top: int | None = None) -> tuple[Any, SparseVectors, pa.Table]:
        """An engine over all passages, ready to search, with the vectors and passages that its row numbers mean.

        The exact one is built each time, in a tenth of a second for 100,000 passages. Seismic is kept in the index
        folder until a passage changes; a Qdrant server is only told what is new and what is gone.

        Args:
            config: which engine.
            top: keep so many terms of a passage; None keeps all.
        """
        vectors, table = self.contents()
        if top is not None:
            vectors = vectors.top(top)
        if isinstance(config, QdrantIndex.Config):
            place = hashlib.sha256(f"{self.folder.resolve()} {self._state['model']} {top}".encode()).hexdigest()[:16]
            server = config.replace(collection=f"{config.collection}-{place}").build(vocabulary=self.vocabulary)
            server.bring_to(vectors, _point_numbers(table))
            return server, vectors, table
        if isinstance(config, ExactIndex.Config):
            return self._made(config, vectors), vectors, table
        mark = hashlib.sha256(f"{self.fingerprint()} {top}".encode()).hexdigest()[:16]
        place = self.folder / "engines" / f"{config.kind}-{config.fingerprint()}-{mark}"  # type: ignore[assignment]
        if place.is_dir():  # type: ignore[attr-defined]
            with contextlib.suppress(InputError):  # damaged: built again
                return load_index(place), vectors, table  # type: ignore[arg-type]
        with self._alone():
            made = self._made(config, vectors)
            for old in [*place.parent.glob(f"{config.kind}-*"), *place.parent.glob(".*")]:  # type: ignore[attr-defined]
                shutil.rmtree(old, ignore_errors=True)
            save_index(made, place)  # type: ignore[arg-type]
        return made, vectors, table

    def _made(self, config: Any, vectors: SparseVectors) -> Any:
        index = config.build(vocabulary=self.vocabulary)
        index.add(vectors)
        return index


def _point_numbers(table: pa.Table) -> list[int]:
    """A number of 63 bits for each passage that stays the same as long as its file does."""
    keys = zip(*(table.column(name).to_pylist() for name in ("file", "digest", "number")), strict=True)
    return [
        int.from_bytes(hashlib.blake2b(f"{file}\0{digest}\0{number}".encode(), digest_size=8).digest()) >> 1
        for file, digest, number in keys
    ]


def _foreign(path: Path) -> bool:
    """Whether a file of a folder without a state was put there by somebody else than a killed update."""
    return path.name != _LOCK and not path.name.startswith(_STAGED)


@dataclass
class _Waiting:
    rows: list[dict[str, Any]] = field(default_factory=list)


def _texts(source: Path) -> tuple[list[Path], int]:
    """Files of prose below a folder, and how many others there are; hidden ones are not looked at."""
    if source.is_file():
        return [source], 0
    if not source.is_dir():
        raise InputError(f"there is no folder of texts '{source}'")
    seen = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]
    prose = [path for path in seen if path.suffix.lower() in SUFFIXES]
    return prose, len(seen) - len(prose)


def passage(table: pa.Table, row: int) -> Passage:
    """One row of the passages."""
    values = table.slice(row, 1).to_pylist()[0]
    return Passage(values["file"], values["start"], values["end"], values["text"])


class IndexBar:
    """A bar on the error output, where that is a terminal and the work takes longer than two seconds.

    Call it with (done, total); `close` takes it away.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._after = time.monotonic() + 2.0 if sys.stderr.isatty() else float("inf")
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is."""
        if self._bar is None and time.monotonic() >= self._after and done < total:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self.label, total=total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._after = float("inf")
