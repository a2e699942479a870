"""Many sparse vectors as one compressed table of rows (CSR), and what makes them smaller."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from encyclo.errors import InputError

__all__ = ["SparseVectors"]


@dataclass(frozen=True)
class SparseVectors:
    """Rows of (term, weight), on the CPU: row i is `terms[starts[i]:starts[i + 1]]` with the weights beside them.

    Within a row the terms rise and no weight is zero.
    """

    starts: Int[Tensor, " rows_and_one"]
    """int64."""
    terms: Int[Tensor, " entries"]
    """int32."""
    weights: Float[Tensor, " entries"]
    """float32."""
    vocabulary: int
    """Terms are numbered from 0 to this, exclusive."""

    # -- making ------------------------------------------------------------------------------------------------------

    @classmethod
    def empty(cls, vocabulary: int) -> "SparseVectors":
        """No rows."""
        return cls(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0), vocabulary)

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "rows vocabulary"]) -> "SparseVectors":
        """The non-zero entries of a dense table."""
        rows, terms = dense.nonzero(as_tuple=True)
        weights = dense[rows, terms].float().cpu()
        return cls(_starts(rows.cpu(), dense.shape[0]), terms.int().cpu(), weights, dense.shape[1])

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[int, float]], vocabulary: int) -> "SparseVectors":
        """One mapping from term to weight a row; zeros are left out."""
        lists = [sorted((term, weight) for term, weight in row.items() if weight) for row in rows]
        flat = [entry for row in lists for entry in row]
        terms = torch.tensor([term for term, _ in flat], dtype=torch.int32)
        if terms.numel() and (int(terms.min()) < 0 or int(terms.max()) >= vocabulary):
            raise InputError(f"a term lies outside the vocabulary of {vocabulary}")
        weights = torch.tensor([weight for _, weight in flat], dtype=torch.float32)
        sizes = torch.tensor([0, *map(len, lists)], dtype=torch.int64)
        return cls(sizes.cumsum(0), terms, weights, vocabulary)

    @classmethod
    def join(cls, parts: Sequence["SparseVectors"], vocabulary: int) -> "SparseVectors":
        """The rows of all parts, in order."""
        if any(part.vocabulary != vocabulary for part in parts):
            raise InputError("sparse vectors over different vocabularies cannot be joined")
        if not parts:
            return cls.empty(vocabulary)
        sizes = torch.cat([part.sizes for part in parts])
        starts = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
        return cls(starts, torch.cat([p.terms for p in parts]), torch.cat([p.weights for p in parts]), vocabulary)

    # -- reading -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> Int[Tensor, " rows"]:
        """Entries of each row."""
        return self.starts.diff()

    @property
    def row_numbers(self) -> Int[Tensor, " entries"]:
        """The row that each entry belongs to."""
        return torch.repeat_interleave(torch.arange(len(self)), self.sizes)

    @property
    def bytes(self) -> int:
        """Memory that the three tensors take."""
        return sum(t.numel() * t.element_size() for t in (self.starts, self.terms, self.weights))

    def row(self, index: int) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Terms and weights of one row."""
        first, last = int(self.starts[index]), int(self.starts[index + 1])
        return self.terms[first:last], self.weights[first:last]

    def dense(self) -> Float[Tensor, "rows vocabulary"]:
        """The table with its zeros."""
        table = torch.zeros(len(self), self.vocabulary)
        table[self.row_numbers, self.terms.long()] = self.weights
        return table

    def take(self, rows: Int[Tensor, " n"]) -> "SparseVectors":
        """Some rows, in the order given."""
        sizes = self.sizes[rows]
        starts = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
        inner = torch.arange(int(starts[-1])) - torch.repeat_interleave(starts[:-1], sizes)
        entries = torch.repeat_interleave(self.starts[:-1][rows], sizes) + inner
        return SparseVectors(starts, self.terms[entries], self.weights[entries], self.vocabulary)

    def dot(self, other: "SparseVectors") -> Float[Tensor, "rows others"]:
        """All inner products, [rows of self, rows of other]."""
        shares = self.dense()[:, other.terms.long()] * other.weights
        return torch.zeros(len(self), len(other)).index_add_(1, other.row_numbers, shares)

    def probabilities(self) -> Float[Tensor, " vocabulary"]:
        """Share of the rows in which each term is active."""
        return torch.bincount(self.terms, minlength=self.vocabulary).float() / max(len(self), 1)

    # -- making smaller ------------------------------------------------------------------------------------------------

    def top(self, k: int) -> "SparseVectors":
        """The k largest weights of each row; of equals the smaller term stays."""
        rows = self.row_numbers
        order = self.weights.argsort(descending=True, stable=True)
        order = order[rows[order].argsort(stable=True)]
        place = torch.arange(len(order)) - self.starts[:-1][rows[order]]
        return self._keep(order[place < k].sort().values)

    def above(self, threshold: float) -> "SparseVectors":
        """Only weights greater than a threshold."""
        return self._keep((self.weights > threshold).nonzero().squeeze(1))

    def eight_bit(self) -> "SparseVectors":
        """Weights rounded to 255 levels of the largest weight of their term, as an 8-bit index stores them."""
        scale = term_scales(self.terms, self.weights, self.vocabulary)[self.terms.long()]
        return SparseVectors(
            self.starts, self.terms, (self.weights / scale).round().clamp(min=1) * scale, self.vocabulary
        )

    def _keep(self, entries: Int[Tensor, " n"]) -> "SparseVectors":
        starts = _starts(self.row_numbers[entries], len(self))
        return SparseVectors(starts, self.terms[entries], self.weights[entries], self.vocabulary)

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write as one safetensors file."""
        tensors = {"starts": self.starts, "terms": self.terms, "weights": self.weights}
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            path,
            metadata={"vocabulary": str(self.vocabulary)},
        )

    @classmethod
    def load(cls, path: Path, vocabulary: int) -> "SparseVectors":
        """Read what `save` wrote.

        Raises:
            InputError: the file is damaged or holds no sparse vectors over this vocabulary.
        """
        try:
            tensors = load_file(path)
            made = cls(tensors["starts"], tensors["terms"], tensors["weights"], vocabulary)
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(f"'{path}' is damaged ({type(error).__name__}): build the index again") from error
        if not made._sound():
            raise InputError(f"'{path}' holds no sparse vectors over {vocabulary} terms: build the index again")
        return made

    def _sound(self) -> bool:
        """Whether a file's numbers can be used as addresses."""
        starts, terms = self.starts, self.terms
        return bool(
            starts.dtype == torch.int64
            and terms.dtype == torch.int32
            and self.weights.dtype == torch.float32
            and starts.dim() == terms.dim() == self.weights.dim() == 1
            and len(starts) >= 1
            and int(starts[0]) == 0
            and int(starts[-1]) == len(terms) == len(self.weights)
            and bool((starts.diff() >= 0).all())
            and (len(terms) == 0 or (int(terms.min()) >= 0 and int(terms.max()) < self.vocabulary))
        )


def term_scales(
    terms: Int[Tensor, " n"], weights: Float[Tensor, " n"], vocabulary: int
) -> Float[Tensor, " vocabulary"]:
    """The step of 8-bit weights of each term: its largest weight / 255 (1 where it has none)."""
    largest = torch.zeros(vocabulary).scatter_reduce_(0, terms.long(), weights, "amax")
    return torch.where(largest > 0, largest / 255, 1.0)


def _starts(rows: Int[Tensor, " n"], count: int) -> Int[Tensor, " rows_and_one"]:
    sizes = torch.bincount(rows, minlength=count)
    return torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
