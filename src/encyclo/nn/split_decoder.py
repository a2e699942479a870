"""A pretrained decoder run in two halves: frozen lower layers without gradient (and once only), upper layers with."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from encyclo.errors import InputError

__all__ = ["SplitDecoder", "StateCache", "decoder_layers", "head_inputs"]


class _Reached(Exception):
    """Carries the states out of a forward pass that need not go on."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers of a causal LM of transformers, and its name within the model.

    Raises:
        InputError: none is found.
    """
    count = int(model.config.num_hidden_layers)  # type: ignore[arg-type, union-attr]
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise InputError(f"{type(model).__name__} has no plain list of {count} decoder layers: give another base model")


class SplitDecoder:
    """Runs a causal LM of transformers up to a layer, and on from there; together they are the whole model, exactly.

    The upper half runs the model's own forward with the lower layers passing through what was stored, so that
    positions, masks and norms are the model's own, whatever its architecture.

    Args:
        model: a causal LM; only its trunk (without the head) is run.
        upper: number of layers of the upper half.
    """

    def __init__(self, model: Any, upper: int) -> None:
        self.trunk: Any = model.base_model
        self._layers = list(decoder_layers(model)[1])
        if not 1 <= upper <= len(self._layers):
            raise InputError(f"upper={upper}: the model has {len(self._layers)} layers")
        self._border = len(self._layers) - upper

    def whole(self, ids: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Final states of all tokens, after the last norm."""
        states: Tensor = self.trunk(input_ids=ids, use_cache=False).last_hidden_state
        return states

    @torch.no_grad()
    def lower(self, ids: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """States that enter the upper half. They change with nothing above, so they can be kept."""

        def stop(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _Reached(inputs[0] if inputs else named["hidden_states"])

        hook = self._layers[self._border].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.trunk(input_ids=ids, use_cache=False)
        except _Reached as reached:
            return reached.states
        finally:
            hook.remove()
        raise RuntimeError("the model did not pass its layers in order")

    def upper(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Final states from stored ones."""
        ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
        with self._handed_through(states):
            made: Tensor = self.trunk(input_ids=ids, use_cache=False).last_hidden_state
        return made

    @contextlib.contextmanager
    def _handed_through(self, states: Tensor) -> Iterator[None]:
        """The lower layers do nothing, and the first upper one gets `states`."""

        def idle(hidden_states: Tensor, *rest: Any, **named: Any) -> Any:
            return hidden_states

        def replace(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if inputs:
                return (states, *inputs[1:]), named
            return inputs, {**named, "hidden_states": states}

        lower = self._layers[: self._border]
        hook = self._layers[self._border].register_forward_pre_hook(replace, with_kwargs=True)
        for layer in lower:
            layer.forward = idle  # type: ignore[method-assign]
        try:
            yield
        finally:
            hook.remove()
            for layer in lower:
                del layer.forward


class StateCache:
    """Remembers lower-half states by token ids, up to a number of bytes; frozen layers give them once and for all.

    Args:
        split: the decoder.
        megabytes: how much to remember; 0: nothing.
    """

    def __init__(self, split: SplitDecoder, megabytes: int) -> None:
        self.split = split
        self._room = megabytes * 2**20
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def lower(self, rows: list[list[int]]) -> Float[Tensor, "b t d"]:
        """States of texts of different lengths, zeros behind each; what is remembered is not computed again."""
        keys = [tuple(row) for row in rows]
        known = {key: self._kept[key] for key in keys if key in self._kept}
        fresh = sorted({key for key in keys if key not in known}, key=len)
        if fresh:
            device = next(self.split.trunk.parameters()).device
            ids = nn.utils.rnn.pad_sequence([torch.tensor(key, device=device) for key in fresh], batch_first=True)
            for key, states in zip(fresh, self.split.lower(ids), strict=True):
                known[key] = states[: len(key)].clone()
                size = known[key].numel() * known[key].element_size()
                if size <= self._room:
                    self._kept[key] = known[key]
                    self._room -= size
        return nn.utils.rnn.pad_sequence([known[key] for key in keys], batch_first=True)


def head_inputs(model: Any, **inputs: Tensor) -> Float[Tensor, "b t d"]:
    """What enters the output matrix of a language model (of a masked one: after its transform), without the logits."""

    def stop(module: nn.Module, given: tuple[Any, ...]) -> None:
        raise _Reached(given[0])

    hook = model.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        model(**inputs)
    except _Reached as reached:
        return reached.states
    finally:
        hook.remove()
    raise RuntimeError("the model did not come to its output matrix")
