"""Sparse rows: every operation against the dense table it stands for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encyclo.errors import InputError
from encyclo.search.vectors import SparseVectors


def table(rows=7, vocabulary=19, seed=0, share=0.3):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(rows, vocabulary, generator=generator) + 0.1
    return dense * (torch.rand(rows, vocabulary, generator=generator) < share)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 8), st.integers(1, 30), st.integers(0, 1000), st.integers(1, 6))
def test_rows_equal_the_dense_table(rows, vocabulary, seed, k):
    dense = table(rows, vocabulary, seed)
    sparse = SparseVectors.from_dense(dense)
    assert torch.equal(sparse.dense(), dense)
    assert len(sparse) == rows
    assert torch.equal(sparse.sizes, (dense > 0).sum(1))
    expected = torch.zeros_like(dense)
    if vocabulary:
        value, place = dense.topk(min(k, vocabulary), dim=1)
        expected = torch.zeros_like(dense).scatter(1, place, value)
    assert torch.equal(sparse.top(k).dense(), expected)
    assert torch.equal(sparse.above(0.5).dense(), dense * (dense > 0.5))
    both = SparseVectors.join([sparse, sparse.top(k)], vocabulary)
    assert torch.equal(both.dense(), torch.cat((dense, expected)))
    other = table(3, vocabulary, seed + 1)
    assert torch.allclose(sparse.dot(SparseVectors.from_dense(other)), dense @ other.T, atol=1e-5)


def test_take_and_row_and_mappings():
    dense = table()
    sparse = SparseVectors.from_dense(dense)
    assert torch.equal(sparse.take(torch.tensor([3, 0, 3])).dense(), dense[[3, 0, 3]])
    terms, weights = sparse.row(2)
    assert torch.equal(dense[2][terms.long()], weights)
    again = SparseVectors.from_rows(
        [dict(zip(*(t.tolist() for t in sparse.row(i)), strict=True)) for i in range(len(sparse))], sparse.vocabulary
    )
    assert torch.equal(again.dense(), dense)
    assert torch.allclose(sparse.probabilities(), (dense > 0).float().mean(0))


def test_eight_bits_are_near():
    dense = table(50, 30)
    rounded = SparseVectors.from_dense(dense).eight_bit().dense()
    assert torch.equal(rounded > 0, dense > 0)
    assert (rounded - dense).abs().max() <= dense.max() / 255 / 2 * 1.001


def test_files_come_back_and_damage_is_refused(tmp_path):
    sparse = SparseVectors.from_dense(table())
    sparse.save(tmp_path / "v.safetensors")
    again = SparseVectors.load(tmp_path / "v.safetensors", 19)
    assert torch.equal(again.dense(), sparse.dense())
    with pytest.raises(InputError, match="build the index again"):
        SparseVectors.load(tmp_path / "v.safetensors", 5)  # terms beyond the vocabulary
    (tmp_path / "v.safetensors").write_bytes((tmp_path / "v.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match="build the index again"):
        SparseVectors.load(tmp_path / "v.safetensors", 19)
    with pytest.raises(InputError, match="build the index again"):
        SparseVectors.load(tmp_path / "missing.safetensors", 19)


def test_terms_outside_the_vocabulary_and_mixed_vocabularies_are_refused():
    with pytest.raises(InputError, match="vocabulary"):
        SparseVectors.from_rows([{9: 1.0}], 9)
    with pytest.raises(InputError, match="vocabular"):
        SparseVectors.join([SparseVectors.empty(3), SparseVectors.empty(4)], 4)
