"""A text data set as tokens, made once and shared by all systems that are compared on it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from encyclo.tokens.wordpiece import Encoded, WordPiece

FIT_ON = 100_000
"""Texts of a stream that a tokenizer is fitted on."""

HOLD_OUT = 2_000
"""Texts of a streamed split that are evaluated on."""


@dataclass(frozen=True)
class TextCorpus:
    """The splits of a text data set as tokens, one text a sample.

    Attributes:
        tokenizer: fitted on the train split, or given.
        train: empty where the data set is streamed: its texts are encoded as they come.
        validation, test: held out.
        notes: what was cut.
    """

    tokenizer: WordPiece
    train: Encoded
    validation: Encoded
    test: Encoded
    notes: tuple[str, ...] = ()


def texts_of(rows: Any, most: int | None = None) -> list[str]:
    """The column `text` of a split: at most `most` texts, evenly spread; of a stream its first `most` or `HOLD_OUT`."""
    if hasattr(rows, "column_names") and hasattr(rows, "__len__"):
        if most is not None and most < len(rows):
            rows = rows.select([index * len(rows) // most for index in range(most)])
        return list(rows["text"])
    return [row["text"] for row in islice(rows, HOLD_OUT if most is None else most)]


def tokenise(
    data: Any,
    tokenizer: WordPiece | Callable[[Iterable[str]], WordPiece],
    *,
    limit: int | None = None,
    most: int | None = None,
) -> TextCorpus:
    """Encode the splits of a text data set (`encyclo.data.Splits`).

    Args:
        data: what to encode.
        tokenizer: one to use, or a function that makes one from the texts of the train split.
        limit: most tokens of a text; what is beyond is cut off and noted.
        most: most texts of the held-out splits; None takes all.
    """
    texts = (
        []
        if data.streaming and isinstance(tokenizer, WordPiece)
        else texts_of(data.train, FIT_ON if data.streaming else None)
    )
    chosen = tokenizer if isinstance(tokenizer, WordPiece) else tokenizer(texts)
    none = Encoded(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    train = none if data.streaming else chosen.encode(texts, limit=limit)
    validation, test = (chosen.encode(texts_of(rows, most), limit=limit) for rows in (data.validation, data.test))
    cut = {"train": train.cut, "validation": validation.cut, "test": test.cut}
    notes = tuple(f"{count} texts of {split} were cut to {limit} tokens" for split, count in cut.items() if count)
    return TextCorpus(chosen, train, validation, test, notes)
