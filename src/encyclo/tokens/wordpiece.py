"""WordPiece (Schuster & Nakajima 2012): words cut into the longest pieces of a learned vocabulary, over
`tokenizers`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from encyclo.errors import InputError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Padding, unknown, start of text, end of text, hidden."""


@dataclass(frozen=True)
class Encoded:
    """Several texts as ids.

    Attributes:
        ids: of all texts, behind one another.
        lengths: tokens of each text.
        cut: texts that were longer than the limit and lost their ends.
    """

    ids: Int64[Tensor, " n"]
    lengths: Int64[Tensor, " texts"]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, count: int) -> "Encoded":
        """At most `count` texts, evenly spread over all."""
        if count >= len(self):
            return self
        rows = torch.arange(count) * len(self) // count
        return Encoded(self.ids[self.places(rows)], self.lengths[rows])

    def split(self, x: Shaped[Tensor, "n *rest"]) -> tuple[Tensor, ...]:
        """What belongs to each text, of something that has an entry for each token."""
        return tuple(torch.split(x, self.lengths.tolist()))

    def places(self, rows: Sequence[int] | Int64[Tensor, " rows"]) -> Int64[Tensor, " n"]:
        """Where in `ids` the tokens of some texts stand, text after text."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        sizes = self.lengths[chosen]
        begin = (self.lengths.cumsum(0) - self.lengths)[chosen]
        return torch.arange(int(sizes.sum())) + (begin - (sizes.cumsum(0) - sizes)).repeat_interleave(sizes)


class WordPiece:
    """A WordPiece tokenizer with BERT's special tokens; each text becomes [CLS] pieces [SEP].

    Args:
        tokenizer: a `tokenizers.Tokenizer` that has the five tokens of `SPECIAL`.

    Raises:
        InputError: a special token is missing.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        missing = [name for name in SPECIAL if tokenizer.token_to_id(name) is None]
        if missing:
            raise InputError(f"the tokenizer lacks {', '.join(missing)}: use one made for BERT")
        self.pad, self.unknown, self.start, self.end, self.mask = (tokenizer.token_to_id(name) for name in SPECIAL)

    @classmethod
    def train(cls, texts: Iterable[str], size: int, *, lowercase: bool = True) -> "WordPiece":
        """Learn a vocabulary of at most `size` tokens, the special ones included; equal texts give equal vocabularies.

        Raises:
            InputError: no text at all.
        """
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

        texts = list(texts)
        normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        letters = sorted(
            {letter for text in texts for letter in normalizer.normalize_str(text) if not letter.isspace()}
        )
        if not letters:
            raise InputError("the texts hold no words to learn a vocabulary from: give some text")
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        # the library numbers inner letters in the order of a hash table, and breaks ties by number: number them for it
        inner = [f"##{letter}" for letter in letters][: max(size // 4, 1)]
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=[*SPECIAL, *inner],
            initial_alphabet=letters[: max(size // 4, 1)],
            limit_alphabet=max(size // 4, 1),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        learned = tokenizer.get_vocab()
        return cls.from_vocabulary(sorted(learned, key=learned.__getitem__), lowercase=lowercase)

    @classmethod
    def from_json(cls, content: bytes) -> "WordPiece":
        """From the content of a tokenizer.json.

        Raises:
            InputError: no tokenizer.
        """
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_str(content.decode("utf-8")))
        except InputError:
            raise
        except Exception as error:  # the library raises bare exceptions
            raise InputError(f"this is no tokenizer.json ({error})") from None

    @classmethod
    def from_vocabulary(cls, lines: Sequence[str], *, lowercase: bool = True) -> "WordPiece":
        """From the lines of a vocab.txt, as BERT was published with."""
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

        vocabulary = {line.rstrip("\n"): index for index, line in enumerate(lines)}
        missing = [name for name in SPECIAL if name not in vocabulary]
        if missing:
            raise InputError(f"the vocabulary lacks {', '.join(missing)}: use one made for BERT")
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.add_special_tokens(list(SPECIAL))
        return cls._finished(tokenizer)

    @classmethod
    def from_folder(cls, folder: Path) -> "WordPiece":
        """From a folder with a tokenizer.json, or with a vocab.txt (and a tokenizer_config.json).

        Raises:
            InputError: neither is there.
        """
        if (folder / "tokenizer.json").is_file():
            return cls.from_json((folder / "tokenizer.json").read_bytes())
        if not (folder / "vocab.txt").is_file():
            raise InputError(
                f"{folder} holds neither tokenizer.json nor vocab.txt: copy the tokenizer beside the weights"
            )
        lowercase = True
        if (folder / "tokenizer_config.json").is_file():
            lowercase = bool(json.loads((folder / "tokenizer_config.json").read_text()).get("do_lower_case", True))
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return cls.from_vocabulary(lines, lowercase=lowercase)

    @classmethod
    def _finished(cls, tokenizer: Any) -> "WordPiece":
        from tokenizers import processors

        ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
        return cls(tokenizer)

    def to_json(self) -> bytes:
        """The content of a tokenizer.json."""
        return str(self._tokenizer.to_str()).encode("utf-8")

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        return int(self._tokenizer.get_vocab_size())

    def special(self) -> Bool[Tensor, " vocabulary"]:
        """Which ids are special tokens (never masked, never drawn)."""
        table = torch.zeros(self.size, dtype=torch.bool)
        added = self._tokenizer.get_added_tokens_decoder()
        table[[index for index, token in added.items() if token.special]] = True
        return table

    def encode(self, texts: Sequence[str], *, limit: int | None = None, special: bool = False) -> Encoded:
        """Ids of texts, each as [CLS] pieces [SEP].

        Args:
            texts: what to encode.
            limit: most tokens of a text, both ends included; what is beyond is cut off and counted.
            special: read `[MASK]` and the like in the texts as special tokens rather than as plain characters.
        """
        self._tokenizer.encode_special_tokens = not special
        rows = [row.ids for row in self._tokenizer.encode_batch_fast(list(texts))]
        cut = 0
        if limit is not None:
            long = [index for index, row in enumerate(rows) if len(row) > limit]
            cut = len(long)
            for index in long:
                rows[index] = [*rows[index][: limit - 1], self.end]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return Encoded(torch.tensor(list(chain.from_iterable(rows)), dtype=torch.int64), lengths, cut)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def token(self, index: int) -> str:
        """The piece with this id (`##` marks one inside a word)."""
        return str(self._tokenizer.id_to_token(index))
