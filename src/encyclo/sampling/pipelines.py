"""Opening and calling diffusers pipelines from words: safetensors only, no code of a repository, one line per error."""

import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from encyclo.errors import InputError


def open_pipeline(source: str) -> Any:
    """A diffusers pipeline from a folder or a hub id; what is on this machine is tried first.

    Raises:
        InputError: no such folder, no pipeline in it, weights that are not safetensors, or no reachable repository.
    """
    path = Path(source)
    if path.exists() and not (path / "model_index.json").is_file():
        raise InputError(f"'{source}' holds no diffusers pipeline (a folder with model_index.json)")
    if not path.exists() and (source.count("/") != 1 or source.startswith((".", "/"))):
        raise InputError(f"there is no folder '{source}', and a hub id has the form owner/name")
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    last: Exception | None = None
    for local in (True, False):
        try:
            pipe = DiffusionPipeline.from_pretrained(source, use_safetensors=True, local_files_only=local)
        except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
            last = error
            if path.exists():
                break
            continue
        pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
        return pipe
    told = " ".join(str(last).split())
    raise InputError(f"'{source}' does not open as a diffusers pipeline: {told[:200] or type(last).__name__}")


def call_pipeline(
    pipe: Any, *, count: int, seed: int, steps: int, prompt: str | None = None, **more: Any
) -> UInt8[Tensor, "n c h w"]:
    """Images of a pipeline that works from noise, alone or with a prompt.

    Args:
        pipe: called with `num_inference_steps`, `generator` and `batch_size` or `prompt`.
        count: images, sampled together.
        seed: of the noise, drawn on the CPU.
        steps: sampler steps.
        prompt: the same for all images.
        more: handed on.

    Raises:
        InputError: a prompt is missing, or the pipeline needs something else.
    """
    accepted = inspect.signature(pipe.__call__).parameters
    told: dict[str, Any] = {
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "np",
        **more,
    }
    kind = type(pipe).__name__
    if "prompt" in accepted:
        if prompt is None:
            raise InputError(f"a {kind} needs prompt=...")
        told["prompt"] = [prompt] * count
    elif "batch_size" in accepted:
        if prompt:
            raise InputError(f"a {kind} takes no prompt")
        told["batch_size"] = count
    else:
        raise InputError(f"a {kind} does not start from noise alone: call it from Python, under accelerate_sampling")
    try:
        made = pipe(**told).images
    except (TypeError, ValueError) as error:
        raise InputError(f"the {kind} refused: {' '.join(str(error).split())[:200]}") from None
    pixels = torch.as_tensor(made).permute(0, 3, 1, 2)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
