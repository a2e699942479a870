"""Adapters: the backbone at the start, only where wanted, counted, and frozen elsewhere."""

import pytest
import torch

from encyclo.errors import InputError
from encyclo.nn.lora import Lora, add_lora, lora_state, train_adapters_only, without_lora
from encyclo.nn.part import parameter_count

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")


def small(kind="llama"):
    torch.manual_seed(0)
    shape = {
        "llama": {
            "vocab_size": 50,
            "num_hidden_layers": 3,
            "hidden_size": 16,
            "num_attention_heads": 4,
            "intermediate_size": 24,
            "num_key_value_heads": 2,
        },
        "gpt2": {"vocab_size": 50, "n_layer": 3, "n_embd": 16, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
    }[kind]
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **shape)).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_at_the_start_it_is_the_backbone(kind):
    plain, adapted = small(kind), small(kind)
    names = add_lora(adapted, Lora(rank=2, layers=2))
    ids = torch.randint(0, 50, (2, 6))
    assert torch.equal(adapted(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert len(names) == 2 * (7 if kind == "llama" else 4)
    assert all(".1." in name or ".2." in name for name in names)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_()
    assert not torch.allclose(adapted(input_ids=ids).logits, plain(input_ids=ids).logits)
    with without_lora(adapted):
        assert torch.equal(adapted(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert not torch.allclose(adapted(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_only_adapters_are_trained():
    model = small()
    add_lora(model, Lora(rank=2, alpha=8, targets="attention"))
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == set(lora_state(model))
    assert len(trained) == 3 * 4 * 2
    assert parameter_count(model, trainable=True) == 3 * 2 * ((16 + 16) * 2 + (16 + 8) * 2)


def test_adapters_of_a_half_precision_model_are_float32():
    model = small().bfloat16()
    add_lora(model, Lora(rank=2))
    assert {value.dtype for value in lora_state(model).values()} == {torch.float32}
    logits = model(input_ids=torch.randint(0, 50, (2, 5))).logits
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()


def test_alpha_over_rank_scales_the_change():
    model = small()
    (name,) = add_lora(model, Lora(rank=2, alpha=8, targets=("up_proj",), layers=1))
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    x = torch.randn(3, 16)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.allclose(layer(x) - layer.base_layer(x), 4 * x @ a.T @ b.T, atol=1e-5)


def test_training_mode_reaches_the_adapters_dropout_only():
    model = small("gpt2")
    add_lora(model, Lora(rank=2, dropout=0.5))
    train_adapters_only(model, True)
    modes = {name: module.training for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert any(modes.values())
    assert all(value == ("lora_dropout" in name) for name, value in modes.items())
    train_adapters_only(model, False)
    assert not any(module.training for module in model.modules())


def test_published_counts_on_meta():
    """13.6 M on attention and 41.9 M on all linear maps of Mistral-7B, as computed from the published rank 16."""
    from encyclo.pretrained import open_model

    for targets, count in (("attention", 13_631_488), ("all-linear", 41_943_040)):
        with torch.device("meta"):
            model = open_model("mistralai/Mistral-7B-v0.1")
            add_lora(model, Lora(rank=16, alpha=8, dropout=0.1, targets=targets))
        assert parameter_count(model, trainable=True) == count


def test_unknown_targets_are_refused():
    with pytest.raises(InputError, match="no linear map"):
        add_lora(small(), Lora(targets=("wq",)))
