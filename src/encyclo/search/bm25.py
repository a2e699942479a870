"""BM25 as the field runs it: lower-cased words, English stop words dropped, Snowball stems; bm25s does the work."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from encyclo.config import Config
from encyclo.errors import InputError
from encyclo.search.hits import Hits, pad

__all__ = ["BM25Index"]


class BM25Index:
    """Texts ranked by BM25 (Robertson et al. 1994), in the variant that Lucene computes.

    Args:
        config: see its fields.
        texts: the documents.

    Raises:
        InputError: the packages are not installed.
    """

    class Config(Config):
        """The two numbers of BM25 and how words are made."""

        k1: float = Field(1.2, ge=0)
        b: float = Field(0.75, ge=0, le=1)
        method: Literal["lucene", "robertson", "atire", "bm25+", "bm25l"] = "lucene"
        language: str = "english"
        stop_words: bool = True

        def build(self, texts: Sequence[str]) -> "BM25Index":
            """An index over texts."""
            return BM25Index(self, texts)

    def __init__(self, config: Config, texts: Sequence[str]) -> None:
        try:
            import bm25s
            import Stemmer
        except ImportError as error:
            raise InputError(f"BM25 needs {error.name}: pip install bm25s PyStemmer") from None
        self.config = config
        self._library: Any = bm25s
        self._stemmer: Any = Stemmer.Stemmer(config.language)
        self._count = len(texts)
        self._index: Any = bm25s.BM25(method=config.method, k1=config.k1, b=config.b)
        tokens = self._tokens(texts)
        self._empty = not tokens.vocab or all(len(ids) == 0 for ids in tokens.ids)
        if not self._empty:
            self._index.index(tokens, show_progress=False)

    def _tokens(self, texts: Sequence[str]) -> Any:
        return self._library.tokenize(
            list(texts),
            stopwords=self.config.language if self.config.stop_words else None,
            stemmer=self._stemmer,
            show_progress=False,
        )

    def __len__(self) -> int:
        return self._count

    def search(self, queries: Sequence[str], k: int = 10) -> Hits:
        """The k best documents of each query that share a word with it; of equals the earlier document first."""
        if self._empty or not queries:
            return pad([([], [])] * len(queries), k)
        # all documents come back, because the library's own cut breaks ties at random places
        found, scores = self._index.retrieve(self._tokens(queries), k=self._count, show_progress=False, sorted=False)
        table = torch.zeros(len(queries), self._count)
        table.scatter_(1, torch.from_numpy(found.astype("int64")), torch.from_numpy(scores).float())
        order = table.argsort(dim=1, descending=True, stable=True)[:, :k]
        best = torch.gather(table, 1, order)
        documents = torch.where(best > 0, order, -1)
        short = k - documents.shape[1]
        if short > 0:
            documents = torch.nn.functional.pad(documents, (0, short), value=-1)
            best = torch.nn.functional.pad(best, (0, short))
        return Hits(documents, best)
