from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from encyclo.errors import InputError
from encyclo.nn.text_checkpoint import encoder_config, head_config, key_layout, read_tensors, renamed
from encyclo.nn.text_encoder import MaskedLMHead, TextEncoder

SHAPE = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
IDS = torch.randint(0, 101, (5, 11), generator=torch.Generator().manual_seed(1))
MASK = torch.arange(11) < torch.tensor([3, 11, 7, 7, 1])[:, None]


def own(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def bert(act: str = "gelu") -> transformers.BertForMaskedLM:
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE, hidden_act=act)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("unpad", [True, False])
def test_outputs_are_those_of_transformers(act: str, unpad: bool) -> None:
    theirs = bert(act)
    state = renamed(theirs.state_dict())
    config = encoder_config(theirs.config.to_dict(), state).replace(unpad=unpad)
    encoder, head = config.build().eval(), head_config(theirs.config.to_dict()).build(encoder=config)
    encoder.load_state_dict(own(state, "encoder."))
    head.load_state_dict(own(state, "head."))
    types = torch.arange(11).expand(5, 11) % 2
    wanted = theirs.bert(input_ids=IDS, attention_mask=MASK.long(), token_type_ids=types).last_hidden_state
    torch.testing.assert_close(encoder(IDS, MASK, types)[MASK], wanted[MASK], atol=1e-5, rtol=1e-5)
    logits = theirs(input_ids=IDS, attention_mask=MASK.long()).logits
    ours = head(encoder(IDS, MASK)[MASK], encoder.words.weight)
    torch.testing.assert_close(ours, logits[MASK], atol=1e-4, rtol=1e-5)


def test_a_bare_bert_and_old_names_of_the_norms_are_read() -> None:
    theirs = bert().bert
    state = {name.replace("Norm.weight", "Norm.gamma"): value for name, value in theirs.state_dict().items()}
    ours = renamed(state)
    encoder = encoder_config(theirs.config.to_dict(), ours).build()
    encoder.load_state_dict(own(ours, "encoder."))


def mosaic_state(layers: int = 2, dim: int = 24, hidden: int = 40, vocabulary: int = 64) -> dict[str, Tensor]:
    """A random checkpoint in the layout of mosaicml/mosaic-bert-base."""
    torch.manual_seed(0)
    state = {
        "bert.embeddings.word_embeddings.weight": torch.randn(vocabulary, dim),
        "bert.embeddings.token_type_embeddings.weight": torch.randn(2, dim),
        "cls.predictions.transform.dense.weight": torch.randn(dim, dim),
        "cls.predictions.transform.dense.bias": torch.randn(dim),
        "cls.predictions.decoder.bias": torch.randn(vocabulary),
    }
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for layer in range(layers):
        place = f"bert.encoder.layer.{layer}."
        state |= {
            f"{place}attention.self.Wqkv.weight": torch.randn(3 * dim, dim),
            f"{place}attention.self.Wqkv.bias": torch.randn(3 * dim),
            f"{place}attention.output.dense.weight": torch.randn(dim, dim),
            f"{place}attention.output.dense.bias": torch.randn(dim),
            f"{place}mlp.gated_layers.weight": torch.randn(2 * hidden, dim),
            f"{place}mlp.wo.weight": torch.randn(dim, hidden),
            f"{place}mlp.wo.bias": torch.randn(dim),
        }
        norms += [f"{place}attention.output.LayerNorm", f"{place}mlp.layernorm"]
    for norm in norms:
        state |= {f"{norm}.weight": torch.randn(dim), f"{norm}.bias": torch.randn(dim)}
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()
    return state


def test_the_mosaic_layout_gives_its_shape_and_a_full_model() -> None:
    theirs = mosaic_state()
    assert key_layout(theirs) == "mosaic"
    state = renamed(theirs)
    config = encoder_config({"num_attention_heads": 3, "alibi_starting_size": 16}, state)
    assert (config.layers, config.dim, config.table, config.heads) == (2, 24, 64, 3)
    assert config.feed_forward.kind == "geglu"
    assert config.positions.kind == "alibi"
    encoder = config.build()
    encoder.load_state_dict(own(state, "encoder."))
    assert torch.equal(encoder.layers[1].qkv.weight, theirs["bert.encoder.layer.1.attention.self.Wqkv.weight"])
    assert torch.equal(encoder.layers[0].feed_forward.wi.weight, theirs["bert.encoder.layer.0.mlp.gated_layers.weight"])
    MaskedLMHead.Config().build(encoder=config).load_state_dict(own(state, "head."))


def test_other_checkpoints_are_refused() -> None:
    with pytest.raises(InputError, match="neither as BERT's nor as MosaicBERT's"):
        renamed({"model.layers.0.mlp.up_proj.weight": torch.zeros(1)})
    state = mosaic_state()
    with pytest.raises(InputError, match=r"surprise\.weight.* has no place"):
        renamed({**state, "bert.surprise.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="hidden_act 'mish'"):
        encoder_config({"num_attention_heads": 3, "hidden_act": "mish"}, renamed(state))
    for heads in (None, 5, "3"):  # of a width of 24
        with pytest.raises(InputError, match="num_attention_heads"):
            encoder_config({"num_attention_heads": heads}, renamed(state))
    with pytest.raises(InputError, match="relative_key"):
        encoder_config({"num_attention_heads": 3, "position_embedding_type": "relative_key"}, renamed(state))
    with pytest.raises(InputError, match=r"lacks words\.weight"):
        encoder_config({"num_attention_heads": 3}, {})


def test_tensors_are_read_from_safetensors_or_a_restricted_bin(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        read_tensors(tmp_path)
    torch.save({"x": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert torch.equal(read_tensors(tmp_path)["x"], torch.ones(2))
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")  # goes before it
    assert torch.equal(read_tensors(tmp_path)["x"], torch.zeros(2))
    (tmp_path / "model.safetensors").write_bytes(b"\x00\x01")
    with pytest.raises(InputError, match="is damaged"):
        read_tensors(tmp_path)


def test_code_in_a_bin_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="is damaged"):
        read_tensors(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_published_shape_is_that_of_the_default() -> None:
    with torch.device("meta"):
        encoder = TextEncoder.Config().build()
        head = MaskedLMHead.Config().build(encoder=TextEncoder.Config())
    assert sum(p.numel() for p in (*encoder.parameters(), *head.parameters())) == 137_400_384
