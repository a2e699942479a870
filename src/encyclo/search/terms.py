"""Terms of a model's vocabulary as people read them, and which of them two texts share."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from encyclo.search.vectors import SparseVectors

__all__ = ["SharedTerm", "shared_terms", "term_names", "term_weights", "vocabulary_hash"]


def vocabulary_hash(tokenizer: Any) -> str:
    """Tells whether two tokenizers number the same terms in the same way (SHA-256, 16 hex digits)."""
    text = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def term_names(tokenizer: Any, vocabulary: int) -> list[str]:
    """A readable, unique name of every term.

    A piece that starts a word is written plainly, one that goes on in a word with '##' before it, whatever the
    tokenizer's own sign for that is. Where two terms would read the same, the later keeps its raw form.

    Args:
        tokenizer: of the model.
        vocabulary: rows of the output matrix, which may be more than the tokenizer has tokens.
    """
    raw = tokenizer.convert_ids_to_tokens(list(range(min(vocabulary, len(tokenizer)))))
    special = set(tokenizer.all_special_tokens)
    # the sign of a word's start: byte-level BPE's, SentencePiece's, or none (WordPiece marks what goes on)
    sign = next((mark for mark in ("Ġ", "▁") if sum(t.startswith(mark) for t in raw if t) > len(raw) // 10), None)
    names: list[str] = []
    seen: set[str] = set()
    for number, token in enumerate(raw):
        token = token if token is not None else f"<{number}>"
        if token in special or sign is None:
            name = token
        else:
            text = tokenizer.convert_tokens_to_string([token])
            if "\ufffd" in text or not text.strip():
                name = token  # part of a letter, or blanks
            elif token.startswith(sign):
                name = text.strip()
            else:
                name = f"##{text}" if text[:1].isalnum() else text
        if name in seen:
            name = token
        if name in seen:
            name = f"{token}<{number}>"
        seen.add(name)
        names.append(name)
    return names + [f"<{number}>" for number in range(len(names), vocabulary)]


def term_weights(vectors: SparseVectors, row: int, names: Sequence[str], *, top: int | None = None) -> dict[str, float]:
    """The terms of one row by name, the heaviest first."""
    terms, weights = vectors.row(row)
    order = weights.argsort(descending=True, stable=True)[:top]
    return {names[t]: round(w, 4) for t, w in zip(terms[order].tolist(), weights[order].tolist(), strict=True)}


class SharedTerm(NamedTuple):
    """A term that a query and a document share."""

    term: str
    query: float
    document: float
    contribution: float
    """query * document; over all terms they sum to the score."""
    number: int


def shared_terms(
    query: tuple[Int[Tensor, " n"], Float[Tensor, " n"]],
    document: tuple[Int[Tensor, " m"], Float[Tensor, " m"]],
    names: Sequence[str],
    *,
    top: int | None = None,
) -> list[SharedTerm]:
    """The terms of two rows that make up their score, the weightiest first."""
    terms, weights = query
    others, values = document
    mine = torch.isin(terms, others)
    theirs = torch.isin(others, terms)  # both rows rise, so that what is left of them stands side by side
    share = weights[mine] * values[theirs]
    order = share.argsort(descending=True, stable=True)[:top]
    return [
        SharedTerm(names[t], q, d, s, t)
        for t, q, d, s in zip(
            terms[mine][order].tolist(),
            weights[mine][order].tolist(),
            values[theirs][order].tolist(),
            share[order].tolist(),
            strict=True,
        )
    ]
