"""The verbs: what a trained system does for a user, as protocols, and how a command calls them.

A verb is a method of a system. Its annotations are its command line: the type of the first parameter says how an input
is read, keyword-only parameters are the `key=value` options.
"""

import inspect
import json
import os
import tempfile
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from encyclo.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from encyclo.system import System

VERBS: dict[str, str] = {
    "encode": "Turn inputs into vectors or tokens",
    "decode": "Turn codes back into data",
    "generate": "Make new data",
    "compress": "Write a file that holds the input in fewer bytes",
    "decompress": "Restore what `compress` wrote",
    "search": "Find the passages of a folder that answer a query",
    "answer": "Answer a question about the input",
    "edit": "Change the input as told",
    "shrink": "Make the model smaller or cheaper",
    "inspect": "Show what the model has learned, as a page",
    "fill": "Rank what could stand in the place of [MASK]",
    "extend": "Prepare the model for longer inputs",
    "finetune": "Train on labelled data of your own, from this model",
    "probe": "Measure the representation on labelled data",
    "classify": "Name the class of each input",
    "reconstruct": "Show the input beside what the model makes of it",
    "interpolate": "Make what lies between",
    "inpaint": "Fill the hidden regions of the input",
    "likelihood": "How probable the model finds each input",
    "marginal": "Exact probability of a part of the input",
    "sample": "Draw new data from the model's distribution",
    "explain": "Show why a result came out",
    "prune": "Make codes sparser, with what it costs",
    "replace": "Run the base model with parts replaced",
    "circuit": "Trace which features cause an output",
    "deembed": "Which tokens drive a feature directly",
    "import": "Convert published weights",
}
"""Every verb of the command line and its one-line help."""


@dataclass(frozen=True)
class Result:
    """What a verb gives back: the value, figures about it, and what was lost on the way."""

    value: Any
    report: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@runtime_checkable
class Encodes(Protocol):
    """Inputs -> vectors [n, dim] (or what the system's docstring says)."""

    def encode(self, inputs: Any, /, **options: Any) -> Any: ...


@runtime_checkable
class Decodes(Protocol):
    """Codes -> data."""

    def decode(self, codes: Any, /, **options: Any) -> Any: ...


@runtime_checkable
class Generates(Protocol):
    """A prompt, a class or nothing -> data."""

    def generate(self, *args: Any, **options: Any) -> Any: ...


@runtime_checkable
class Compresses(Protocol):
    """Data -> one self-describing byte string, and back."""

    def compress(self, item: Any, /, **options: Any) -> Any: ...

    def decompress(self, blob: bytes, /, **options: Any) -> Any: ...


@runtime_checkable
class Searches(Protocol):
    """A query over a folder of texts -> ranked passages."""

    def search(self, query: str, /, **options: Any) -> Any: ...


@runtime_checkable
class Answers(Protocol):
    """An input and a question -> text."""

    def answer(self, inputs: Any, /, **options: Any) -> Any: ...


@runtime_checkable
class Edits(Protocol):
    """An input and an instruction -> the changed input."""

    def edit(self, inputs: Any, /, **options: Any) -> Any: ...


@runtime_checkable
class Shrinks(Protocol):
    """A model -> a smaller or cheaper one."""

    def shrink(self, *args: Any, **options: Any) -> Any: ...


@runtime_checkable
class Inspects(Protocol):
    """A view into the model, as a page."""

    def inspect(self, *args: Any, **options: Any) -> Any: ...


# -- calling a verb from words ---------------------------------------------------------------------------------------


def method_name(verb: str) -> str:
    """The method behind a verb; those that are Python keywords carry an underscore (`import_`)."""
    return f"{verb}_" if verb == "import" else verb


def call(
    system: "System",
    verb: str,
    inputs: Sequence[str],
    options: Sequence[str] = (),
    out: Path | None = None,
) -> list[Result]:
    """Run a verb on words from a command line.

    Args:
        system: an opened system.
        verb: one of `VERBS` that the system has.
        inputs: paths or texts, read as the verb's annotations say.
        options: `name=value` words.
        out: handed on to verbs that write themselves; ordinary results are written by `write`.

    Returns:
        One result, or one per input where the verb takes a single input and several were given.

    Raises:
        InputError: for a verb the system lacks, an input that cannot be read, or a wrong option.
    """
    method = getattr(system, method_name(verb), None)
    if verb not in system.card.verbs or method is None:
        has = ", ".join(system.card.verbs) or "no verb"
        raise InputError(f"a {type(system).__name__} cannot '{verb}'; it can {has}")
    signature = inspect.signature(method)
    hints = typing.get_type_hints(method)
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    settings = _options(verb, signature, hints, options)
    if "out" in signature.parameters:
        settings["out"] = out
    if not positional:
        if inputs:
            raise InputError(f"'{verb}' takes no input, but got '{inputs[0]}'; options are given as name=value")
        return [_result(method(**settings))]
    first = positional[0]
    wanted = hints.get(first.name, str)
    if len(positional) > 1:
        if len(inputs) != len(positional):
            names = " ".join(p.name.upper() for p in positional)
            raise InputError(f"'{verb}' takes {len(positional)} inputs ({names}), got {len(inputs)}")
        values = [read(word, hints.get(p.name, str)) for word, p in zip(inputs, positional, strict=True)]
        return [_result(method(*values, **settings))]
    if not inputs:
        if first.default is not first.empty:
            return [_result(method(**settings))]
        raise InputError(f"'{verb}' needs an input ({first.name})")
    if typing.get_origin(wanted) in (Sequence, list, tuple):
        inner = typing.get_args(wanted)[0]
        return [_result(method([read(word, inner) for word in inputs], **settings))]
    return [_result(method(read(word, wanted), **settings)) for word in inputs]


def _result(value: Any) -> Result:
    return value if isinstance(value, Result) else Result(value)


def _options(verb: str, signature: inspect.Signature, hints: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    from pydantic import TypeAdapter, ValidationError

    known = {n: p for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY and n != "out"}
    settings: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in known:
            listed = ", ".join(known) or "none"
            raise InputError(f"'{word}': '{verb}' has no option '{name}'; its options: {listed}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = {"True": True, "False": False, "None": None}.get(text, text)
        adapter = TypeAdapter(hints.get(name, Any))
        try:
            settings[name] = adapter.validate_python(value)
        except ValidationError:
            try:
                settings[name] = adapter.validate_python(text)
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                raise InputError(f"{name}={text}: {message[0].lower()}{message[1:]}") from None
    missing = [n for n, p in known.items() if p.default is p.empty and n not in settings]
    if missing:
        raise InputError(f"'{verb}' needs {missing[0]}=...")
    return settings


# -- reading and writing by type --------------------------------------------------------------------------------------


def read(word: str, wanted: Any) -> Any:
    """An input word as the wanted type: str, Path, bytes, Image, Video or Audio (or a union with None)."""
    options = [a for a in typing.get_args(wanted) if a is not type(None)]
    if options and typing.get_origin(wanted) is not None:
        wanted = options[0]
    if wanted is str or wanted is inspect.Parameter.empty or wanted is Any:
        path = Path(word)
        try:
            isfile = path.is_file()
        except OSError:  # a long text is no path
            isfile = False
        if not isfile and path.suffix in (".txt", ".md", ".rst") and len(word.split()) == 1:
            raise InputError(f"there is no file '{word}'")  # a mistyped name, not a text
        if not isfile:
            return word
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{word} is no UTF-8 text file") from None
    path = Path(word)
    if wanted is Path:
        if not path.exists():
            raise InputError(f"there is no file or folder '{word}'")
        return path
    if not path.is_file():
        raise InputError(f"there is no file '{word}'")
    if wanted is bytes:
        return path.read_bytes()
    return _reader(wanted)(path)


def _reader(wanted: Any) -> Callable[[Path], Any]:
    name = getattr(wanted, "__name__", str(wanted))
    if name == "Image":
        from encyclo.data.images import Image

        return Image.read
    if name == "Video":
        from encyclo.data.video import read_video

        return read_video
    if name == "Audio":
        from encyclo.data.audio import read_audio

        return read_audio
    if wanted is int or wanted is float:
        raise InputError("numbers are given as options, name=value")
    raise TypeError(f"no reader for {name}")


def write(value: Any, out: Path) -> list[Path]:
    """Write a verb's value by its type and the suffix of `out`; each file appears whole or not at all.

    Returns:
        The files written (several for a list of media: `out` is then a folder).
    """
    import torch

    if isinstance(value, list | tuple) and value and not isinstance(value[0], str | int | float | dict | list | tuple):
        out.mkdir(parents=True, exist_ok=True)
        suffix = _suffix(value[0])
        return [path for i, item in enumerate(value) for path in write(item, out / f"{i:04d}{suffix}")]
    if isinstance(value, bytes):
        _atomic(out, lambda path: path.write_bytes(value))
    elif isinstance(value, str):
        _atomic(out, lambda path: path.write_text(value if value.endswith("\n") else value + "\n", encoding="utf-8"))
    elif isinstance(value, torch.Tensor):
        _atomic(out, lambda path: _write_tensor(value, path, out))
    elif type(value).__name__ == "Video":
        from encyclo.data.video import write_video

        write_video(value, out)
    elif type(value).__name__ == "Audio":
        from encyclo.data.audio import write_audio

        write_audio(value, out)
    elif type(value).__name__ == "Image":
        from encyclo.data.images import write_image

        write_image(value.pixels, out)
    else:
        text = json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n"
        _atomic(out, lambda path: path.write_text(text, encoding="utf-8"))
    return [out]


def plain(value: Any) -> Any:
    """A value as JSON can hold it: tensors as nested lists, media as a short description."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        if type(value).__name__ in ("Video", "Audio", "Image"):
            return f"one {type(value).__name__.lower()}"
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def _suffix(value: Any) -> str:
    return {"Video": ".mp4", "Audio": ".wav", "Image": ".png", "bytes": ".bin", "Tensor": ".npy"}.get(
        type(value).__name__, ".json"
    )


def _atomic(out: Path, write_to: Callable[[Path], Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=".writing-", suffix=out.suffix)
    os.close(handle)
    try:
        write_to(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _write_tensor(value: "Tensor", path: Path, out: Path) -> None:
    tensor = value.detach().cpu()
    match out.suffix:
        case ".npy":
            import numpy as np

            with path.open("wb") as file:
                np.save(file, tensor.numpy(), allow_pickle=False)
        case ".safetensors":
            from safetensors.torch import save_file

            save_file({"values": tensor.contiguous()}, path)
        case ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            rows = tensor.reshape(tensor.shape[0], -1).numpy()
            column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
            pq.write_table(pa.table({"embedding": column}), path)
        case ".json":
            path.write_text(json.dumps(tensor.tolist()) + "\n", encoding="utf-8")
        case other:
            raise InputError(f"'{out}': vectors are written as .npy, .parquet, .safetensors or .json, not '{other}'")
