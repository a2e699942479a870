import subprocess
import sys
from pathlib import Path

import pytest
import torch

from encyclo.errors import InputError
from encyclo.tokens.text_corpus import texts_of, tokenise
from encyclo.tokens.wordpiece import Encoded, WordPiece

TEXTS = [
    "In the beginning God created the heaven and the earth.",
    "And the earth was without form, and void;",
    "And God said, Let there be light: and there was light.",
] * 4


@pytest.fixture(scope="module")
def words() -> WordPiece:
    return WordPiece.train(TEXTS, 120)


def test_texts_come_back(words: WordPiece) -> None:
    encoded = words.encode(TEXTS)
    assert words.size <= 120
    assert encoded.cut == 0
    for row, text in zip(encoded.split(encoded.ids), TEXTS, strict=True):
        assert (row[0], row[-1]) == (words.start, words.end)
        assert words.decode(row.tolist()).replace(" ", "") == text.lower().replace(" ", "")


def test_long_texts_are_cut_and_counted(words: WordPiece) -> None:
    encoded = words.encode(TEXTS, limit=6)
    assert encoded.cut == len(TEXTS)
    assert encoded.lengths.tolist() == [6] * len(TEXTS)
    assert encoded.ids.view(-1, 6)[:, -1].tolist() == [words.end] * len(TEXTS)


def test_mask_is_special_only_where_asked_for(words: WordPiece) -> None:
    assert words.mask in words.encode(["the [MASK] was"], special=True).ids
    assert words.mask not in words.encode(["the [MASK] was"]).ids


def test_special_tokens(words: WordPiece) -> None:
    assert words.special().nonzero().squeeze(1).tolist() == sorted(
        [words.pad, words.unknown, words.start, words.end, words.mask]
    )
    assert words.unknown in words.encode(["the 漢"]).ids
    assert words.token(words.mask) == "[MASK]"


def test_it_survives_json_and_vocab_txt(words: WordPiece, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(words.to_json())
    again = WordPiece.from_folder(tmp_path)
    assert torch.equal(again.encode(TEXTS).ids, words.encode(TEXTS).ids)
    lines = "\n".join(words.token(index) for index in range(words.size))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text(lines + "\n", encoding="utf-8")
    assert torch.equal(WordPiece.from_folder(tmp_path).encode(TEXTS).ids, words.encode(TEXTS).ids)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert words.unknown in WordPiece.from_folder(tmp_path).encode(["God"]).ids


def test_equal_texts_give_equal_vocabularies_in_every_process(words: WordPiece) -> None:
    program = (
        "import hashlib\nfrom encyclo.tokens.wordpiece import WordPiece\n"
        f"print(hashlib.sha256(WordPiece.train({TEXTS!r}, 120).to_json()).hexdigest())"
    )
    found = {subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in range(3)}
    assert len(found) == 1


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no words"):
        WordPiece.train(["  ", ""], 100)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        WordPiece.from_json(b"{}")
    with pytest.raises(InputError, match=r"lacks \[PAD\]"):
        WordPiece.from_vocabulary(["a", "b"])
    with pytest.raises(InputError, match="neither"):
        WordPiece.from_folder(tmp_path)


def test_places_of_some_texts() -> None:
    encoded = Encoded(torch.arange(10), torch.tensor([3, 2, 5]))
    assert encoded.places([2, 0]).tolist() == [5, 6, 7, 8, 9, 0, 1, 2]
    assert encoded.sample(2).ids.tolist() == [0, 1, 2, 3, 4]
    assert encoded.sample(9) is encoded
    assert [part.tolist() for part in encoded.split(encoded.ids)] == [[0, 1, 2], [3, 4], [5, 6, 7, 8, 9]]
    assert len(encoded) == 3


def test_a_corpus_fits_its_tokenizer_on_train_only() -> None:
    class Data:
        streaming = False
        train = {"text": TEXTS}
        validation = {"text": ["Zebra zebra zebra zebra"]}
        test = {"text": TEXTS[:2]}

    class Rows(dict):
        column_names = ("text",)

        def select(self, rows: list[int]) -> "Rows":
            return Rows({name: [column[row] for row in rows] for name, column in self.items()})

        def __len__(self) -> int:
            return len(super().__getitem__("text"))

    data = Data()
    for name in ("train", "validation", "test"):
        setattr(data, name, Rows(getattr(Data, name)))
    corpus = tokenise(data, lambda texts: WordPiece.train(texts, 120), limit=8, most=1)
    assert len(corpus.train) == len(TEXTS)
    assert len(corpus.test) == 1
    assert corpus.tokenizer.unknown in corpus.validation.ids  # z is in no text of train
    assert corpus.notes[0] == f"{len(TEXTS)} texts of train were cut to 8 tokens"
    assert texts_of(iter([{"text": "a"}, {"text": "b"}]), 1) == ["a"]
