"""Search through a folder of texts with any model that turns texts into sparse vectors, and explain what it found."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from encyclo.errors import InputError
from encyclo.pretrained import cache_folder
from encyclo.search.engine import Engine
from encyclo.search.terms import shared_terms, term_weights, vocabulary_hash
from encyclo.search.text_index import IndexBar, TextIndex, passage
from encyclo.search.vectors import SparseVectors
from encyclo.tokens.echo import Role

__all__ = ["Found", "SparseEncoder", "cut_note", "explain_score", "open_text_index", "search_texts", "weigh_texts"]


_COUNTED = {"k": "passage", "words": "word of a passage", "top": "term of a passage"}


@runtime_checkable
class SparseEncoder(Protocol):
    """What is asked of a model."""

    vocabulary: int

    @property
    def tokenizer(self) -> Any:
        """Numbers the terms."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """A readable name of every term."""
        ...

    @property
    def longest(self) -> int:
        """Tokens of a text beyond which it is cut."""
        ...

    def fingerprint(self) -> str:
        """Tells two models apart."""
        ...

    def sparse(
        self, texts: Sequence[str], role: Role, *, longest: int | None = None, top: int | None = None
    ) -> tuple[SparseVectors, int]:
        """Vectors in the order of the texts, and how many texts were cut."""
        ...


@dataclass(frozen=True)
class Found:
    """Rows for the user, figures about them, and what was lossy."""

    rows: list[dict[str, Any]]
    report: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def cut_note(cut: int, longest: int) -> list[str]:
    """A line about texts that were cut, where there were any."""
    return [f"{cut} texts were longer than {longest} tokens and were cut"] if cut else []


def weigh_texts(model: SparseEncoder, texts: Sequence[str], role: Role, *, top: int | None = None) -> Found:
    """A mapping from term to weight of each text, the heaviest term first; an empty text has none."""
    if top is not None and top < 1:
        raise InputError(f"top={top}: keep at least one term")
    vectors, cut = model.sparse(texts, role, top=top)
    notes = cut_note(cut, model.longest)
    empty = sum(not text.strip() for text in texts)
    if empty:
        notes.append(f"{empty} empty texts have no terms")
    rows = [term_weights(vectors, row, model.names) for row in range(len(vectors))]
    return Found(rows, {"active_terms": float(vectors.sizes.float().mean())}, notes)


def open_text_index(model: SparseEncoder, source: Path, *, words: int = 80, folder: Path | None = None) -> TextIndex:
    """The index of a folder of texts for one model, in `folder` or at its own place in the cache.

    Raises:
        InputError: the index there was made with another tokenizer, model or length of passages, or is damaged.
    """
    source = Path(source).resolve()
    mark = model.fingerprint()[:12]
    if folder is None:
        place = hashlib.sha256(str(source).encode()).hexdigest()[:12]
        folder = cache_folder() / "indexes" / f"{source.name}-{place}-{mark}-{words}"
    return TextIndex(
        folder, tokenizer=vocabulary_hash(model.tokenizer), model=mark, vocabulary=model.vocabulary, words=words
    )


def search_texts(
    model: SparseEncoder,
    query: str,
    source: Path,
    *,
    engine: Engine,
    k: int = 10,
    words: int = 80,
    top: int | None = None,
    folder: Path | None = None,
) -> Found:
    """Passages that answer a query, best first; the index is brought up to date before.

    Args:
        model: turns texts into vectors.
        query: in plain words.
        source: a folder of texts, or one file.
        engine: which index to search.
        k: number of passages.
        words: most words of a passage.
        top: keep so many terms of a passage; None keeps all.
        folder: of the index; None puts it into the cache folder.

    Raises:
        InputError: nothing to search, an index of another model, or an engine that is not installed.
    """
    for name, number in (("k", k), ("words", words), ("top", top)):
        if number is not None and number < 1:
            raise InputError(f"{name}={number}: ask for at least one {_COUNTED[name]}")
    store = open_text_index(model, source, words=words, folder=folder)
    cut = 0

    def encode(texts: Sequence[str]) -> SparseVectors:
        nonlocal cut
        vectors, short = model.sparse(texts, "document")
        cut += short
        return vectors

    bar = IndexBar("indexing")
    try:
        done = store.update(source, encode, progress=bar)
    finally:
        bar.close()
    asked, short = model.sparse([query], "query")
    index, vectors, table = store.engine(engine, top=top)
    hits = index.search(asked, k)
    rows: list[dict[str, Any]] = []
    for row, score in zip(hits.documents[0].tolist(), hits.scores[0].tolist(), strict=True):
        if row < 0:
            break
        place = passage(table, row)
        matched = shared_terms(asked.row(0), vectors.row(row), model.names, top=8)
        rows.append(
            {
                "rank": len(rows) + 1,
                "score": round(score, 4),
                "file": place.file,
                "start": place.start,
                "end": place.end,
                "text": place.text,
                "terms": {term.term: round(term.contribution, 4) for term in matched},
            }
        )
    notes = [*done.notes, *cut_note(cut, model.longest)]
    if short:
        notes.append(f"the query was cut to {model.longest} tokens")
    if not len(asked.terms):
        notes.append("the query has no terms, so nothing can be found")
    report = {
        "passages": len(vectors),
        "encoded_now": done.encoded,
        "reused": done.kept,
        "removed": done.removed,
        "index": str(store.folder),
        "engine": engine.kind,
    }
    return Found(rows, report, notes)


def explain_score(model: SparseEncoder, query: str, document: str) -> Found:
    """The shared terms that make a score, the weightiest first.

    `stands_in` says which of the two texts holds the term itself; where one is missing, the model added it there.
    """
    (asked, a), (there, b) = model.sparse([query], "query"), model.sparse([document], "document")
    said = {
        name: set(model.tokenizer(f" {text.strip()}", add_special_tokens=False).input_ids)
        | set(model.tokenizer(text.strip(), add_special_tokens=False).input_ids)
        for name, text in (("query", query), ("document", document))
    }
    rows = [
        {
            "term": term.term,
            "query": round(term.query, 4),
            "document": round(term.document, 4),
            "contribution": round(term.contribution, 4),
            "stands_in": [name for name, tokens in said.items() if term.number in tokens],
        }
        for term in shared_terms(asked.row(0), there.row(0), model.names)
    ]
    report = {
        "score": float(asked.dot(there)[0, 0]),
        "query_terms": len(asked.terms),
        "document_terms": len(there.terms),
    }
    return Found(rows, report, cut_note(a + b, model.longest))
