"""Reads the released GPT-2 transcoders (hub `pchlenski/gpt2-transcoders`) without running anything they contain."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from encyclo.errors import InputError
from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.sparse_dictionary import SparseDictionary

_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "b_dec_out")
HOOK = "ln2.hook_normalized"
LARGEST_FILE = 4 * 2**30


class _Opaque:
    """Stands for every class a checkpoint names; keeps the attributes, runs nothing."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A torch checkpoint with every foreign class replaced by an inert stand-in.

    The restricted unpickler of `torch.load(weights_only=True)` builds tensors and plain containers only.

    Raises:
        InputError: no checkpoint, too large, or one that needs more than that.
    """
    if not path.is_file():
        raise InputError(f"there is no file '{path}'")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"'{path}' is larger than {LARGEST_FILE >> 30} GiB: not a transcoder checkpoint")
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins: list[Any] = [(type("Opaque", (_Opaque,), {}), name) for name in foreign]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds for a damaged file
        raise InputError(f"'{path}' is no readable checkpoint ({type(error).__name__})") from None
    if not isinstance(loaded, dict):
        raise InputError(f"'{path}' holds no dictionary of weights")
    return loaded


def from_published(path: Path, view: DecoderView, layer: int | None = None) -> tuple[int, SparseDictionary]:
    """A released transcoder, converted to the layout and convention of a plain transformers model.

    The release was trained on a model whose norm gains are folded into the weights: its input is (x - mean) / std. A
    plain model's MLP input is g (x - mean) / std + b, so W_enc becomes W_enc / g and b_in becomes g b_in + b. (Its
    output lies in the zero-mean subspace; every later LayerNorm removes the mean, so nothing needs converting there.)

    Args:
        path: `final_sparse_autoencoder_..._blocks.L.ln2.hook_normalized_24576.pt`, or what `to_published` wrote.
        view: the model it is to be used on.
        layer: which layer it stands for; None: what its hook point says.

    Returns:
        The layer and the dictionary.

    Raises:
        InputError: no such file, another layout, hook point or width, or no word of the layer.
    """
    state: Any
    if path.suffix == ".safetensors":
        state, told = _read_safetensors(path)
    else:
        loaded = read_checkpoint(path)
        state, settings = loaded.get("state_dict"), loaded.get("cfg")
        told = dict(settings if isinstance(settings, dict) else getattr(settings, "__dict__", {}))
    if not isinstance(state, dict) or not all(isinstance(state.get(name), Tensor) for name in _NAMES):
        raise InputError(f"'{path}' is no transcoder: its state_dict must hold {', '.join(_NAMES)}")
    hook = str(told.get("hook_point", f"blocks.{layer}.{HOOK}" if layer is not None else path.name))
    if HOOK not in hook:
        raise InputError(f"'{path}' was trained at hook point '{hook}'; this reads transcoders of {HOOK}")
    numbered = re.search(r"blocks\.(\d+)\.", hook)
    if layer is None and numbered is None:
        raise InputError(f"'{path}' does not say which layer it stands for: give layer=...")
    layer = int(numbered[1]) if layer is None and numbered is not None else int(layer or 0)
    norm = view.layer(layer).norm_mlp
    dim, features = state["W_enc"].shape
    shapes = {"b_enc": (features,), "W_dec": (features, dim), "b_dec": (dim,), "b_dec_out": (dim,)}
    if dim != len(norm.weight) or features % dim or any(tuple(state[n].shape) != s for n, s in shapes.items()):
        raise InputError(f"'{path}' is {dim} wide with {features} features; the model is {len(norm.weight)} wide")
    dictionary: SparseDictionary = SparseDictionary.Config(expansion=features // dim).build(dim=dim)
    with torch.no_grad():
        gain, shift = norm.weight, norm.bias if norm.bias is not None else torch.zeros_like(norm.weight)
        dictionary.encoder.copy_(state["W_enc"].T / gain)
        dictionary.encoder_bias.copy_(state["b_enc"])
        dictionary.input_bias.copy_(gain * state["b_dec"] + shift)
        dictionary.decoder.copy_(state["W_dec"])
        dictionary.output_bias.copy_(state["b_dec_out"])
    return layer, dictionary


def to_published(dictionary: SparseDictionary, view: DecoderView, layer: int) -> bytes:
    """A transcoder in the released layout and convention (its norm's gain folded away), as a safetensors file.

    Its metadata name the hook points, the widths and the convention.
    """
    norm = view.layer(layer).norm_mlp
    with torch.no_grad():
        gain, shift = norm.weight, norm.bias if norm.bias is not None else torch.zeros_like(norm.weight)
        state = {
            "W_enc": (dictionary.encoder * gain).T.contiguous(),
            "b_enc": dictionary.encoder_bias.clone(),
            "W_dec": dictionary.decoder.clone(),
            "b_dec": (dictionary.input_bias - shift) / gain,
            "b_dec_out": dictionary.output_bias.clone(),
        }
    told = {
        "hook_point": f"blocks.{layer}.{HOOK}",
        "out_hook_point": f"blocks.{layer}.hook_mlp_out",
        "d_in": str(dictionary.dim),
        "d_sae": str(dictionary.features),
        "norm": "folded: the input is the norm's output without gain and bias",
    }
    return save({name: tensor.cpu() for name, tensor in state.items()}, metadata=told)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"there is no file '{path}'")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{path}' is no readable safetensors file ({type(error).__name__})") from None
