"""Text as equal pieces of tokens, the diet of language models."""

from array import array
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from encyclo.errors import InputError


def token_contexts(rows: Any, tokenizer: Any, *, length: int, count: int, seed: int = 0) -> Int64[Tensor, "n length"]:
    """Up to `count` contexts of `length` tokens: documents in an order drawn from `seed`, joined by the end token, cut.

    Args:
        rows: a data set with `text` and, if it has, `document`; or a stream of rows with `text`, read only as far as
            is needed and shuffled a thousand documents at a time.
        tokenizer: of transformers.
        length: tokens per context.
        count: contexts at most.
        seed: decides the order of documents.

    Raises:
        InputError: the text does not fill one context.
    """
    ids = array("i")
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for text in _documents(rows, seed):
        ids.extend(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + end)
        if len(ids) >= count * length:
            break
    whole = min(len(ids) // length, count)
    if not whole:
        raise InputError(f"the text has only {len(ids)} tokens: one context takes {length}")
    return torch.frombuffer(ids[: whole * length], dtype=torch.int32).long().view(whole, length)


def _documents(rows: Any, seed: int) -> Iterator[str]:
    if not hasattr(rows, "__len__"):
        yield from (str(row["text"]) for row in rows.shuffle(seed=seed, buffer_size=1000))
        return
    documents: dict[str, list[str]] = {}
    # [:] reads a column at once; going through it row by row takes a hundred times as long
    named = rows["document"][:] if "document" in rows.column_names else [str(i) for i in range(len(rows))]
    for name, text in zip(named, rows["text"][:], strict=True):
        documents.setdefault(str(name), []).append(str(text))
    names = sorted(documents)
    for index in torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist():
        yield "\n\n".join(documents[names[index]])
