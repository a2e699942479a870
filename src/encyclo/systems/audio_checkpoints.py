"""Published weights of audio codecs, renamed to the names of this library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encyclo.errors import InputError
from encyclo.nn.seanet import SeanetDecoder, SeanetEncoder
from encyclo.nn.weight_norm import fold_weight_norm
from encyclo.systems.audio_codec import AudioCodec

__all__ = ["encodec_fields", "load_academicodec", "load_encodec", "open_transformers_encodec"]

_RUN_ONLY = ("counts", "energy", ".use", ".ready", ".sums")
"""Ends of names that no published checkpoint has."""


# -- AcademiCodec ------------------------------------------------------------------------------------------------------


def load_academicodec(codec: AudioCodec, path: Path) -> None:
    """Fill a HiFi-Codec from a checkpoint of the official layout; weight norms are folded.

    Args:
        codec: of the checkpoint's sizes.
        path: safetensors with keys `PART.KEY`, or the official file (a dict of `generator`, `encoder`, `quantizer`),
            read with torch's restricted unpickler: tensors only, no code is run.

    Raises:
        InputError: a file that cannot be read so, a missing or surplus key, a tensor of another shape.
    """
    found = _read(path)
    wanted = codec.state_dict()
    state = {name: tensor for name, tensor in wanted.items() if name.endswith(_RUN_ONLY)}
    for part, own, names in (
        ("encoder", "encoder", _encoder_names(codec.config.encoder)),
        ("generator", "decoder", _generator_names(codec.config.decoder)),
    ):
        for theirs, ours in names.items():
            for key, tensor in _folded(found, f"{part}.{theirs}").items():
                state[f"{own}.{ours}.{key}"] = tensor
    quantizer = codec.config.quantizer
    for level in range(quantizer.levels):
        stem = f"quantizer.quantizer_modules{'' if level == 0 else level + 1}"
        tables = [_take(found, f"{stem}.{group}.embedding.weight") for group in range(quantizer.groups)]
        if len({table.shape for table in tables}) > 1:
            raise InputError(f"{path}: the codebooks of level {level + 1} differ in shape")
        state[f"quantizer.levels.{level}.weight"] = torch.stack(tables)
    if found:
        raise InputError(f"{path}: '{next(iter(found))}' has no place in this configuration: choose another layout")
    for name, tensor in state.items():
        if wanted[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
            raise InputError(f"{path}: {name} has shape {shapes}: choose another layout")
    codec.load_state_dict(state)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is no readable safetensors file ({_first_line(error)})") from None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        parts = {part: dict(held[part]) for part in ("generator", "encoder", "quantizer")}
    except Exception:  # the restricted unpickler raises nearly anything on a foreign file
        raise InputError(
            f"{path} is no checkpoint of generator, encoder and quantizer: give the official file or its safetensors"
        ) from None
    return {f"{part}.{key}": tensor for part, state in parts.items() for key, tensor in state.items()}


def _take(found: dict[str, Tensor], key: str) -> Tensor:
    if key not in found:
        raise InputError(f"the checkpoint has no '{key}': choose another layout")
    return found.pop(key).float()


def _folded(found: dict[str, Tensor], stem: str) -> dict[str, Tensor]:
    """Weight and bias of a layer; where the weight is stored as gain and direction, w = g v / |v|."""
    if f"{stem}.weight_g" in found:
        gain, direction = _take(found, f"{stem}.weight_g"), _take(found, f"{stem}.weight_v")
        size = direction.flatten(1).norm(dim=1).reshape(gain.shape)
        weight = direction * (gain / size)
    else:
        weight = _take(found, f"{stem}.weight")
    return {"weight": weight, "bias": _take(found, f"{stem}.bias")}


def _block_names(stages: int, dilations: Sequence[int]) -> dict[str, str]:
    names = {}
    for stage in range(stages):
        for j, count in enumerate(dilations):
            for n in range(count):
                theirs = f"resblocks.{stage * len(dilations) + j}"
                names[f"{theirs}.convs1.{n}"] = f"blocks.{stage}.{j}.dilated.{n}"
                names[f"{theirs}.convs2.{n}"] = f"blocks.{stage}.{j}.plain.{n}"
    return names


def _generator_names(config: Any) -> dict[str, str]:
    stages = len(config.rates)
    names = {"conv_pre": "first", "conv_post": "last"} | {f"ups.{i}": f"ups.{i}" for i in range(stages)}
    return names | _block_names(stages, [len(block.dilations) for block in config.blocks])


def _encoder_names(config: Any) -> dict[str, str]:
    stages, blocks = len(config.rates), len(config.blocks)
    names = {"conv_pre": "first", "conv_post": "last"} | {f"ups.{i}": f"downs.{i}" for i in range(stages)}
    names |= {f"normalize.{i * blocks + j}": f"norms.{i}.{j}" for i in range(stages) for j in range(blocks)}
    return names | _block_names(stages, [len(block.dilations) for block in reversed(config.blocks)])


# -- EnCodec -----------------------------------------------------------------------------------------------------------


def open_transformers_encodec(folder: Path) -> Any:
    """transformers' `EncodecModel` from a local folder, weight norms folded.

    Raises:
        InputError: another kind of model, or one with stereo, chunks or normalised loudness (the 48 kHz model).
    """
    from transformers import EncodecConfig, EncodecModel

    try:
        kind = EncodecConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type")
        if kind != "encodec":
            raise ValueError(f"it holds a model of type {kind}")
        described = EncodecConfig.from_pretrained(folder, local_files_only=True)
        if described.audio_channels != 1 or described.normalize or described.norm_type != "weight_norm":
            raise ValueError("models with stereo, normalised loudness or group norms are not supported")
        base = EncodecModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"'{folder}' holds no EnCodec that can be opened: {_first_line(error)}") from None
    return fold_weight_norm(base)


def encodec_fields(base: Any, levels: int | None) -> dict[str, Any]:
    """Fields of a codec's configuration, but for the quantiser's learning: rate, dim, halves, levels, codebook size."""
    described = base.config
    halves = {
        "rates": tuple(described.upsampling_ratios),
        "filters": described.num_filters,
        "kernel": described.kernel_size,
        "last_kernel": described.last_kernel_size,
        "residual_kernel": described.residual_kernel_size,
        "residual_layers": described.num_residual_layers,
        "dilation_growth": described.dilation_growth_rate,
        "compress": described.compress,
        "lstm_layers": described.num_lstm_layers,
        "causal": described.use_causal_conv,
        "padding": described.pad_mode,
        "shortcut": described.use_conv_shortcut,
    }
    most = len(base.quantizer.layers)
    if levels is not None and not 1 <= levels <= most:
        raise InputError(f"levels={levels}: this EnCodec has 1 to {most}")
    return {
        "rate": described.sampling_rate,
        "dim": described.hidden_size,
        "encoder": SeanetEncoder.Config(**halves),
        "decoder": SeanetDecoder.Config(**halves),
        "levels": levels or most,
        "size": described.codebook_size,
    }


def load_encodec(codec: AudioCodec, base: Any) -> None:
    """Copy the weights of `open_transformers_encodec` into a codec built from `encodec_fields`."""
    codec.encoder.load_state_dict(base.encoder.state_dict())
    codec.decoder.load_state_dict(base.decoder.state_dict())
    with torch.no_grad():
        for level, layer in zip(codec.quantizer.levels, base.quantizer.layers, strict=False):
            level.weight.copy_(layer.codebook.embed[None])
            level.sums.copy_(level.weight)
            level.ready.fill_(True)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:120] if text else type(error).__name__
