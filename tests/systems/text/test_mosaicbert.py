import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from encyclo.cli import run
from encyclo.data import load
from encyclo.errors import InputError
from encyclo.experiment import Preset, Trial
from encyclo.nn.part import parameter_count
from encyclo.nn.varlen import Layout
from encyclo.systems.text import mosaicbert
from encyclo.systems.text.mosaicbert import BERT, MosaicBERT, corpus_of, experiment, from_checkpoint
from encyclo.tokens.text_corpus import TextCorpus
from encyclo.tokens.wordpiece import WordPiece
from nn.test_text_checkpoint import mosaic_state
from systems.contract import SystemContract

VERSES = [
    "In the beginning God created the heaven and the earth.",
    "And the earth was without form, and void; and darkness was upon the face of the deep.",
    "And God said, Let there be light: and there was light.",
    "And God saw the light, that it was good: and God divided the light from the darkness.",
]


def checkpoint(folder: Path) -> Path:
    """A random folder in the layout of mosaicml/mosaic-bert-base, without a tokenizer of its own."""
    folder.mkdir(parents=True)
    state = mosaic_state(vocabulary=30_528)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 3, "alibi_starting_size": 32}))
    return folder


class TestContract(SystemContract):
    slug = "mosaicbert"
    published = {"mosaicbert": 137_000_000, "bert": 110_000_000}
    verbs = {
        "fill": ["In the [MASK] God created the [MASK] .", "top=3"],
        "encode": ["{text}", "And God said", "unit=line"],
        "extend": ["{text}", "length=256"],
        "finetune": ["{rows}", "steps=3", "label=book"],
        "classify": [],
        "import": ["{checkpoint}"],
    }
    bad = [
        ("fill", ["no gap here"], "no [MASK]"),
        ("fill", ["  "], "empty"),
        ("encode", ["{empty}"], "empty"),
        ("encode", ["{folder}"], "is a folder"),
        ("encode", ["mistyped.txt"], "no file 'mistyped.txt'"),
        ("encode", ["a", "pool=max"], "pool"),
        ("extend", ["{text}", "length=99999999"], "too long"),
        ("extend", ["{text}", "length=2"], "no room"),
        ("finetune", ["{rows}"], "no column 'label'"),
        ("finetune", ["{missing}"], "no file"),
        ("classify", ["some text"], "finetune"),
        ("import", ["{folder}"], "config.json is missing"),
        ("import", ["no-such-model"], "no base model"),
    ]

    def files(self, folder: Path) -> dict[str, Path]:
        (folder / "text.txt").write_text("\n".join(VERSES * 40), encoding="utf-8")
        with (folder / "rows.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "book"])
            writer.writerows(
                [f"{number} {VERSES[number % 4]}", "even" if number % 2 else "odd"] for number in range(60)
            )
        (folder / "nothing").mkdir()
        return {
            "text": folder / "text.txt",
            "rows": folder / "rows.csv",
            "checkpoint": checkpoint(folder / "checkpoint"),
            "folder": folder / "nothing",
        }

    def _call(self, finished: Any, given: dict[str, Path], verb: str, words: list[str], out: Path) -> list[Any]:
        if verb == "classify" and not words:  # only what was fine-tuned can
            tuned = super()._call(finished, given, "finetune", ["{rows}", "steps=2", "label=book"], out)
            assert tuned[0].value == out
            rows = MosaicBERT.from_pretrained(out).classify(VERSES).value
            assert {row["label"] for row in rows} <= {"even", "odd"}
            return []
        return super()._call(finished, given, verb, words, out)


@pytest.fixture(scope="module")
def corpus() -> TextCorpus:
    data = experiment(Preset.SMOKE)
    assert callable(data.data)
    return corpus_of(data.data(), small())


def small(kind: type[MosaicBERT] = MosaicBERT, *changes: str) -> MosaicBERT.Config:
    arms = experiment(Preset.SMOKE).systems
    config = arms["mosaicbert" if kind is MosaicBERT else "bert"].override(changes)
    assert isinstance(config, MosaicBERT.Config)
    return config


def ready(corpus: TextCorpus, kind: type[MosaicBERT] = MosaicBERT, *changes: str) -> MosaicBERT:
    torch.manual_seed(0)
    system = small(kind, *changes).build()
    assert isinstance(system, MosaicBERT)
    system.start_from(corpus)
    return system


SWITCHES = [
    "encoder.unpad=false",
    "encoder.attention=math",
    "encoder.attention=block",
    "encoder.attention=lengths",
    "masked_only=false",
    "encoder.low_precision_norm=false",
]


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_of_speed_change_nothing_but_speed(corpus: TextCorpus, switch: str) -> None:
    rows = list(range(16))
    plain, other = ready(corpus), ready(corpus, MosaicBERT, switch)
    ours, theirs = plain.loss(rows), other.loss(rows)
    assert ours.weight == theirs.weight > 10
    torch.testing.assert_close(ours.value, theirs.value, atol=1e-5, rtol=1e-5)
    ours.value.backward()
    theirs.value.backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("switch", ["encoder.positions=learned", "encoder.feed_forward=mlp", "mask_ratio=0.15"])
def test_the_other_switches_change_the_model(corpus: TextCorpus, switch: str) -> None:
    rows = list(range(16))
    assert abs(float(ready(corpus).loss(rows).value) - float(ready(corpus, MosaicBERT, switch).loss(rows).value)) > 1e-4


def test_all_switches_off_is_the_rival(corpus: TextCorpus) -> None:
    off = ["encoder.unpad=false", "encoder.low_precision_norm=false", "mask_ratio=0.15"]
    off += ["encoder.feed_forward=mlp", 'encoder.positions={"kind":"learned","length":128}']
    config = small(MosaicBERT, *off)
    rival = small(BERT)
    assert config.model_dump() == rival.model_dump()


@pytest.mark.parametrize("low", ["true", "false"])
@pytest.mark.parametrize("kind", [MosaicBERT, BERT])
def test_training_in_16_bit_is_near_training_in_32(corpus: TextCorpus, kind: type[MosaicBERT], low: str) -> None:
    system = ready(corpus, kind, f"encoder.low_precision_norm={low}")
    rows = list(range(16))
    exact = system.loss(rows).value
    with torch.autocast("cpu", torch.bfloat16):
        rough = system.loss(rows).value
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=5e-3, atol=0)
    rough.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in system.parameters())


def test_masks_of_a_step_do_not_depend_on_its_micro_batches(corpus: TextCorpus) -> None:
    system = ready(corpus)
    system._seed = 3
    whole = system.loss(list(range(12)))
    parts = [system.loss(list(range(a, a + 4))) for a in (0, 4, 8)]
    assert sum(part.weight for part in parts) == whole.weight
    mean = sum(part.value * part.weight for part in parts) / whole.weight
    torch.testing.assert_close(mean, whole.value)
    system._seed = 4
    assert float(system.loss(list(range(12))).value) != float(whole.value)


def test_streamed_texts_are_hidden_the_same_in_any_company(corpus: TextCorpus) -> None:
    system = ready(corpus)
    texts = VERSES + VERSES[:2]
    whole = system.loss({"text": texts})
    parts = [system.loss({"text": texts[a : a + 3]}) for a in (0, 3)]
    assert sum(part.weight for part in parts) == whole.weight
    mean = sum(part.value * part.weight for part in parts) / whole.weight
    torch.testing.assert_close(mean, whole.value)


def test_all_arms_are_asked_for_the_same_tokens(corpus: TextCorpus) -> None:
    numbers = torch.arange(len(corpus.test.ids))
    counts = {ready(corpus, kind)._score(corpus.test, numbers).count for kind in (MosaicBERT, BERT)}
    assert len(counts) == 1
    ordinary = int((corpus.test.ids >= 5).sum())
    assert counts.pop() / ordinary == pytest.approx(0.15, abs=0.03)


def test_windows_hide_the_same_tokens_whatever_their_length(corpus: TextCorpus) -> None:
    system = ready(corpus)
    scores = [system.window_scores([" ".join(VERSES * 20)], length) for length in (16, 128, 512)]
    assert len({score.count for score in scores}) == 1
    assert all(math.isfinite(score.perplexity) for score in scores)


def test_encoding_does_not_depend_on_company_order_or_batches(corpus: TextCorpus) -> None:
    system = ready(corpus).eval()
    together = system.encode(VERSES).value
    assert together.shape == (4, 32)
    for row, verse in zip(together, VERSES, strict=True):
        torch.testing.assert_close(system.encode([verse]).value[0], row, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(system.encode(VERSES[::-1], batch_tokens=10).value.flip(0), together)
    lines = system.encode(["\n".join(VERSES)], unit="line").value
    torch.testing.assert_close(lines, together)
    assert system.encode(VERSES, normalise=True).value.norm(dim=1).tolist() == pytest.approx([1] * 4)


def test_16_bit_vectors_point_the_same_way(corpus: TextCorpus) -> None:
    system = ready(corpus).eval()
    exact, rough = system.encode(VERSES).value, system.encode(VERSES, precision="bf16").value
    assert rough.dtype == torch.float32
    assert torch.cosine_similarity(exact, rough).min() > 0.999


def test_long_texts_are_told_about_not_cut(corpus: TextCorpus) -> None:
    system = ready(corpus).eval()
    result = system.encode([" ".join(VERSES * 10)])
    assert "nothing was cut" in result.notes[0]
    rival = ready(corpus, BERT).eval()
    with pytest.raises(InputError, match="learned positions"):
        rival.encode([" ".join(VERSES * 10)])
    with pytest.raises(InputError, match="cannot be extended"):
        rival.extend(" ".join(VERSES * 10), length=256)


def test_extending_changes_no_weight_and_says_when_it_is_not_needed(corpus: TextCorpus, tmp_path: Path) -> None:
    system = ready(corpus).eval()
    text = " ".join(VERSES * 20)
    result = system.extend(text, length=300, out=tmp_path / "long")
    assert {"perplexity at 128", "perplexity at 256", "perplexity at 300", "perplexity at 512"} <= set(result.report)
    grown = MosaicBERT.from_pretrained(tmp_path / "long")
    assert grown.config.length == 300
    assert not grown.encode([text[:800]]).notes
    torch.testing.assert_close(grown.encode([text]).value, system.encode([text]).value)
    assert "nothing is needed" in str(system.extend(text, length=100).value)


def test_fill_ranks_words_by_probability(corpus: TextCorpus) -> None:
    system = ready(corpus).eval()
    result = system.fill("And God [MASK] the [MASK] .", top=4)
    assert [row["rank"] for row in result.value] == [1, 2, 3, 4] * 2
    values = [row["probability"] for row in result.value]
    assert values[:4] == sorted(values[:4], reverse=True)
    assert sum(row["probability"] for row in system.fill("a [MASK]", top=10_000).value) == pytest.approx(1, abs=1e-4)
    assert not any(row["word"].startswith("[") for row in result.value if row["word"] in ("[PAD]", "[MASK]", "[UNK]"))
    assert "[MASK]" not in result.report["text"]


@pytest.mark.parametrize("unpad", ["true", "false"])
def test_the_rival_is_transformers_bert(unpad: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = WordPiece.train(VERSES, 100)
    shape = {"vocab_size": words.size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = transformers.BertForMaskedLM(
        transformers.BertConfig(**shape, intermediate_size=64, max_position_embeddings=64)
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(words.to_json())
    ours = from_checkpoint(str(tmp_path))
    assert type(ours) is BERT
    ours.encoder.config = ours.encoder.config.override([f"unpad={unpad}"])
    assert ours.config.length == 64
    encoded = words.encode(VERSES)
    layout = Layout.from_lengths(encoded.lengths, padded=True)
    ids = layout.arrange(encoded.ids).view(4, -1)
    mask = layout.real().view(4, -1)
    out = theirs(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    torch.testing.assert_close(ours.encoder(ids, mask)[mask], out.hidden_states[-1][mask], atol=1e-5, rtol=1e-5)
    scores = ours.head(ours.encoder(ids, mask)[mask], ours.encoder.words.weight)
    torch.testing.assert_close(scores, out.logits[mask], atol=1e-5, rtol=1e-5)
    hidden = out.hidden_states[-1] * mask[..., None]
    means = hidden.sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(ours.encode(VERSES).value, means, atol=1e-5, rtol=1e-5)


def test_published_weights_are_imported_and_open_again(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "published")
    result = MosaicBERT.import_(str(folder), out=tmp_path / "run")
    assert result.report["class"] == "MosaicBERT"
    opened = MosaicBERT.from_pretrained(tmp_path / "run")
    assert opened.tokenizer is not None
    assert opened.tokenizer.size == 30_522  # that of bert-base-uncased
    state = mosaic_state(vocabulary=30_528)
    assert torch.equal(opened.encoder.words.weight, state["bert.embeddings.word_embeddings.weight"])
    assert opened.fill("the [MASK] of france")
    assert opened.config.length == 128
    with pytest.raises(InputError, match="--out"):
        MosaicBERT.import_(str(folder))


def test_weights_are_imported_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(checkpoint(tmp_path / "published"))
    for words in (["mosaicbert", folder], [folder, "--system", "mosaicbert"]):
        out = tmp_path / f"run{len(words)}"
        assert run(["import", *words, "--out", str(out)]) == 0
        assert type(MosaicBERT.from_pretrained(out)) is MosaicBERT
    capsys.readouterr()
    assert run(["import", "mosaicbert", str(tmp_path), "--out", str(tmp_path / "none")]) == 2
    assert "config.json is missing" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_length_of_imported_weights_is_told_or_read_off_their_name(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mosaic-bert-base-seqlen-512")
    assert from_checkpoint(str(folder)).config.length == 512
    assert from_checkpoint(str(folder), length=256).config.length == 256
    with pytest.raises(InputError, match="no room"):
        from_checkpoint(str(folder), length=2)


def test_a_bundled_encoder_without_a_head_is_refused() -> None:
    with pytest.raises(InputError, match="no head for masked tokens"):
        from_checkpoint("all-minilm-l6-v2")


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "published")
    state = mosaic_state(vocabulary=30_528)
    del state["bert.encoder.layer.1.mlp.wo.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"lacks encoder\.layers\.1\.feed_forward\.wo\.bias"):
        from_checkpoint(str(folder))


def test_further_trainings_of_a_trial_have_their_own_budgets(corpus: TextCorpus, tmp_path: Path) -> None:
    config = small()
    trial = Trial(seed=0, data=load("kjv", "text"), systems={}, metrics={}, curves={}, folder=tmp_path, prepared=corpus)
    by_steps = mosaicbert._short(trial, config, "equal", steps=2, seconds=None)
    assert by_steps["steps"] == 2
    rival = small(BERT, "training.steps=null", "training.seconds=0.1")
    ladder = mosaicbert._ladder(trial, rival, 0.1)
    assert [name.split(",")[0] for name in ladder] == [name for name, _ in mosaicbert._LADDER]
    assert all(row["steps"] >= 1 for row in ladder.values())
    shown = replace(
        trial,
        metrics=ladder | {"MosaicBERT, as many steps as BERT": by_steps},
        curves={"mosaicbert": {}, "bert": {}},
    )
    assert [made.name for made in mosaicbert._pictures(shown)] == ["ladder"]


def test_real_tokens_are_counted_against_the_longest_of_each_batch() -> None:
    assert mosaicbert._real_tokens(torch.tensor([2, 2, 2, 2]), 2) == 1
    assert mosaicbert._real_tokens(torch.tensor([1, 4]), 2) == pytest.approx(5 / 8)


def test_finetuning_learns_an_easy_distinction(corpus: TextCorpus, tmp_path: Path) -> None:
    rows = [{"text": f"{word} {number}", "label": word} for number in range(100) for word in ("light", "darkness")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = ready(corpus).finetune(tmp_path / "rows.jsonl", steps=60, lr=3e-3, out=tmp_path / "classifier")
    assert result.report["accuracy"] > 95
    assert result.report["held-out rows"] == pytest.approx(40, abs=15)
    found = MosaicBERT.from_pretrained(tmp_path / "classifier").classify(["light 7", "darkness 9"]).value
    assert [row["label"] for row in found] == ["light", "darkness"]


def test_one_class_is_refused(corpus: TextCorpus, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"word {n},same\n" for n in range(20)))
    with pytest.raises(InputError, match="one class only"):
        ready(corpus).finetune(tmp_path / "rows.csv")


def test_a_model_without_a_tokenizer_says_so() -> None:
    with pytest.raises(InputError, match="no tokenizer yet"):
        small().build().encode(["a"])


def test_a_tokenizer_larger_than_the_table_is_refused(corpus: TextCorpus) -> None:
    with pytest.raises(InputError, match=r"raise encoder\.vocabulary"):
        ready(corpus, MosaicBERT, "encoder.vocabulary=64")


def test_paper_preset_holds_the_published_numbers() -> None:
    config = experiment(Preset.PAPER).systems["mosaicbert"]
    assert isinstance(config, MosaicBERT.Config)
    training = config.training
    assert (training.steps, training.batch_size, training.precision) == (70_000, 4096, "bf16")
    assert training.steps * training.batch_size == 286_720_000
    assert (config.encoder.layers, config.encoder.dim, config.encoder.heads) == (12, 768, 12)
    assert config.mask_ratio == 0.3
    with torch.device("meta"):
        assert parameter_count(config.build()) == 137_400_384


def test_own_text_files_train_a_model(tmp_path: Path) -> None:
    from encyclo.training import Trainer

    (tmp_path / "mine.txt").write_text("\n\n".join(f"{n}. {VERSES[n % 4]}" for n in range(200)), encoding="utf-8")
    data = load(str(tmp_path / "mine.txt"), "text")
    system = small(MosaicBERT, "training.steps=4", "encoder.vocabulary=200").build()
    system.fit(data, Trainer(None, progress=False))
    found = system.evaluate(data)
    assert found["steps"] == 4
    assert 0 <= found["mlm_accuracy"] <= 100
