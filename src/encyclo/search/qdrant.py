"""Qdrant as an index: in this process without a URL, or on a server or cluster with one; the same code for both."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from encyclo.config import Config
from encyclo.errors import InputError
from encyclo.search.hits import Hits, pad
from encyclo.search.vectors import SparseVectors

__all__ = ["QdrantIndex"]

_VECTOR = "splade"


class QdrantIndex:
    """Qdrant behind the interface of all indexes; scores are exact inner products.

    Without a URL the client's local mode is used, which keeps all in memory and compares with every document: for a few
    thousand at most. Its own files hold pickles, so it is never given a folder; `save` writes the vectors instead.

    Args:
        config: see its fields. The key of a server is read from the environment variable QDRANT_API_KEY and stored
            nowhere.
        vocabulary: number of terms.

    Raises:
        InputError: the package is not installed, or the server does not answer.
    """

    class Config(Config):
        """Where the collection is."""

        kind: Literal["qdrant"] = "qdrant"
        url: str | None = Field(None, description="such as http://localhost:6333; None: local mode")
        collection: str = "encyclo"
        batch: int = Field(512, ge=1, description="documents in one request")

        def build(self, *, vocabulary: int) -> "QdrantIndex":
            """An empty index; a collection of this name on the server is opened as it is."""
            return QdrantIndex(self, vocabulary)

    def __init__(self, config: Config, vocabulary: int) -> None:
        try:
            from qdrant_client import QdrantClient, models
        except ImportError:
            raise InputError("the engine 'qdrant' is not installed: pip install qdrant-client") from None
        self.config = config
        self.vocabulary = vocabulary
        self._models: Any = models
        self._parts: list[SparseVectors] = []
        self._rows: dict[int, int] | None = None
        where = config.url
        try:
            self._client: Any = (
                QdrantClient(":memory:")
                if where is None
                else QdrantClient(url=where, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)
            )
            if not self._client.collection_exists(config.collection):
                self._client.create_collection(
                    config.collection,
                    vectors_config={},
                    sparse_vectors_config={_VECTOR: models.SparseVectorParams()},
                )
        except Exception as error:
            if where is None:
                raise
            raise InputError(
                f"no Qdrant server answers at '{where}' ({type(error).__name__}): start one or check the URL"
            ) from error

    def __len__(self) -> int:
        return int(self._client.count(self.config.collection, exact=True).count)

    @property
    def bytes(self) -> int:
        """Of the vectors held here for saving; a server's memory is its own."""
        return sum(part.bytes for part in self._parts)

    def add(self, vectors: SparseVectors) -> None:
        """Append documents.

        Raises:
            InputError: vectors over another vocabulary.
        """
        if vectors.vocabulary != self.vocabulary:
            raise InputError(f"vectors over {vectors.vocabulary} terms do not fit an index over {self.vocabulary}")
        first = len(self)
        self._send(vectors, list(range(first, first + len(vectors))))

    def bring_to(self, vectors: SparseVectors, numbers: Sequence[int]) -> None:
        """Make the collection hold exactly these documents: what it lacks is sent, what it has beyond them deleted.

        Interrupted, it goes on where it stopped. Searches then count documents by their row in `vectors`.

        Args:
            vectors: one row a document.
            numbers: of each document, distinct and the same every time; a document that changes gets another one.

        Raises:
            InputError: vectors over another vocabulary, or another count of numbers.
        """
        if vectors.vocabulary != self.vocabulary:
            raise InputError(f"vectors over {vectors.vocabulary} terms do not fit an index over {self.vocabulary}")
        if len(numbers) != len(vectors):
            raise InputError(f"{len(numbers)} numbers for {len(vectors)} documents")
        self._rows = {number: row for row, number in enumerate(numbers)}
        there = self._numbers()
        gone = [number for number in there if number not in self._rows]
        for start in range(0, len(gone), self.config.batch):
            chosen = self._models.PointIdsList(points=gone[start : start + self.config.batch])
            self._client.delete(self.config.collection, chosen, wait=True)
        new = [row for row, number in enumerate(numbers) if number not in there]
        if new:
            self._send(vectors.take(torch.tensor(new)), [numbers[row] for row in new])
        self._parts = [vectors] if self.config.url is None else []

    def _numbers(self) -> set[int]:
        """Of all points of the collection."""
        found: set[int] = set()
        place: Any = None
        while True:
            points, place = self._client.scroll(
                self.config.collection, limit=10_000, offset=place, with_payload=False, with_vectors=False
            )
            found.update(point.id for point in points)
            if place is None:
                return found

    def _send(self, vectors: SparseVectors, numbers: list[int]) -> None:
        if self.config.url is None:
            self._parts.append(vectors)
        starts, terms, weights = vectors.starts.tolist(), vectors.terms.tolist(), vectors.weights.tolist()
        points = [
            self._models.PointStruct(
                id=numbers[row],
                vector={_VECTOR: self._models.SparseVector(indices=terms[a:b], values=weights[a:b])},
            )
            for row, (a, b) in enumerate(pairwise(starts))
        ]
        for start in range(0, len(points), self.config.batch):
            self._client.upsert(self.config.collection, points[start : start + self.config.batch], wait=True)

    def search(self, queries: SparseVectors, k: int = 10) -> Hits:
        """The k best documents of each query.

        Raises:
            InputError: queries over another vocabulary, or k < 1.
        """
        if queries.vocabulary != self.vocabulary:
            raise InputError(f"a query over {queries.vocabulary} terms does not fit an index over {self.vocabulary}")
        if k < 1:
            raise InputError(f"k={k}: ask for at least one document")
        rows: list[tuple[list[int], list[float]]] = []
        for row in range(len(queries)):
            terms, weights = queries.row(row)
            found: list[tuple[int, float]] = []
            if len(terms):
                answer = self._client.query_points(
                    self.config.collection,
                    query=self._models.SparseVector(indices=terms.tolist(), values=weights.tolist()),
                    using=_VECTOR,
                    limit=k,
                    with_payload=False,
                )
                named = ((self._row(point.id), point.score) for point in answer.points if point.score > 0)
                found = sorted(((row, score) for row, score in named if row >= 0), key=_by_score)
            rows.append(([number for number, _ in found], [score for _, score in found]))
        return pad(rows, k)

    def _row(self, number: int) -> int:
        """The document behind a point; -1 where another process has put it there since."""
        return number if self._rows is None else self._rows.get(number, -1)

    def save(self, folder: Path) -> None:
        """Write the vectors of a local index; a server keeps its own."""
        if self.config.url is None:
            SparseVectors.join(self._parts, self.vocabulary).save(folder / "vectors.safetensors")

    def load(self, folder: Path) -> None:
        """Take the vectors of a folder; of a server nothing is read."""
        if self.config.url is None:
            self.add(SparseVectors.load(folder / "vectors.safetensors", self.vocabulary))


def _by_score(found: tuple[int, float]) -> tuple[float, int]:
    """Best first; of equals the earlier document."""
    return -found[1], found[0]
