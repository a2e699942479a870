"""Seismic (Bruch et al., SIGIR 2024) as an index: approximate, several times faster than exact lists, slow to build."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from encyclo.config import Config
from encyclo.errors import InputError
from encyclo.search.hits import Hits
from encyclo.search.vectors import SparseVectors

__all__ = ["SeismicIndex"]

_SMALL_VOCABULARY = 65_536


class SeismicIndex:
    """Seismic behind the interface of all indexes.

    It has no insertion of its own: `add` keeps the vectors, and the next search builds anew. 100,000 documents take
    about a minute and a half on one core, so that for fewer than about a million the exact index is the better choice.

    Args:
        config: see its fields.
        vocabulary: number of terms.

    Raises:
        InputError: the package is not installed.
    """

    class Config(Config):
        """Seismic's own settings; names and defaults are explained in its guide."""

        kind: Literal["seismic"] = "seismic"
        cut: int = Field(10, ge=1, description="largest terms of a query that are followed")
        heap_factor: float = Field(0.9, ge=0, le=1, description="blocks worse than best / this are skipped; 0: none")
        postings: int = Field(3500, ge=1, description="mean length of an inverted list after pruning")
        centroid_fraction: float = Field(0.1, gt=0, le=1)
        min_cluster: int = Field(2, ge=1)
        summary_energy: float = Field(0.4, gt=0, le=1)

        def build(self, *, vocabulary: int) -> "SeismicIndex":
            """An empty index."""
            return SeismicIndex(self, vocabulary)

    def __init__(self, config: Config, vocabulary: int) -> None:
        try:
            import seismic
        except ImportError:
            raise InputError("the engine 'seismic' is not installed: pip install pyseismic-lsr") from None
        self.config = config
        self.vocabulary = vocabulary
        # the kind that knows terms and documents by their numbers: the other spends its time on strings of 400 bytes
        self._kind: Any = seismic.SeismicIndexRawLV if vocabulary > _SMALL_VOCABULARY else seismic.SeismicIndexRaw
        self._parts: list[SparseVectors] = []
        self._count = 0
        self._index: Any = None

    def __len__(self) -> int:
        return self._count

    @property
    def bytes(self) -> int:
        """Not told by the library; the vectors it was built from stand for it."""
        return sum(part.bytes for part in self._parts)

    def add(self, vectors: SparseVectors) -> None:
        """Append documents; the index is built at the next search or save.

        Raises:
            InputError: vectors over another vocabulary, or an index that was opened without its vectors.
        """
        if vectors.vocabulary != self.vocabulary:
            raise InputError(f"vectors over {vectors.vocabulary} terms do not fit an index over {self.vocabulary}")
        if self._count and not self._parts:
            raise InputError("a saved Seismic index cannot grow: build it again from all vectors")
        if len(vectors):
            self._parts.append(vectors)
            self._count += len(vectors)
            self._index = None

    def build(self) -> None:
        """Build the index now, where it is out of date."""
        if self._index is not None or not self._count:
            return
        rows = SparseVectors.join(self._parts, self.vocabulary)
        self._parts = [rows]
        with tempfile.TemporaryDirectory(prefix="encyclo-") as folder, _silent():
            path = Path(folder) / "rows.bin"
            _rows_for_seismic(rows).tofile(path)
            self._index = self._kind.build(
                str(path),
                n_postings=self.config.postings,
                centroid_fraction=self.config.centroid_fraction,
                min_cluster_size=self.config.min_cluster,
                summary_energy=self.config.summary_energy,
            )

    def search(self, queries: SparseVectors, k: int = 10) -> Hits:
        """The k documents that Seismic finds for each query; scores are its own, from half-precision weights.

        Raises:
            InputError: queries over another vocabulary, or k < 1.
        """
        if queries.vocabulary != self.vocabulary:
            raise InputError(f"a query over {queries.vocabulary} terms does not fit an index over {self.vocabulary}")
        if k < 1:
            raise InputError(f"k={k}: ask for at least one document")
        self.build()
        documents = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        if self._index is not None:
            terms, weights = queries.terms.numpy(), queries.weights.numpy()
            cut, heap, find, known = self.config.cut, self.config.heap_factor, self._index.search, self._index.dim
            for row, (a, b) in enumerate(pairwise(queries.starts.tolist())):
                while b > a and terms[b - 1] >= known:  # a term of no document: they rise, so that it is the last
                    b -= 1
                found = find(terms[a:b], weights[a:b], k, cut, heap, 0, True) if b > a else ()
                found = [hit for hit in found if hit[0] > 0]
                if found:
                    scores[row, : len(found)], documents[row, : len(found)] = zip(*found, strict=True)
        return Hits(torch.from_numpy(documents), torch.from_numpy(scores))

    def save(self, folder: Path) -> None:
        """Write Seismic's own file, `folder/index.seismic`."""
        self.build()
        if self._index is None:
            raise InputError("an empty Seismic index cannot be saved: add documents first")
        with _silent():
            self._index.save(str(folder / "index.seismic"))

    def load(self, folder: Path) -> None:
        """Take the file of a folder.

        Raises:
            InputError: damaged, or not of this vocabulary.
        """
        path = folder / "index.seismic"
        try:
            with _silent():
                self._index = self._kind.load(str(path))
        except (OSError, ValueError) as error:
            raise InputError(f"'{path}' is damaged ({str(error)[:80]}): build the index again") from error
        if self._index.dim > self.vocabulary:
            raise InputError(f"'{path}' is over {self._index.dim} terms, not {self.vocabulary}: build the index again")
        self._count = self._index.len


def _rows_for_seismic(rows: SparseVectors) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Seismic's inner format: the number of rows, then of each its length, its terms and its weights (as float32)."""
    starts, sizes = rows.starts.numpy(), rows.sizes.numpy()
    words = np.empty(1 + len(rows) + 2 * len(rows.terms), dtype=np.uint32)
    words[0] = len(rows)
    first = 1 + np.arange(len(rows)) + 2 * starts[:-1]
    words[first] = sizes
    place = np.arange(len(rows.terms)) + np.repeat(first + 1 - starts[:-1], sizes)
    words[place] = rows.terms.numpy()
    words[place + np.repeat(sizes, sizes)] = rows.weights.numpy().view(np.uint32)
    return words


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The library prints its progress to file descriptor 1, where results belong."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
