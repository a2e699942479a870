"""The released GPT-2 layout: read without running anything, converted from folded norms, written back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import GPT2Config, GPT2LMHeadModel

from encyclo.errors import InputError
from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.published_transcoders import from_published, read_checkpoint, to_published


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


@torch.no_grad()
def test_a_released_transcoder_means_the_same_on_a_plain_model(tmp_path: Path) -> None:
    view, state = gpt2(), release(tmp_path / "tc.pt")
    layer, made = from_published(tmp_path / "tc.pt", view)
    assert layer == 1  # its hook point says so
    x = torch.randn(6, 8)
    normalised = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    z = torch.relu((normalised - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    plain_input = view.layers[1].norm_mlp.module(x)
    torch.testing.assert_close(made.encode(plain_input), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made(plain_input), z @ state["W_dec"] + state["b_dec_out"], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_centred_writing_weights_change_no_logit(tmp_path: Path) -> None:
    """The release's targets have zero mean over the width; the plain model's do not, and no logit can tell."""
    view = gpt2()
    ids = torch.randint(0, 40, (2, 7))
    with view.replaced({1: lambda x, y: y}):
        plain = view.model(input_ids=ids).logits
    with view.replaced({1: lambda x, y: y - y.mean(-1, keepdim=True)}):
        torch.testing.assert_close(view.model(input_ids=ids).logits, plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    view = gpt2()
    state = release(tmp_path / "tc.pt")
    layer, made = from_published(tmp_path / "tc.pt", view)
    file = tmp_path / "out.safetensors"
    file.write_bytes(to_published(made, view, layer))
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["hook_point"] == "blocks.1.ln2.hook_normalized"
        for name, tensor in state.items():
            torch.testing.assert_close(opened.get_tensor(name), tensor, rtol=1e-4, atol=1e-5)
    again, twin = from_published(file, view)
    assert again == 1
    torch.testing.assert_close(twin.encoder, made.encoder, rtol=1e-4, atol=1e-5)


def test_reading_a_release_runs_nothing_of_it(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"cfg": Bomb(), "state_dict": {}}, tmp_path / "bomb.pt")
    with pytest.raises(InputError):
        from_published(tmp_path / "bomb.pt", gpt2())
    assert not (tmp_path / "exploded").exists()


def test_a_release_of_another_hook_point_layer_or_width_is_refused(tmp_path: Path) -> None:
    release(tmp_path / "other.pt", hook_point="blocks.1.hook_resid_mid")
    with pytest.raises(InputError, match="hook_resid_mid"):
        from_published(tmp_path / "other.pt", gpt2())
    release(tmp_path / "high.pt", hook_point="blocks.7.ln2.hook_normalized")
    with pytest.raises(InputError, match="layer 7 is outside"):
        from_published(tmp_path / "high.pt", gpt2())
    release(tmp_path / "nowhere.pt", hook_point="ln2.hook_normalized")
    with pytest.raises(InputError, match="give layer"):
        from_published(tmp_path / "nowhere.pt", gpt2())
    assert from_published(tmp_path / "nowhere.pt", gpt2(), 0)[0] == 0
    torch.save({"cfg": {}, "state_dict": {"W_enc": torch.zeros(4, 8)}}, tmp_path / "part.pt")
    with pytest.raises(InputError, match="must hold"):
        from_published(tmp_path / "part.pt", gpt2(), 0)
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(InputError, match="no readable checkpoint"):
        read_checkpoint(tmp_path / "text.pt")
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    with pytest.raises(InputError, match="no readable safetensors"):
        from_published(tmp_path / "text.safetensors", gpt2(), 0)
    with pytest.raises(InputError, match="no file"):
        read_checkpoint(tmp_path / "missing.pt")
