"""Published weights of image encoders, renamed to the names of this library."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from encyclo.errors import InputError

__all__ = ["cae_layout", "read_weights"]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name out of a .safetensors file, or a torch checkpoint read without running anything in it.

    Of a dictionary with an entry `model` that entry is meant.

    Raises:
        InputError: a file that cannot be read so.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # training options, which hold no code
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        why = (str(error) or "it ends too early").splitlines()[0]
        raise InputError(f"'{path}' is no readable checkpoint ({why})") from None
    except Exception as error:  # the restricted unpickler's own errors
        kind = type(error).__name__
        raise InputError(f"'{path}' is no checkpoint of tensors alone ({kind}): convert it to .safetensors") from None
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise InputError(f"'{path}' holds no weights by name")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


# -- CAE ---------------------------------------------------------------------------------------------------------------

_CAE_PARTS = (
    (r"^encoder\.cls_token$", "encoder.cls"),
    (r"^encoder\.patch_embed\.", "encoder.patch_embed."),
    (r"^encoder\.blocks\.", "encoder.blocks.blocks."),
    (r"^encoder\.norm\.", "encoder.blocks.norm."),
    (r"^mask_token$", "regressor.mask_token"),
    (r"^regresser\.regressor_blocks\.", "regressor.blocks."),
    (r"^regresser\.norm\.", "regressor.norm."),
    (r"^decoder\.decoder_blocks\.", "decoder.blocks."),
    (r"^decoder\.norm\.", "decoder.norm."),
    (r"^decoder\.head\.", "to_codes."),
    (r"^encoder_to_regresser\.", "bridge.0."),
    (r"^encoder_to_regresser_norm\.", "bridge.1."),
)
_CAE_LAYERS = (
    (r"\.norm1_([qkv])\.", r".norm_\1."),
    (r"\.norm2_cross\.", ".norm2."),
    (r"\.cross_attn\.([qv])_bias$", r".attn.\1.bias"),
    (r"\.cross_attn\.", ".attn."),
    (r"\.mlp(?:_cross)?\.fc1\.", ".mlp.wi."),
    (r"\.mlp(?:_cross)?\.fc2\.", ".mlp.wo."),
    (r"\.gamma_([12])(?:_cross)?$", r".scale\1.gamma"),
)
_CAE_DERIVED = ("encoder.pos_embed", "rd_pos_embed", "alignment_encoder.")
"""What follows from the rest: fixed positions, and the alignment branch, whose weights are the encoder's."""


def cae_layout(state: Mapping[str, Tensor], heads: int | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration that a checkpoint of the official CAE code was made with, and its weights by our names.

    Args:
        state: the checkpoint's weights.
        heads: of encoder, regressor and decoder; None: one per 64 channels.

    Returns:
        Fields of `CAE.Config` (shapes only; the file does not tell how it was trained), and the weights.

    Raises:
        InputError: a name that no CAE has, or a missing part.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(_CAE_DERIVED):
            continue
        new = next((re.sub(old, to, name) for old, to in _CAE_PARTS if re.search(old, name)), None)
        if new is None:
            raise InputError(f"the checkpoint has '{name}', which no CAE has")
        for old, to in _CAE_LAYERS:
            new = re.sub(old, to, new)
        renamed[new] = value.float()

    def stack(prefix: str, width: int) -> dict[str, Any]:
        numbers = [int(name.removeprefix(prefix + ".").split(".")[0]) for name in renamed if name.startswith(prefix)]
        ratio = renamed[f"{prefix}.0.mlp.wi.weight"].shape[0] / width
        return {
            "depth": 1 + max(numbers),
            "heads": heads or max(1, width // 64),
            "bias": "qv",
            "layer_scale": 0.1,
            "mlp": {"kind": "mlp", "ratio": ratio},
        }

    try:
        dim, channels, patch, _ = renamed["encoder.patch_embed.proj.weight"].shape
        count = state["encoder.pos_embed"].shape[1] - 1
        codes, inner = renamed["to_codes.weight"].shape
        fields = {
            "encoder": {
                "image_size": round(count**0.5) * patch,
                "patch": patch,
                "channels": channels,
                "dim": dim,
                "blocks": stack("encoder.blocks.blocks", dim),
            },
            "regressor": stack("regressor.blocks", inner),
            "decoder": stack("decoder.blocks", inner),
            "decoder_dim": None if inner == dim else inner,
            "codebook": {"kind": "kmeans", "codes": codes, "patch": patch, "channels": channels},
        }
    except KeyError as error:
        raise InputError(f"the checkpoint lacks {error}: it is no pretrained CAE") from None
    return fields, renamed
