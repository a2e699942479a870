"""Reads the released GPT-2 transcoders (hub `pchlenski/gpt2-transcoders`) without running anything they contain."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encyclo.errors import InputError
from encyclo.nn.decoder_view import NormView
from encyclo.nn.sparse_dictionary import SparseDictionary

_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "b_dec_out")
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


def from_published(path: Path, norm: NormView) -> tuple[SparseDictionary, dict[str, Any]]:
    """A released transcoder, converted to the layout and convention of a plain transformers GPT-2.

    The release was trained on a model whose norm gains are folded into the weights: its input is (x - mean) / std. A
    plain model's MLP input is g (x - mean) / std + b, so W_enc becomes W_enc / g and b_in becomes g b_in + b. (Its
    output lies in the zero-mean subspace; every later LayerNorm removes the mean, so nothing needs converting there.)

    Args:
        path: `final_sparse_autoencoder_..._blocks.L.ln2.hook_normalized_24576.pt`.
        norm: the pre-MLP norm of that layer.

    Returns:
        The dictionary and the release's own settings (hook point, width ...).
    """
    loaded = read_checkpoint(path)
    state = loaded.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(state.get(name), Tensor) for name in _NAMES):
        raise InputError(f"'{path}' is no transcoder: its state_dict must hold {', '.join(_NAMES)}")
    settings = loaded.get("cfg")
    told = dict(settings if isinstance(settings, dict) else getattr(settings, "__dict__", {}))
    hook = str(told.get("hook_point", "ln2.hook_normalized"))
    if not hook.endswith("ln2.hook_normalized"):
        raise InputError(f"'{path}' was trained at hook point '{hook}'; this reads transcoders of ln2.hook_normalized")
    dim, features = state["W_enc"].shape
    if dim != len(norm.weight) or features % dim:
        raise InputError(f"'{path}' is {dim} wide with {features} features; the model is {len(norm.weight)} wide")
    dictionary: SparseDictionary = SparseDictionary.Config(expansion=features // dim).build(dim=dim)
    with torch.no_grad():
        gain, shift = norm.weight, norm.bias if norm.bias is not None else torch.zeros_like(norm.weight)
        dictionary.encoder.copy_(state["W_enc"].T / gain)
        dictionary.encoder_bias.copy_(state["b_enc"])
        dictionary.input_bias.copy_(gain * state["b_dec"] + shift)
        dictionary.decoder.copy_(state["W_dec"])
        dictionary.output_bias.copy_(state["b_dec_out"])
    return dictionary, told
