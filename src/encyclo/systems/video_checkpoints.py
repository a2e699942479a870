"""Published weights of HNeRV, renamed to the names of this library: the whole model, or its 8-bit codec file.

The whole model has `encoder.*` (a ConvNeXt), `decoder.0.conv.downconv`, `decoder.{i}.conv.upconv.0` and `head_layer`;
its embeddings are made from the clip by the encoder. The codec file has `embed` and `model`, each tensor as `quant`,
`min` and `scale`.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from encyclo import catalogue
from encyclo.data.video import MAX_PIXELS, Video
from encyclo.errors import InputError

if TYPE_CHECKING:
    from encyclo.systems.fitted_video import FittedVideo

__all__ = ["from_published", "open_published"]

_PARTS = (
    (r"^decoder\.0\.conv\.downconv\.", "decoder.stem."),
    (r"^head_layer\.", "decoder.head."),
    (r"^encoder\.downsample_layers\.", "encoder.stages."),
    (r"\.dwconv\.", ".depthwise."),
    (r"\.pwconv1\.", ".expand."),
    (r"\.pwconv2\.", ".project."),
    (r"\.gamma$", ".scale.gamma"),
)


def open_published(path: str | Path, clip: Video | None = None) -> "FittedVideo":
    """The system in a published file, read without running anything in it; see `from_published`.

    Raises:
        InputError: a file that cannot be read so, or of another model.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"there is no file '{path}': check the path") from None
    except Exception as error:  # the restricted unpickler has errors of its own
        raise InputError(f"'{path}' is no checkpoint of tensors alone ({type(error).__name__})") from None
    if not isinstance(held, dict):
        raise InputError(f"'{path}' holds no weights by name")
    if "embed" in held and isinstance(held.get("model"), dict):
        state = {name: _dequantised(part, name) for name, part in held["model"].items()}
        return from_published(state, clip, embeddings=_dequantised(held["embed"], "embed"))
    state = held.get("state_dict", held)
    return from_published({name: t for name, t in state.items() if isinstance(t, Tensor)}, clip)


def from_published(
    state: Mapping[str, Tensor],
    clip: Video | None = None,
    *,
    embeddings: Float[Tensor, "t d rows columns"] | None = None,
    reduce: float = 1.2,
    lowest: int = 12,
) -> "FittedVideo":
    """An HNeRV out of weights in the official layout. Strides, widths and kernels follow from the shapes.

    Args:
        state: weights by their official names; those of an encoder may be missing.
        clip: the frames of which the encoder makes the embeddings, and whose rate and name the system takes.
        embeddings: in place of the encoder's.
        reduce, lowest: r and C_low of the decoder, which its shapes do not tell apart.

    Raises:
        InputError: names or shapes of another model; neither clip nor embeddings.
    """
    try:
        fields = _fields(state, reduce, lowest)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"the checkpoint is no HNeRV in the official layout ({error})") from None
    product = math.prod(fields["decoder"]["strides"])
    if embeddings is not None:
        if embeddings.ndim != 4 or embeddings.shape[1] != fields["dim"]:
            raise InputError(f"embeddings of shape {list(embeddings.shape)} do not fit a decoder of {fields['dim']}")
        count, (rows, columns) = len(embeddings), embeddings.shape[2:]
        size = {"frames": count, "height": rows * product, "width": columns * product}
    elif clip is not None and fields["encoder"] is not None:
        count, _, height, width = clip.frames.shape
        size = {"frames": count, "height": height, "width": width}
    else:
        raise InputError("the checkpoint holds no embeddings: give the clip, and the model with its encoder")
    if math.prod(size.values()) > MAX_PIXELS:
        raise InputError(f"{size['frames']} frames of {size['width']}x{size['height']} are more than is decoded")
    system: Any = catalogue.system("hnerv").Config.model_validate({**fields, **size}).build()
    made = system.state_dict()
    renamed = {_renamed(name): value for name, value in state.items()}
    if fields["encoder"] is None:
        renamed = {name: value for name, value in renamed.items() if name.startswith("decoder.")}
    renamed["embeddings"] = made["embeddings"]
    wrong = list(made.keys() ^ renamed.keys())
    wrong += [name for name in made.keys() & renamed.keys() if made[name].shape != renamed[name].shape]
    if wrong:
        raise InputError(
            f"the checkpoint does not fit: {sorted(wrong)[0]} (give `reduce` and `lowest`, if they differ)"
        )
    system.load_state_dict(renamed)
    system.clip = {"fps": str(clip.fps if clip else 25), "name": clip.name if clip else "published", "digest": ""}
    with torch.no_grad():
        if embeddings is not None:
            system.keep_codes({"embeddings": embeddings})
        else:
            assert clip is not None
            system.after_fit(system.pad(clip.frames))
    opened: FittedVideo = system.eval()
    return opened


def _renamed(name: str) -> str:
    """An official name as this library's: block i of the decoder, and blocks behind the two layers of a stage."""
    name = re.sub(r"^decoder\.(\d+)\.conv\.upconv\.0\.", lambda m: f"decoder.blocks.{int(m[1]) - 1}.conv.", name)
    name = re.sub(r"^encoder\.stages\.(\d+)\.(\d+)\.", lambda m: f"encoder.stages.{m[1]}.{int(m[2]) + 2}.", name)
    for official, ours in _PARTS:
        name = re.sub(official, ours, name)
    return name


def _fields(state: Mapping[str, Tensor], reduce: float, lowest: int) -> dict[str, Any]:
    """The configuration that the shapes tell."""
    stem = state["decoder.0.conv.downconv.weight"]
    blocks = []  # type: ignore[var-annotated]
    while (weight := state.get(f"decoder.{len(blocks) + 1}.conv.upconv.0.weight")) is not None:
        blocks.append(weight)
    inputs = [w.shape[1] for w in (*blocks, state["head_layer.weight"])]
    strides = tuple(math.isqrt(w.shape[0] // after) for w, after in zip(blocks, inputs[1:], strict=True))
    kernels = [w.shape[2] for w in blocks]
    grown = math.isqrt(stem.shape[0] // inputs[0])
    encoder = None
    if any(name.startswith("encoder.") for name in state):
        stages = sum(1 for name in state if re.fullmatch(r"encoder\.downsample_layers\.\d+\.0\.weight", name))
        convs = [state[f"encoder.downsample_layers.{i}.{0 if i == 0 else 1}.weight"] for i in range(stages)]
        depths = tuple(
            sum(1 for name in state if re.fullmatch(rf"encoder\.stages\.{i}\.\d+\.gamma", name)) for i in range(stages)
        )
        encoder = {
            "strides": tuple(w.shape[2] for w in convs),
            "depths": depths,
            "dims": tuple(w.shape[0] for w in convs),
        }
    return {
        "dim": stem.shape[1],
        "encoder": encoder,
        "decoder": {
            "width": inputs[0],
            "strides": strides,
            "reduce": reduce,
            "lowest": lowest,
            "kernels": (kernels[0], max(kernels)),
            "grow": (grown, grown),
        },
    }


def _dequantised(part: Any, name: str) -> Float[Tensor, "..."]:
    """min + scale * quant, the ranges spread over the axis that they lack."""
    try:
        symbols, low, scale = (part[key].float() for key in ("quant", "min", "scale"))
    except (LookupError, TypeError, AttributeError):
        raise InputError(f"'{name}' is not stored as quant, min and scale: it is no published codec file") from None
    if low.ndim == symbols.ndim - 1 > 0:
        axes = [i for i in range(symbols.ndim) if symbols.shape[:i] + symbols.shape[i + 1 :] == low.shape]
        if not axes:
            raise InputError(f"the ranges of '{name}' do not fit its shape: the file is damaged")
        low, scale = low.unsqueeze(axes[0]), scale.unsqueeze(axes[0])
    try:
        out: Tensor = low + scale * symbols
    except RuntimeError:
        raise InputError(f"the ranges of '{name}' do not fit its shape: the file is damaged") from None
    if out.shape != symbols.shape:
        raise InputError(f"the ranges of '{name}' do not fit its shape: the file is damaged")
    return out
