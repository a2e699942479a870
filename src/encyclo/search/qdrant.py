"""Qdrant as an index: in this process without a URL, or on a server or cluster with one; the same code for both."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

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
        if self.config.url is None:
            self._parts.append(vectors)
        starts, terms, weights = vectors.starts.tolist(), vectors.terms.tolist(), vectors.weights.tolist()
        points = [
            self._models.PointStruct(
                id=first + row,
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
                found = sorted(((p.id, p.score) for p in answer.points if p.score > 0), key=lambda p: (-p[1], p[0]))
            rows.append(([number for number, _ in found], [score for _, score in found]))
        return pad(rows, k)

    def save(self, folder: Path) -> None:
        """Write the vectors of a local index; a server keeps its own."""
        if self.config.url is None:
            SparseVectors.join(self._parts, self.vocabulary).save(folder / "vectors.safetensors")

    def load(self, folder: Path) -> None:
        """Take the vectors of a folder; of a server nothing is read."""
        if self.config.url is None:
            self.add(SparseVectors.load(folder / "vectors.safetensors", self.vocabulary))
