from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from encyclo.errors import InputError
from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.published_transcoders import from_published, read_checkpoint
from encyclo.nn.sparse_dictionary import SparseDictionary
from systems.contract import SystemContract


class TestContract(SystemContract):
    slug = "transcoders"
    published = {"transcoders": 12 * 37_774_848}
    verbs = {
        "encode": ["In the beginning", "def f(x): return x"],
        "inspect": ["feature=3", "contexts=4", "blind=true"],
        "circuit": ["In the beginning God", "root=feature:1:5", "depth=2", "errors_only_for=missing"],
        "deembed": ["feature=0"],
        "replace": ["In the beginning", "tokens=3"],
    }
    bad = [
        ("encode", ["some text", "layer=9"], "no transcoder here"),
        ("deembed", ["feature=99999999"], "outside"),
        ("deembed", [], "needs feature"),
        ("circuit", ["In the beginning", "root=feature:1:5"], "error nodes"),
        ("circuit", ["", "root=feature:1:5"], "empty"),
        ("circuit", ["In the beginning", "root=7"], "root=7"),
        ("circuit", ["In the beginning", "root=feature:1:5", "token=99"], "outside the prompt"),
        ("circuit", ["In the", "root=logit:extraordinarily-it", "errors_only_for=missing"], "tokens"),
        ("encode", [""], "empty"),
    ]


def dictionary(dim: int = 8, expansion: int = 4) -> SparseDictionary:
    torch.manual_seed(0)
    made: SparseDictionary = SparseDictionary.Config(expansion=expansion).build(dim=dim)
    with torch.no_grad():
        for bias in (made.encoder_bias, made.input_bias, made.output_bias):
            bias.copy_(torch.randn_like(bias))
    return made


def test_the_module_is_its_equation() -> None:
    tc, x = dictionary(), torch.randn(5, 8)
    z = torch.relu((x - tc.input_bias) @ tc.encoder.T + tc.encoder_bias)
    torch.testing.assert_close(tc(x), z @ tc.decoder + tc.output_bias)


def test_decoder_rows_stay_at_unit_length_and_get_no_gradient_along_them() -> None:
    tc = dictionary()
    tc(torch.randn(16, 8)).square().sum().backward()
    tc.drop_parallel_gradient()
    along = (tc.decoder.grad * tc.decoder).sum(1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-4, rtol=0)
    with torch.no_grad():
        tc.decoder.mul_(3)
    tc.normalise_decoder()
    torch.testing.assert_close(tc.decoder.norm(dim=1), torch.ones(32))


def gpt2() -> DecoderView:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=16)).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            block.ln_2.weight.uniform_(0.5, 2)
            block.ln_2.bias.normal_()
    return DecoderView(model)


class Foreign:
    """Stands for the release's configuration class, which no user has."""

    def __init__(self) -> None:
        self.hook_point, self.d_in = "blocks.1.ln2.hook_normalized", 8


def release(path: Path, **changes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state = {
        "W_enc": torch.randn(8, 32),
        "b_enc": torch.randn(32),
        "W_dec": torch.randn(32, 8),
        "b_dec": torch.randn(8),
        "b_dec_out": torch.randn(8),
    }
    config = Foreign()
    vars(config).update(changes)
    torch.save({"cfg": config, "state_dict": state}, path)
    return state


def test_a_released_transcoder_means_the_same_on_a_plain_model(tmp_path: Path) -> None:
    view, state = gpt2(), release(tmp_path / "tc.pt")
    made, settings = from_published(tmp_path / "tc.pt", view.layers[1].norm_mlp)
    assert settings["d_in"] == 8
    x = torch.randn(6, 8)
    normalised = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    z = torch.relu((normalised - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    plain_input = view.layers[1].norm_mlp.module(x)
    torch.testing.assert_close(made.encode(plain_input), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made(plain_input), z @ state["W_dec"] + state["b_dec_out"], rtol=1e-4, atol=1e-4)


def test_reading_a_release_runs_nothing_of_it(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"cfg": Bomb(), "state_dict": {}}, tmp_path / "bomb.pt")
    with pytest.raises(InputError):
        from_published(tmp_path / "bomb.pt", gpt2().layers[0].norm_mlp)
    assert not (tmp_path / "exploded").exists()


def test_a_release_of_another_hook_point_or_width_is_refused(tmp_path: Path) -> None:
    release(tmp_path / "other.pt", hook_point="blocks.1.hook_resid_mid")
    with pytest.raises(InputError, match="hook_resid_mid"):
        from_published(tmp_path / "other.pt", gpt2().layers[0].norm_mlp)
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(InputError, match="no readable checkpoint"):
        read_checkpoint(tmp_path / "text.pt")
    with pytest.raises(InputError, match="no file"):
        read_checkpoint(tmp_path / "missing.pt")
