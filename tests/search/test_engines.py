"""All engines: the same answers as a dense product, through files, additions and bad input."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encyclo.errors import InputError
from encyclo.search.engine import load_index, save_index
from encyclo.search.exact import ExactIndex
from encyclo.search.hits import SparseIndex
from encyclo.search.qdrant import QdrantIndex
from encyclo.search.seismic import SeismicIndex
from encyclo.search.vectors import SparseVectors

VOCABULARY = 60


def made(rows, seed, share=0.15):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(rows, VOCABULARY, generator=generator) + 0.05
    return dense * (torch.rand(rows, VOCABULARY, generator=generator) < share)


def engines():
    return [
        ExactIndex.Config(),
        ExactIndex.Config(bits=8),
        pytest.param(SeismicIndex.Config(cut=60, heap_factor=0.0), marks=_needs("seismic")),
        pytest.param(QdrantIndex.Config(), marks=_needs("qdrant_client")),
    ]


def _needs(module):
    from importlib.util import find_spec

    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")


@pytest.mark.parametrize("config", engines(), ids=lambda c: f"{c.kind}{getattr(c, 'bits', '')}")
class TestEveryEngine:
    def test_answers_are_those_of_the_dense_product(self, config):
        documents, queries = made(300, 1), made(20, 2)
        index = config.build(vocabulary=VOCABULARY)
        assert isinstance(index, SparseIndex)
        index.add(SparseVectors.from_dense(documents))
        assert len(index) == 300
        assert index.bytes > 0
        scores = queries @ documents.T
        best = scores.topk(10, dim=1)
        hits = index.search(SparseVectors.from_dense(queries), 10)
        # half-precision or 8-bit weights may swap near-equal documents: the scores of what is found must be as good
        tolerance = 1e-5 if (config.kind == "exact" and config.bits == 32) or config.kind == "qdrant" else 0.02
        assert torch.allclose(torch.gather(scores, 1, hits.documents), best.values, atol=tolerance)
        assert torch.allclose(hits.scores, best.values, atol=tolerance)

    def test_documents_can_be_added_later(self, config):
        documents, queries = made(120, 3), SparseVectors.from_dense(made(8, 4))
        whole, parts = config.build(vocabulary=VOCABULARY), config.build(vocabulary=VOCABULARY)
        whole.add(SparseVectors.from_dense(documents))
        for start, stop in ((0, 50), (50, 50), (50, 53), (53, 110), (110, 120)):
            parts.add(SparseVectors.from_dense(documents[start:stop]))
            parts.search(queries, 3)
        a, b = whole.search(queries, 5), parts.search(queries, 5)
        assert torch.allclose(a.scores, b.scores, atol=0.02)
        if getattr(config, "bits", 32) == 32 and config.kind != "seismic":
            assert torch.equal(a.documents, b.documents)

    def test_nothing_shared_finds_nothing(self, config):
        index = config.build(vocabulary=VOCABULARY)
        documents = torch.zeros(4, VOCABULARY)
        documents[0, 3] = documents[2, 3] = 1.0  # rows 1 and 3 are empty
        index.add(SparseVectors.from_dense(documents))
        queries = SparseVectors.from_rows([{}, {5: 1.0}, {3: 2.0}], VOCABULARY)
        hits = index.search(queries, 3)
        assert hits.documents.tolist() == [[-1, -1, -1], [-1, -1, -1], [0, 2, -1]]
        assert hits.scores[2].tolist() == pytest.approx([2, 2, 0], abs=0.02)

    def test_an_empty_index_finds_nothing(self, config):
        hits = config.build(vocabulary=VOCABULARY).search(SparseVectors.from_rows([{5: 1.0}], VOCABULARY), 2)
        assert hits.documents.tolist() == [[-1, -1]]

    def test_a_saved_index_answers_the_same(self, config, tmp_path):
        queries = SparseVectors.from_dense(made(5, 6))
        index = config.build(vocabulary=VOCABULARY)
        index.add(SparseVectors.from_dense(made(80, 5)))
        before = index.search(queries, 7)
        save_index(index, tmp_path / "index")
        save_index(index, tmp_path / "index")  # replaces it
        after = load_index(tmp_path / "index")
        assert len(after) == 80
        hits = after.search(queries, 7)
        assert torch.equal(hits.documents, before.documents)
        assert torch.equal(hits.scores, before.scores)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["index"], "temporary folders were left"
        assert not [p for p in (tmp_path / "index").iterdir() if p.suffix in (".pkl", ".pickle", ".sqlite")]

    def test_damage_is_seen(self, config, tmp_path):
        index = config.build(vocabulary=VOCABULARY)
        index.add(SparseVectors.from_dense(made(20, 5)))
        save_index(index, tmp_path / "index")
        name = next(iter(json.loads((tmp_path / "index" / "engine.json").read_text())["files"]))
        path = tmp_path / "index" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match="build the index again"):
            load_index(tmp_path / "index")

    def test_another_vocabulary_is_refused(self, config):
        index = config.build(vocabulary=VOCABULARY)
        with pytest.raises(InputError, match="terms"):
            index.add(SparseVectors.empty(VOCABULARY + 1))
        with pytest.raises(InputError, match="terms"):
            index.search(SparseVectors.empty(VOCABULARY + 1))
        with pytest.raises(InputError, match="k=0"):
            index.search(SparseVectors.empty(VOCABULARY), 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 12), st.integers(0, 100))
def test_exact_top_k_in_blocks_is_the_plain_one(documents, k, seed):
    """Few distinct weights, so that ties are everywhere: scores must be equal and documents distinct."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randint(0, 3, (documents, 6), generator=generator).float()
    query = torch.randint(0, 3, (1, 6), generator=generator).float()
    index = ExactIndex.Config().build(vocabulary=6)
    index.add(SparseVectors.from_dense(dense))
    hits = index.search(SparseVectors.from_dense(query), k)
    scores = (query @ dense.T)[0]
    expected = scores.topk(min(k, documents)).values
    expected = expected[expected > 0]
    found = hits.documents[0][hits.documents[0] >= 0]
    assert torch.equal(hits.scores[0, : len(expected)], expected)
    assert len(found) == len(expected) == len(found.unique())
    assert torch.equal(scores[found], expected)
    ties = [(-s, d) for s, d in zip(expected.tolist(), found.tolist(), strict=True)]
    assert ties == sorted(ties)


def test_eight_bits_take_less_room():
    vectors = SparseVectors.from_dense(made(2000, 1))
    sizes = []
    for bits in (32, 8):
        index = ExactIndex.Config(bits=bits).build(vocabulary=VOCABULARY)
        index.add(vectors)
        sizes.append(index.bytes)
    assert sizes[1] < 0.7 * sizes[0]


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    index = ExactIndex.Config().build(vocabulary=3)
    with pytest.raises(InputError, match="is no index"):
        save_index(index, tmp_path / "mine")
    with pytest.raises(InputError, match="holds no index"):
        load_index(tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_a_server_that_does_not_answer_is_one_line():
    pytest.importorskip("qdrant_client")
    with pytest.raises(InputError, match="no Qdrant server answers"):
        QdrantIndex.Config(url="http://127.0.0.1:9").build(vocabulary=3)


@pytest.mark.parametrize(
    ("config", "module", "wheel"),
    [(SeismicIndex, "seismic", "pyseismic-lsr"), (QdrantIndex, "qdrant_client", "qdrant-client")],
)
def test_a_missing_engine_names_its_wheel(monkeypatch, config, module, wheel):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(InputError, match=f"pip install {wheel}"):
        config.Config().build(vocabulary=3)


def test_seismic_says_nothing_on_the_output(capfd):
    pytest.importorskip("seismic")
    index = SeismicIndex.Config().build(vocabulary=VOCABULARY)
    index.add(SparseVectors.from_dense(made(20, 5)))
    index.build()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("vocabulary", [100, 70_000])
def test_seismic_knows_empty_rows_and_terms_of_no_document(vocabulary):
    """Documents are handed over as a packed file; the library itself stops the process at a term beyond the last."""
    pytest.importorskip("seismic")
    index = SeismicIndex.Config(heap_factor=0.0).build(vocabulary=vocabulary)
    index.add(SparseVectors.from_rows([{1: 1.0, 5: 2.0}, {}, {2: 3.0, 5: 0.5}], vocabulary))
    last = vocabulary - 1
    queries = SparseVectors.from_rows([{5: 1.0}, {}, {last: 2.0}, {2: 1.0, last - 1: 1.0, last: 1.0}], vocabulary)
    hits = index.search(queries, 3)
    assert hits.documents.tolist() == [[0, 2, -1], [-1, -1, -1], [-1, -1, -1], [2, -1, -1]]
    assert hits.scores[0].tolist() == [2.0, 0.5, 0.0]
    assert hits.scores[3].tolist() == [3.0, 0.0, 0.0]
