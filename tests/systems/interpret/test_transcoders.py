import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from encyclo.errors import InputError
from encyclo.experiment import declared
from encyclo.nn.sparse_dictionary import SparseDictionary
from encyclo.system import open_system
from encyclo.systems.interpret.transcoders import Transcoders
from systems.contract import Finished, SystemContract


class TestContract(SystemContract):
    slug = "transcoders"
    published = {"transcoders": 12 * 37_774_848}
    verbs = {
        "encode": ["In the beginning", "def f(x): return x"],
        "inspect": ["feature=3", "contexts=4", "blind=true"],
        "circuit": ["In the beginning God", "root=feature:1:5", "depth=2", "errors_only_for=missing"],
        "deembed": ["feature=0", "through=head:0.3"],
        "replace": ["In the beginning", "tokens=3"],
        "import": ["{release}", "base={base}"],
    }
    bad = [
        ("encode", ["some text", "layer=9"], "no transcoder here"),
        ("encode", [""], "empty"),
        ("encode", ["{empty}"], "empty"),
        ("deembed", ["feature=99999999"], "outside"),
        ("deembed", ["feature=1", "through=tail:1.2"], "neither"),
        ("deembed", ["feature=1", "through=head:7.0"], "does not lie below"),
        ("deembed", [], "needs feature"),
        ("inspect", ["feature=-1"], "outside"),
        ("inspect", ["feature=1", "contexts=0"], "contexts=0"),
        ("inspect", ["feature=1", "data={missing}"], "missing.bin"),
        ("circuit", ["In the beginning", "root=feature:1:5"], "error nodes"),
        ("circuit", ["", "root=feature:1:5"], "empty"),
        ("circuit", ["In the beginning", "root=7"], "root=7"),
        ("circuit", ["In the beginning", "root=feature:1:5", "depth=0"], "depth=0"),
        ("circuit", ["In the beginning", "root=feature:1:5", "token=99", "errors_only_for=missing"], "outside the"),
        ("circuit", ["In the", "root=logit:extraordinarily-it", "errors_only_for=missing"], "tokens"),
        ("replace", ["In the", "tokens=0"], "tokens=0"),
        ("replace", ["In the", "layers=2"], "no transcoder here"),
        ("import", ["{empty}", "base={base}"], "no readable checkpoint"),
        ("import", ["{missing}", "base={base}"], "no file"),
    ]

    def files(self, folder: Path) -> dict[str, Path]:
        base = tiny_gpt2(folder / "gpt2")
        return {"base": base, "release": system(base).export(folder / "released")[1]}

    def test_pages_and_graphs_are_written_by_suffix(self, finished: Finished, tmp_path: Path) -> None:
        opened = open_system(finished.run)
        assert isinstance(opened, Transcoders)
        listed = opened.inspect(contexts=4, out=tmp_path / "all.html")
        feature = listed.report["features"][0]
        opened.inspect(feature=feature, contexts=4, out=tmp_path / "one.html")
        text = (tmp_path / "one.html").read_text()
        assert "What causes it" in text and "<svg" in text and "Where it fires" in text
        told = {"root": f"feature:1:{feature}", "errors_only_for": "missing"}
        for name in ("c.html", "only.json", "only.svg"):
            opened.circuit("In the beginning God created", out=tmp_path / name, **told)
        assert json.loads((tmp_path / "c.json").read_text())["nodes"]
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "all.html", "c.html", "c.json", "one.html", "only.json", "only.svg",
        ]  # fmt: skip

    def test_texts_are_encoded_together_as_alone(self, finished: Finished) -> None:
        opened = open_system(finished.run)
        assert isinstance(opened, Transcoders)
        texts = ["In the beginning God created the heaven and the earth.", "def", "x = [1, 2]"]
        for pool in ("max", "mean"):
            together = opened.encode(texts, pool=pool).value
            alone = torch.cat([opened.encode([text], pool=pool).value for text in texts])
            torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)

    def test_an_autoencoder_has_no_circuits(self, finished: Finished) -> None:
        opened = open_system(finished.run.parent / "sae-0.001")
        assert isinstance(opened, Transcoders)
        assert opened.encode(["some text"]).value.shape[1] == 1152
        with pytest.raises(InputError, match="sparse autoencoders"):
            opened.circuit("In the beginning", root="feature:1:5")
        with pytest.raises(InputError, match="released layout"):
            opened.export(finished.folder / "none")


def tiny_gpt2(folder: Path) -> Path:
    """A random GPT-2 with a tokenizer of a few words."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=2, n_head=2, n_positions=32))
    for block in model.transformer.h:
        block.ln_2.weight.data.uniform_(0.5, 2)
        block.ln_2.bias.data.normal_()
    model.save_pretrained(folder)
    words = {w: i for i, w in enumerate(["[UNK]", "in", "the", "beginning", "god", "created", "heaven", "earth"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return folder


def system(base: Path) -> Transcoders:
    torch.manual_seed(1)
    config = Transcoders.Config(base=str(base), layers=(0, 1), dictionary=SparseDictionary.Config(expansion=4))
    made = Transcoders(config)
    for dictionary in made.trained.values():
        dictionary.encoder_bias.data.normal_()
    return made.eval()


@torch.no_grad()
def test_exported_transcoders_are_imported_unchanged(tmp_path: Path) -> None:
    made = system(tiny_gpt2(tmp_path / "gpt2"))
    files = made.export(tmp_path / "out")
    Transcoders.import_(files[::-1], base=str(tmp_path / "gpt2"), out=tmp_path / "run")
    opened = open_system(tmp_path / "run")
    assert isinstance(opened, Transcoders)
    text = "in the beginning god created the heaven"
    torch.testing.assert_close(opened.encode([text]).value, made.encode([text]).value, rtol=1e-4, atol=1e-5)
    rows = opened.circuit(text, root="feature:1:3", depth=2)
    parts = sum(value for name, value in rows.report.items() if name != "value")
    assert parts == pytest.approx(rows.report["value"], rel=1e-4, abs=1e-6)
    with pytest.raises(InputError, match="one file per layer"):
        Transcoders.from_released([files[0], files[0]], base=str(tmp_path / "gpt2"))


def test_presets_hold_what_the_paper_trained() -> None:
    paper = declared("transcoders", "paper").systems["transcoders"]
    assert isinstance(paper, Transcoders.Config)
    assert paper.tokens == 60_000_000
    assert (paper.l1, paper.context, paper.dictionary.expansion, paper.dead_window) == (1.4e-4, 128, 32, 5000)
    with pytest.raises(InputError, match="each layer once"):
        Transcoders(Transcoders.Config(layers=(1, 1)))
