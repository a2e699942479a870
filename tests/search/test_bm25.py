"""BM25 against its formula, with stems and stop words."""

import math

import pytest

from encyclo.search.bm25 import BM25Index

pytest.importorskip("bm25s")

TEXTS = ["the cat sat", "cats and dogs", "a bird flies over the sea", "dogs dogs dogs"]


def test_stems_and_stop_words():
    index = BM25Index.Config().build(TEXTS)
    assert len(index) == 4
    hits = index.search(["cat", "the", "flying", "zebra", ""], 3)
    assert set(hits.documents[0].tolist()) == {0, 1, -1}
    for row in (1, 3, 4):
        assert hits.documents[row].tolist() == [-1, -1, -1]
    assert hits.documents[2].tolist() == [2, -1, -1]


def test_score_is_lucenes_formula():
    texts = ["red fox", "red red wine glass", "blue sky"]
    k1, b = 1.5, 0.6
    hits = BM25Index.Config(k1=k1, b=b).build(texts).search(["red"], 3)
    mean = (2 + 4 + 2) / 3
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))

    def score(frequency, length):
        return idf * frequency / (frequency + k1 * (1 - b + b * length / mean))

    expected = {0: score(1, 2), 1: score(2, 4)}
    found = dict(zip(hits.documents[0].tolist(), hits.scores[0].tolist(), strict=True))
    assert set(found) == {0, 1, -1}
    for document, value in expected.items():
        assert found[document] == pytest.approx(value, rel=1e-4)


def test_equals_are_in_order_and_nothing_finds_nothing():
    hits = BM25Index.Config().build(["apple", "pear", "apple", "apple"]).search(["apple"], 2)
    assert hits.documents.tolist() == [[0, 2]]
    assert BM25Index.Config().build(["the", "a"]).search(["apple"], 2).documents.tolist() == [[-1, -1]]
