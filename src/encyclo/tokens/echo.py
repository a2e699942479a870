"""Echo prompts: the text twice, so that under a causal mask every token of the second copy has seen the whole text.

Springer et al. 2024 (arXiv 2402.15449). Without echo the text stands once, and early tokens are read blind.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from encyclo.config import Config
from encyclo.errors import InputError

__all__ = ["Prompt", "Prompted", "Role", "pad_right"]

Role = Literal["query", "document"]


class Prompted(NamedTuple):
    """Token ids of one text in its prompt."""

    ids: list[int]
    first: int
    """Position of the first token to pool."""
    last: int
    """Position after the last one."""
    cut: bool
    """The text was longer than allowed."""


class Prompt(Config):
    """`BOS before text between text` with echo, `BOS before text` without; the tokens of the last copy are pooled.

    Neither the words of the prompt, nor the first copy, nor BOS are pooled. An end-of-text token would stand behind
    every pooled token, where under a causal mask it changes nothing, so there is none.

    `query` and `document` hold the words before the text and, for echo, those between its copies.
    """

    echo: bool = True
    query: tuple[str, str] = ("Query:", "\nQuery again:")
    document: tuple[str, str] = ("Document:", "\nDocument again:")
    bos: bool = True

    def build(self, **context: Any) -> "Prompter":
        """The prompt for one tokenizer (`tokenizer=...`)."""
        return Prompter(self, **context)


class Prompter:
    """Turns texts into token ids in a prompt.

    Args:
        prompt: the words around the text.
        tokenizer: of the base model.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any) -> None:
        self.prompt = prompt
        self.tokenizer = tokenizer
        # byte-level BPE writes a word's start as a space before it: give the first word one too, so that 'dog' is the
        # same term at the start and in the middle of a text; SentencePiece does that by itself
        bare, spaced = (tokenizer(word, add_special_tokens=False).input_ids for word in ("dog", " dog"))
        self._lead = " " if bare != spaced and len(spaced) <= len(bare) else ""
        start = tokenizer.bos_token_id
        self._start = [start] if prompt.bos and start is not None else []
        self._pieces = {
            role: [self._tokens(piece) for piece in (prompt.query if role == "query" else prompt.document)]
            for role in ("query", "document")
        }

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def overhead(self, role: Role) -> int:
        """Tokens of a prompt around an empty text."""
        before, between = self._pieces[role]
        return len(self._start) + len(before) + (len(between) if self.prompt.echo else 0)

    def __call__(self, texts: Sequence[str], role: Role, *, longest: int) -> list[Prompted]:
        """Prompts for texts of one role.

        Args:
            texts: any; one of blanks only has no tokens to pool.
            role: which words to put around them.
            longest: tokens of one copy; what is beyond is cut off and reported.

        Raises:
            InputError: `longest` below 1.
        """
        if longest < 1:
            raise InputError(f"longest={longest}: a text needs room for at least one token beside its prompt")
        before, between = self._pieces[role]
        head = self._start + before
        stripped = [self._lead + text.strip() if text.strip() else "" for text in texts]
        encoded = self.tokenizer(stripped, add_special_tokens=False, verbose=False).input_ids if stripped else []
        made: list[Prompted] = []
        for tokens in encoded:
            copy = list(tokens[:longest])
            ids = [*head, *copy, *between, *copy] if self.prompt.echo else [*head, *copy]
            made.append(Prompted(ids, len(ids) - len(copy), len(ids), len(tokens) > longest))
        return made


def pad_right(prompted: Sequence[Prompted], *, fill: int = 0) -> tuple[Int64[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Ids and the mask of pooled tokens, one row a text.

    Padding stands on the right: there a causal model neither sees it nor numbers its positions, so that no attention
    mask is needed and a text's states do not depend on its neighbours in the batch.
    """
    width = max((len(item.ids) for item in prompted), default=0)
    ids = torch.tensor([item.ids + [fill] * (width - len(item.ids)) for item in prompted], dtype=torch.int64)
    ids = ids.view(len(prompted), width)
    place = torch.arange(width).unsqueeze(0)
    first = torch.tensor([item.first for item in prompted], dtype=torch.int64).unsqueeze(1)
    last = torch.tensor([item.last for item in prompted], dtype=torch.int64).unsqueeze(1)
    return ids, (place >= first) & (place < last)
