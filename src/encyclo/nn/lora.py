"""Low-rank adapters on a pretrained decoder, through peft."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from encyclo.config import Config
from encyclo.errors import InputError
from encyclo.nn.split_decoder import decoder_layers

__all__ = ["Lora", "add_lora", "lora_state", "train_adapters_only", "without_lora"]


class Lora(Config):
    """W x + (alpha / rank) B A dropout(x) on chosen linear maps (Hu et al. 2022, section 4.1); B starts at zero."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear", "attention"] | tuple[str, ...] = "all-linear"
    """All linear maps of the decoder layers, those of attention only, or names such as ('q_proj', 'v_proj')."""
    layers: int | None = Field(None, ge=1, description="only the topmost layers; None: all")


def add_lora(model: Any, lora: Lora) -> list[str]:
    """Freeze a causal LM of transformers and put adapters into it, in place; names of the maps that got one.

    At the start the model computes what it did before, because B is zero.

    Raises:
        InputError: peft is missing, or nothing fits `targets`.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("adapters need peft: pip install peft") from None
    path, layers = decoder_layers(model)
    first = 0 if lora.layers is None else max(0, len(layers) - lora.layers)
    chosen = [
        f"{path}.{index}.{name}"
        for index in range(first, len(layers))
        for name, module in layers[index].named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and _wanted(name, lora.targets)
    ]
    if not chosen:
        raise InputError(f"lora.targets={lora.targets}: {type(model).__name__} has no linear map of such a name")
    model.requires_grad_(False)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=chosen,
        fan_in_fan_out=any(type(model.get_submodule(name)).__name__ == "Conv1D" for name in chosen),
    )
    inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:  # small steps would be lost in the frozen weights' bfloat16
            parameter.data = parameter.data.float()
    return chosen


def _wanted(name: str, targets: str | tuple[str, ...]) -> bool:
    if targets == "all-linear":
        return True
    if targets == "attention":
        return any("attn" in step or "attention" in step for step in name.split("."))
    return name.split(".")[-1] in targets


def lora_state(module: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors by name."""
    return {name: value for name, value in module.state_dict().items() if ".lora_" in name}


class without_lora:
    """Inside, the adapters of a model are switched off: it computes what the base model does."""

    def __init__(self, model: nn.Module) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.enable_adapters(False)

    def __exit__(self, *error: object) -> None:
        for layer in self._layers:
            layer.enable_adapters(True)


def train_adapters_only(model: nn.Module, mode: bool) -> None:
    """Training mode for the adapters' dropout, evaluation mode for the frozen rest."""
    model.eval()
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            torch.nn.Module.train(module, mode)
