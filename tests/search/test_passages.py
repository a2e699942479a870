"""Passages cover a text, in order, within their length."""

import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from encyclo.search.passages import cut_passages

WORDS = st.lists(
    st.sampled_from(["one", "two.", "three", "four!", "\n", "\n\n", "\n \n", "five?)", "\t", "a"]), max_size=60
)


@settings(max_examples=200, deadline=None)
@given(WORDS, st.integers(1, 12))
def test_every_word_is_in_one_passage_and_none_is_too_long(parts, words):
    text = " ".join(parts)
    spans = cut_passages(text, words=words)
    assert all(a < b for a, b in spans)
    assert all(b <= c for (_, b), (c, _) in pairwise(spans))
    assert [w for a, b in spans for w in text[a:b].split()] == text.split()
    for a, b in spans:
        assert len(re.findall(r"\S+", text[a:b])) <= words
        assert text[a:b] == text[a:b].strip()


def test_paragraphs_sentences_and_headings():
    text = "A title\n\nFirst sentence here. Second sentence here.\nThird one.\n\n" + "long " * 30 + "end."
    spans = cut_passages(text, words=12)
    made = [text[a:b] for a, b in spans]
    assert made[0] == "A title\n\nFirst sentence here. Second sentence here.\nThird one."
    assert [len(m.split()) for m in made[1:]] == [12, 12, 7]


def test_nothing_gives_nothing():
    assert cut_passages("") == cut_passages(" \n\n \t") == []
