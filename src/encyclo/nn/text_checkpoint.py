"""Published weights of BERT-shaped encoders, found by the names of their tensors: BERT's own layout, and MosaicBERT's.

Only names and shapes are looked at, so that no code of a model repository is needed.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from encyclo.errors import InputError
from encyclo.nn.alibi import Alibi
from encyclo.nn.feed_forward import Activation, Glu, Mlp
from encyclo.nn.text_encoder import LearnedPositions, MaskedLMHead, TextEncoder

KeyLayout = Literal["bert", "mosaic"]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "encoder.words.weight",
    "embeddings.token_type_embeddings.weight": "encoder.types.weight",
    "embeddings.position_embeddings.weight": "encoder.positions.table.weight",
    "embeddings.LayerNorm.": "encoder.norm.",
}
_HEAD = {
    "cls.predictions.transform.dense.": "head.dense.",
    "cls.predictions.transform.LayerNorm.": "head.norm.",
    "cls.predictions.bias": "head.bias",
    "cls.predictions.decoder.bias": "head.bias",
    "pooler.dense.": "classifier.dense.",
}
_LAYER: dict[KeyLayout, dict[str, str]] = {
    "bert": {
        "attention.output.dense.": "out.",
        "attention.output.LayerNorm.": "attention_norm.",
        "intermediate.dense.": "feed_forward.wi.",
        "output.dense.": "feed_forward.wo.",
        "output.LayerNorm.": "norm.",
    },
    "mosaic": {
        "attention.self.Wqkv.": "qkv.",
        "attention.output.dense.": "out.",
        "attention.output.LayerNorm.": "attention_norm.",
        "mlp.gated_layers.": "feed_forward.wi.",
        "mlp.wo.": "feed_forward.wo.",
        "mlp.layernorm.": "norm.",
    },
}
_IGNORED = re.compile(r"embeddings\.position_ids$|cls\.predictions\.decoder\.weight$|cls\.seq_relationship\.|alibi")
_NUMBER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder: safetensors, in one file or in shards, else a pytorch_model.bin.

    The latter, as the published MosaicBERT weights come, is read by torch's restricted unpickler, which makes tensors
    and runs no code.

    Raises:
        InputError: no weights, or damaged ones.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise InputError(f"{folder} holds no weights: model.safetensors is missing")
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                state.update(load_file(file))
            else:
                state.update(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # the two readers raise many kinds, all of which mean the same
            raise InputError(f"{file} is damaged ({type(error).__name__}): fetch it again") from None
    return state


def read_description(folder: Path) -> dict[str, Any]:
    """The content of a model folder's config.json.

    Raises:
        InputError: missing or damaged.
    """
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        described = None
    if not isinstance(described, dict):
        raise InputError(f"{folder / 'config.json'} is missing or damaged: give a model folder")
    return described


def read_encoder(folder: Path) -> TextEncoder:
    """The encoder of a model folder of either layout (BERT, all-MiniLM, MosaicBERT ...), heads left aside.

    Raises:
        InputError: no such model in the folder.
    """
    state = renamed(read_tensors(folder))
    encoder: TextEncoder = encoder_config(read_description(folder), state).build()
    own = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    try:
        encoder.load_state_dict(own)
    except RuntimeError as error:
        raise InputError(f"the weights in {folder} do not fit: {str(error).splitlines()[-1].strip()}") from None
    return encoder.eval()


def key_layout(names: Mapping[str, Any]) -> KeyLayout:
    """Which layout a checkpoint has.

    Raises:
        InputError: neither.
    """
    if any(name.endswith("encoder.layer.0.attention.self.Wqkv.weight") for name in names):
        return "mosaic"
    if any(name.endswith("encoder.layer.0.attention.self.query.weight") for name in names):
        return "bert"
    shown = ", ".join(sorted(names)[:2]) or "nothing"
    raise InputError(f"these weights are laid out neither as BERT's nor as MosaicBERT's (they hold {shown}, ...)")


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint of either layout under our names: `encoder.`, `head.` and `classifier.` followed by
    those of `TextEncoder`, `MaskedLMHead` and `TextClassifier`. Tied copies and heads for other tasks are left out.

    Raises:
        InputError: another layout, or a tensor that has no place.
    """
    layout = key_layout(state)
    ours: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        plain = name.removeprefix("module.").removeprefix("bert.")
        plain = plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if _IGNORED.search(plain):
            continue
        numbered = _NUMBER.match(plain)
        if numbered is None:
            ours[_replaced(plain, {**_EMBEDDINGS, **_HEAD})] = tensor
            continue
        place, rest = f"encoder.layers.{numbered[1]}.", numbered[2]
        part = re.match(r"attention\.self\.(query|key|value)\.(weight|bias)$", rest)
        if part is not None:
            thirds.setdefault(f"{place}qkv.{part[2]}", {})[part[1]] = tensor
        else:
            ours[place + _replaced(rest, _LAYER[layout])] = tensor
    for name, parts in thirds.items():
        ours[name] = torch.cat([parts[third] for third in ("query", "key", "value")])
    return ours


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for theirs, ours in table.items():
        if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
            return ours + name.removeprefix(theirs)
    raise InputError(f"tensor '{name}' has no place in a BERT-shaped encoder")


def head_config(described: Mapping[str, Any]) -> MaskedLMHead.Config:
    """The configuration of a checkpoint's head for masked tokens, from its `config.json`."""
    return MaskedLMHead.Config(activation=_activation(described))


def _activation(described: Mapping[str, Any]) -> Activation:
    told = str(described.get("hidden_act", "gelu"))
    if told not in _ACTIVATIONS:
        raise InputError(f"hidden_act '{told}' is not known; known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[told]


def encoder_config(described: Mapping[str, Any], state: Mapping[str, Tensor]) -> TextEncoder.Config:
    """The configuration of a checkpoint's encoder, from its `config.json` and the shapes of its tensors.

    Args:
        described: the content of config.json.
        state: the tensors, under our names (see `renamed`).

    Raises:
        InputError: an activation that is not known, a position scheme that is not BERT's, a missing tensor.
    """
    try:
        words, wi = state["encoder.words.weight"], state["encoder.layers.0.feed_forward.wi.weight"]
        hidden = state["encoder.layers.0.feed_forward.wo.weight"].shape[1]
    except KeyError as error:
        raise InputError(f"the checkpoint lacks {error.args[0].removeprefix('encoder.')}") from None
    told = _activation(described)
    if described.get("position_embedding_type", "absolute") not in ("absolute", "alibi"):
        raise InputError(f"position_embedding_type '{described['position_embedding_type']}' is not supported")
    gated = wi.shape[0] == 2 * hidden
    if gated and told != "gelu":
        raise InputError(f"a gated feed-forward with hidden_act '{told}' is not MosaicBERT's")
    heads = described.get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1 or words.shape[1] % heads:
        raise InputError(
            f"num_attention_heads is {heads!r}, the width is {words.shape[1]}: is config.json another model's?"
        )
    dropout = float(described.get("hidden_dropout_prob", 0.1))
    table = state.get("encoder.positions.table.weight")
    types = state.get("encoder.types.weight")
    return TextEncoder.Config(
        vocabulary=words.shape[0],
        vocabulary_multiple=1,
        dim=words.shape[1],
        layers=1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers.")),
        heads=heads,
        feed_forward=(
            Glu.Config(kind="geglu", hidden=hidden, dropout=dropout)
            if gated
            else Mlp.Config(hidden=hidden, activation=told)
        ),
        positions=(
            LearnedPositions.Config(length=table.shape[0])
            if table is not None
            else Alibi.Config(starting_length=int(described.get("alibi_starting_size", 512)))
        ),
        types=0 if types is None else types.shape[0],
        unpad=True,
        norm_eps=float(described.get("layer_norm_eps", 1e-12)),
        dropout=dropout,
        attention_dropout=float(described.get("attention_probs_dropout_prob", 0.0)),
    )
