"""A model that turns texts into term weights: what all such models share, whatever their body."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from encyclo.nn.sparse_head import SparseHead
from encyclo.pretrained import open_tokenizer
from encyclo.search.terms import term_names
from encyclo.search.vectors import SparseVectors
from encyclo.tokens.echo import Role

__all__ = ["SparseTextModel"]


class SparseTextModel:
    """Mixed into a module: texts -> states -> term weights -> sparse vectors, in batches of texts of like length.

    The module sets `base` (what opens the tokenizer), `vocabulary`, `splade` and a `config` with `longest` and
    `batch_tokens`, and says how texts become states (`states`) and against which matrix they are scored (`matrix`).
    """

    base: str
    vocabulary: int
    splade: SparseHead
    config: Any
    training: bool

    def states(
        self, texts: Sequence[str], role: Role, *, longest: int
    ) -> tuple[Float[Tensor, "n t d"], Bool[Tensor, "n t"], int]:
        """Final states, which of them are pooled, and how many texts were cut to `longest` tokens."""
        raise NotImplementedError

    def lengths(self, texts: Sequence[str], role: Role, *, longest: int) -> list[int]:
        """Tokens that each text takes in the model."""
        raise NotImplementedError

    @property
    def matrix(self) -> Tensor:
        """E, [vocabulary, dim]."""
        raise NotImplementedError

    @property
    def offset(self) -> Tensor | None:
        """The base model's own bias of E, where it has one."""
        return None

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's."""
        return open_tokenizer(self.base)

    @cached_property
    def names(self) -> list[str]:
        """A readable name of every term."""
        return term_names(self.tokenizer, self.vocabulary)

    @property
    def longest(self) -> int:
        """Tokens of one copy of a text beyond which it is cut when encoding."""
        return int(self.config.longest)

    def weights(self, texts: Sequence[str], role: Role, *, longest: int) -> tuple[Float[Tensor, "n vocabulary"], int]:
        """Term weights in float32, with gradient, and how many texts were cut."""
        hidden, pooled, cut = self.states(texts, role, longest=longest)
        return self.splade(hidden, self.matrix, pooled, self.offset), cut

    @torch.no_grad()
    def largest(self, texts: Sequence[str], role: Role, *, longest: int) -> Float[Tensor, "n vocabulary"]:
        """The largest logit of each term over a text's pooled tokens, before any offset: what offsets start from."""
        parts = []
        for start in range(0, len(texts), 16):
            hidden, pooled, _ = self.states(texts[start : start + 16], role, longest=longest)
            parts.append(self.splade.largest(hidden, self.matrix, pooled))
        return torch.cat(parts)

    @torch.no_grad()
    def sparse(
        self, texts: Sequence[str], role: Role, *, longest: int | None = None, top: int | None = None
    ) -> tuple[SparseVectors, int]:
        """Sparse vectors in the order of the texts, and how many texts were cut; texts of like length go together.

        Args:
            texts: any.
            role: queries and documents may be read differently.
            longest: tokens of a text; None takes the configuration's.
            top: keep so many terms of each; None keeps all.
        """
        longest = longest or self.longest
        sizes = self.lengths(texts, role, longest=longest)
        order = sorted(range(len(texts)), key=sizes.__getitem__)
        parts: list[SparseVectors] = []
        start = cut = 0
        module: Any = self
        was = module.training
        module.eval()
        try:
            while start < len(order):
                stop = start + 1
                while stop < len(order) and (stop + 1 - start) * sizes[order[stop]] <= self.config.batch_tokens:
                    stop += 1
                made, short = self.weights([texts[i] for i in order[start:stop]], role, longest=longest)
                part = SparseVectors.from_dense(made)
                parts.append(part if top is None else part.top(top))
                start, cut = stop, cut + short
        finally:
            module.train(was)
        inverse = torch.tensor(order, dtype=torch.int64).argsort()
        return SparseVectors.join(parts, self.vocabulary).take(inverse), cut
