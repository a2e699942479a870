"""What a search gives back, and what every index can do."""

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from encyclo.search.vectors import SparseVectors

__all__ = ["Hits", "SparseIndex", "pad"]


class Hits(NamedTuple):
    """The best documents of each query, by falling score; of equals the earlier document first."""

    documents: Int64[Tensor, "q k"]
    """Numbers in the order of `add`; -1 where a query shares a term with fewer than k documents."""
    scores: Float[Tensor, "q k"]
    """Inner products; 0 beside -1."""


@runtime_checkable
class SparseIndex(Protocol):
    """Finds the rows with the largest inner product to a sparse query.

    A row that shares no term with the query is never found, so that an empty query finds nothing.
    """

    vocabulary: int

    def __len__(self) -> int:
        """Documents in the index."""
        ...

    @property
    def bytes(self) -> int:
        """Memory (of a server: nothing) that the index takes."""
        ...

    def add(self, vectors: SparseVectors) -> None:
        """Append documents; they are numbered on from those that are there."""
        ...

    def search(self, queries: SparseVectors, k: int = 10) -> Hits:
        """The k best documents of each query."""
        ...

    def save(self, folder: Path) -> None:
        """Write the index into a folder, which `encyclo.search.engine.load_index` opens."""
        ...


def pad(rows: list[tuple[list[int], list[float]]], k: int) -> Hits:
    """Lists of different lengths as one table."""
    documents = np.full((len(rows), k), -1, dtype=np.int64)
    scores = np.zeros((len(rows), k), dtype=np.float32)
    for row, (found, values) in enumerate(rows):
        documents[row, : len(found)] = found
        scores[row, : len(values)] = values
    return Hits(torch.from_numpy(documents), torch.from_numpy(scores))
