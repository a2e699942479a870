from typing import Any

import pytest
import torch
from datasets import Dataset

from encyclo.data.contexts import token_contexts
from encyclo.errors import InputError


class Letters:
    """A tokenizer of one token per letter."""

    eos_token_id = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) - 96 for c in text if c.isalpha()]}


ROWS = {"text": ["abc", "def", "ghij"], "document": ["one", "two", "one"]}


def test_documents_are_kept_together_joined_by_the_end_token_and_cut() -> None:
    found = token_contexts(Dataset.from_dict(ROWS), Letters(), length=4, count=9)
    flat = found.flatten().tolist()
    whole = [1, 2, 3, 7, 8, 9, 10, 0], [4, 5, 6, 0]  # document one, document two
    assert flat in ([*whole[0], *whole[1]], [*whole[1], *whole[0]])
    assert found.dtype == torch.long and found.shape == (3, 4)


def test_the_seed_decides_the_order_and_count_how_many() -> None:
    rows = Dataset.from_dict({"text": [chr(97 + i) * 3 for i in range(20)]})
    first, again, other = (token_contexts(rows, Letters(), length=4, count=5, seed=s) for s in (0, 0, 1))
    assert first.shape == (5, 4) and torch.equal(first, again) and not torch.equal(first, other)


def test_a_stream_is_read_only_as_far_as_needed() -> None:
    read = []

    def rows() -> Any:
        for i in range(100_000):
            read.append(i)
            yield {"text": "abcdefg"}

    from datasets import IterableDataset

    found = token_contexts(IterableDataset.from_generator(rows), Letters(), length=8, count=10)
    assert found.shape == (10, 8) and len(read) < 2000


def test_too_little_text_is_said() -> None:
    with pytest.raises(InputError, match="only 4 tokens"):
        token_contexts(Dataset.from_dict({"text": ["abc"]}), Letters(), length=8, count=1)
