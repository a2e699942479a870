"""Our own exact index: inverted lists in tensors, no compiled loop of our own, no approximation."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from encyclo.config import Config
from encyclo.errors import InputError
from encyclo.search.hits import Hits, pad
from encyclo.search.vectors import SparseVectors, term_scales

__all__ = ["ExactIndex"]

_BLOCK = 128
"""Documents whose best score stands for all of them in the first round of the top-k."""


@dataclass(frozen=True)
class _Segment:
    """Inverted lists of consecutive documents: those of term j are entries starts[j] to starts[j + 1]."""

    first: int
    count: int
    starts: list[int]
    documents: Int[Tensor, " n"]
    weights: Float[Tensor, " n"] | UInt8[Tensor, " n"]
    scales: list[float] | None
    """Step of each term's 8-bit weights; None: plain float32."""


class ExactIndex:
    """Exact top-k by term-at-a-time accumulation over inverted lists.

    A query costs one scatter-add for each of its terms, then a top-k in two rounds: the k blocks of documents with the
    best block maximum hold the k best documents, so only those blocks are looked into. Both are exact.

    Documents that are added later form segments of their own, merged when the newer is no longer small beside the
    older, so that adding n documents one by one costs O(n log n).

    Args:
        config: see its fields.
        vocabulary: number of terms.
    """

    class Config(Config):
        """How lists are stored."""

        kind: Literal["exact"] = "exact"
        bits: Literal[8, 32] = 32
        """Per weight: float32, or 255 levels of each term's largest weight (within a segment)."""
        device: str = "cpu"

        def build(self, *, vocabulary: int) -> "ExactIndex":
            """An empty index."""
            return ExactIndex(self, vocabulary)

    def __init__(self, config: Config, vocabulary: int) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self._segments: list[_Segment] = []
        self._scores = torch.zeros(0, device=config.device)

    def __len__(self) -> int:
        return self._segments[-1].first + self._segments[-1].count if self._segments else 0

    @property
    def bytes(self) -> int:
        """Bytes of documents, weights and list starts."""
        postings = sum(t.numel() * t.element_size() for part in self._segments for t in (part.documents, part.weights))
        scales = sum(4 * self.vocabulary for part in self._segments if part.scales is not None)
        return postings + scales + 8 * (self.vocabulary + 1) * len(self._segments)

    def add(self, vectors: SparseVectors) -> None:
        """Append documents.

        Raises:
            InputError: vectors over another vocabulary.
        """
        if vectors.vocabulary != self.vocabulary:
            raise InputError(f"vectors over {vectors.vocabulary} terms do not fit an index over {self.vocabulary}")
        if len(vectors) == 0:
            return
        table = _columns(vectors)
        first = len(self)
        while self._segments and self._segments[-1].count <= 2 * table.shape[0]:
            older = self._segments.pop()
            table, first = _stack(self._table(older), table), older.first
        self._segments.append(self._segment(first, table))
        self._scores = torch.zeros(first + table.shape[0], device=self.config.device)

    def search(self, queries: SparseVectors, k: int = 10) -> Hits:
        """The k best documents of each query, exactly.

        Raises:
            InputError: queries over another vocabulary, or k < 1.
        """
        if queries.vocabulary != self.vocabulary:
            raise InputError(f"a query over {queries.vocabulary} terms does not fit an index over {self.vocabulary}")
        if k < 1:
            raise InputError(f"k={k}: ask for at least one document")
        starts, terms, weights = queries.starts.tolist(), queries.terms.tolist(), queries.weights.tolist()
        rows: list[tuple[list[int], list[float]]] = []
        for a, b in pairwise(starts):
            if a == b or not self._segments:
                rows.append(([], []))
            else:
                rows.append(self._best(self._accumulate(terms[a:b], weights[a:b]), k))
        return pad(rows, k)

    def _accumulate(self, terms: list[int], weights: list[float]) -> Float[Tensor, " n"]:
        """Scores of all documents, in a buffer that the next query uses again."""
        scores = self._scores.zero_()
        for part in self._segments:
            mine = scores[part.first : part.first + part.count]
            starts, documents, values, scales = part.starts, part.documents, part.weights, part.scales
            for term, weight in zip(terms, weights, strict=True):
                a, b = starts[term], starts[term + 1]
                if a == b:
                    continue
                if scales is None:
                    mine.index_add_(0, documents[a:b], values[a:b], alpha=weight)
                else:
                    mine.index_add_(0, documents[a:b], values[a:b].float(), alpha=weight * scales[term])
        return scores

    def _best(self, scores: Float[Tensor, " n"], k: int) -> tuple[list[int], list[float]]:
        """The k best of a query that have a score above 0, as plain numbers."""
        n = scores.numel()
        whole = n // _BLOCK
        if k * 4 < whole:
            blocks = scores[: whole * _BLOCK].view(whole, _BLOCK)
            chosen = blocks.amax(dim=1).topk(k, sorted=False).indices
            best, place = torch.cat((blocks[chosen].view(-1), scores[whole * _BLOCK :])).topk(k)
            block = chosen.tolist()
            where = [
                block[p // _BLOCK] * _BLOCK + p % _BLOCK if p < k * _BLOCK else p + (whole - k) * _BLOCK
                for p in place.tolist()
            ]
        else:
            best, there = scores.topk(min(k, n))
            where = there.tolist()
        values = best.tolist()
        if values[-1] <= 0:
            where = where[: sum(value > 0 for value in values)]
            values = values[: len(where)]
        if len(set(values)) < len(values):  # of equals the earlier document first
            order = sorted(range(len(where)), key=lambda i: (-values[i], where[i]))
            return [where[i] for i in order], [values[i] for i in order]
        return where, values

    # -- segments ------------------------------------------------------------------------------------------------------

    def _segment(self, first: int, table: Any) -> _Segment:
        documents = torch.from_numpy(table.indices.astype(np.int32, copy=False))
        weights: Tensor = torch.from_numpy(table.data)
        scales: list[float] | None = None
        if self.config.bits == 8:
            terms = torch.repeat_interleave(
                torch.arange(self.vocabulary), torch.from_numpy(np.diff(table.indptr).astype(np.int64))
            )
            steps = term_scales(terms, weights, self.vocabulary)
            weights = (weights / steps[terms]).round().clamp(1, 255).to(torch.uint8)
            scales = steps.tolist()
        device = self.config.device
        return _Segment(first, table.shape[0], table.indptr.tolist(), documents.to(device), weights.to(device), scales)

    def _table(self, part: _Segment) -> Any:
        """A segment as scipy's CSC matrix [documents, terms]."""
        from scipy.sparse import csc_matrix

        weights = part.weights.float().cpu().numpy()
        starts = np.asarray(part.starts)
        if part.scales is not None:
            weights = weights * np.repeat(np.asarray(part.scales, dtype=np.float32), np.diff(starts))
        return csc_matrix((weights, part.documents.cpu().numpy(), starts), shape=(part.count, self.vocabulary))

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the lists into `folder/lists.safetensors`."""
        tensors: dict[str, Tensor] = {}
        for number, part in enumerate(self._segments):
            tensors[f"{number}.starts"] = torch.tensor(part.starts, dtype=torch.int64)
            tensors[f"{number}.documents"] = part.documents.cpu().contiguous()
            tensors[f"{number}.weights"] = part.weights.cpu().contiguous()
            tensors[f"{number}.count"] = torch.tensor([part.count])
            if part.scales is not None:
                tensors[f"{number}.scales"] = torch.tensor(part.scales, dtype=torch.float64)
        save_file(tensors, folder / "lists.safetensors")

    def load(self, folder: Path) -> None:
        """Take the lists of a folder.

        Raises:
            InputError: damaged, or not of this vocabulary.
        """
        path = folder / "lists.safetensors"
        try:
            tensors = load_file(path)
            self._segments = [self._read(tensors, n, path) for n in range(sum(k.endswith(".count") for k in tensors))]
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(f"'{path}' is damaged ({type(error).__name__}): build the index again") from error
        first = 0
        for number, part in enumerate(self._segments):
            self._segments[number] = _Segment(first, *list(vars(part).values())[1:])
            first += part.count
        self._scores = torch.zeros(first, device=self.config.device)

    def _read(self, tensors: dict[str, Tensor], number: int, path: Path) -> _Segment:
        starts, documents = tensors[f"{number}.starts"], tensors[f"{number}.documents"]
        weights, count = tensors[f"{number}.weights"], int(tensors[f"{number}.count"])
        scales = tensors.get(f"{number}.scales")
        sound = (
            len(starts) == self.vocabulary + 1
            and int(starts[0]) == 0
            and int(starts[-1]) == len(documents) == len(weights)
            and bool((starts.diff() >= 0).all())
            and (len(documents) == 0 or (int(documents.min()) >= 0 and int(documents.max()) < count))
            and (weights.dtype == torch.uint8) == (scales is not None and len(scales) == self.vocabulary)
        )
        if not sound:
            raise InputError(f"'{path}' holds no lists over {self.vocabulary} terms: build the index again")
        device = self.config.device
        return _Segment(
            0,
            count,
            starts.tolist(),
            documents.to(device),
            weights.to(device),
            None if scales is None else scales.tolist(),
        )


def _columns(vectors: SparseVectors) -> Any:
    """Rows turned into inverted lists, as scipy's CSC matrix [documents, terms]; documents rise within a list."""
    from scipy.sparse import csr_matrix

    shape = (len(vectors), vectors.vocabulary)
    return csr_matrix((vectors.weights.numpy(), vectors.terms.numpy(), vectors.starts.numpy()), shape=shape).tocsc()


def _stack(above: Any, below: Any) -> Any:
    from scipy.sparse import vstack

    return vstack((above, below), format="csc")
