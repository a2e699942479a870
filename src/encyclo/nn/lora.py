"""Low-rank adapters on a pretrained decoder, through peft."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from encyclo.config import Config
from encyclo.errors import InputError
from encyclo.nn.split_decoder import decoder_layers

__all__ = [
    "Lora",
    "add_lora",
    "lora_state",
    "read_peft",
    "train_adapters_only",
    "without_lora",
    "write_peft",
]


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


# -- peft's own layout on disk ---------------------------------------------------------------------------------------

_WEIGHTS, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_PATTERNS = ("rank_pattern", "alpha_pattern")


def write_peft(model: Any, folder: str | Path, *, base: str) -> Path:
    """Write a model's adapters as peft does, for use without this library.

    Args:
        model: with adapters from `add_lora`.
        folder: made if missing.
        base: name of the base model, for those who open it.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, adapter_name="default")
    settings = model.peft_config["default"]
    settings.base_model_name_or_path = base
    settings.inference_mode = True
    save_file(
        {f"{_PREFIX}{name}": value.detach().cpu().contiguous() for name, value in state.items()},
        folder / _WEIGHTS,
        metadata={"format": "pt"},
    )
    settings.save_pretrained(str(folder))
    return folder


def read_peft(folder: str | Path) -> tuple[Lora, str | None, dict[str, Tensor]]:
    """Adapters that peft (or `write_peft`) wrote: their form, the name of their base model, and the tensors.

    The tensors are named as in `lora_state` of a model with such adapters. Nothing in the folder is executed.

    Raises:
        InputError: no adapters, damaged, or of a form that is not plain LoRA.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in (_SETTINGS, _WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"'{folder}' holds no adapters of peft ({name} is missing)")
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        state = {
            name.removeprefix(_PREFIX).replace(".weight", ".default.weight"): value.float()
            for name, value in load_file(folder / _WEIGHTS).items()
        }
        other = {name for name in ("use_rslora", "use_dora", "modules_to_save", *_PATTERNS) if settings.get(name)}
        strange = settings["peft_type"] != "LORA" or settings.get("bias", "none") != "none" or bool(other)
        maps = sorted({name.split(".lora_")[0] for name in state})
        first = min(int(next(step for step in name.split(".") if step.isdigit())) for name in maps)
        last = max(int(next(step for step in name.split(".") if step.isdigit())) for name in maps)
        lora = Lora(
            rank=settings["r"],
            alpha=settings["lora_alpha"],
            dropout=settings.get("lora_dropout", 0.0),
            targets=tuple(sorted({name.split(".")[-1] for name in maps})),
            layers=last - first + 1 if first else None,
        )
        base = settings.get("base_model_name_or_path")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, SafetensorError) as error:
        raise InputError(f"the adapters in '{folder}' are damaged ({type(error).__name__})") from error
    if strange:
        raise InputError(f"'{folder}' holds other adapters than plain LoRA without biases: they cannot be taken over")
    return lora, base, state
