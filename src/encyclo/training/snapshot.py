"""Tensors of a model and its optimisers, out to a checkpoint and back."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encyclo.errors import InputError
from encyclo.training.objective import Objective


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; one that is used in several places comes once.

    Raises:
        TypeError: a module with extra state that is not a tensor.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {type(value).__name__}, not a tensor: checkpoints hold tensors only")
        if id(value) not in seen:
            seen.add(id(value))
            found[name] = value
    return found


@torch.no_grad()
def restore(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], path: Path) -> None:
    """Copy stored tensors into a model's own.

    Raises:
        InputError: another model: names or shapes differ.
    """
    missing = sorted(set(own) ^ set(stored))
    other = missing or [name for name in own if own[name].shape != stored[name].shape]
    if other:
        raise InputError(
            f"checkpoint {path} is of another model (they differ in '{other[0]}'): resume with the same configuration,"
            " or start in another folder"
        )
    for name, tensor in own.items():
        tensor.copy_(like(stored[name], tensor) if hasattr(tensor, "device_mesh") else stored[name])


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A copy of a whole tensor, sharded as `pattern` is, where it is; one of another shape (a counter) stays whole."""
    if hasattr(pattern, "device_mesh") and tensor.shape == pattern.shape:
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = pattern
        return distribute_tensor(tensor.to(pattern.device), sharded.device_mesh, sharded.placements)
    return tensor.clone()


def differences(now: Any, then: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two trees differ: (dotted path, now, then)."""
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        for name in {**then, **now}:
            yield from differences(now.get(name), then.get(name), f"{prefix}.{name}" if prefix else name)
    elif now != then:
        yield prefix, now, then


def optimiser_tensors(objective: Objective) -> dict[str, Tensor]:
    """The optimiser's memory, as OBJECTIVE:PARAMETER:SLOT."""
    return {
        f"{objective.name}:{name}:{slot}": value
        for name, p in zip(objective.names, objective.parameters, strict=True)
        for slot, value in objective.optimiser.state.get(p, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimiser(objective: Objective, stored: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` gave."""
    slots: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        name, _, rest = key.partition(":")
        parameter, _, slot = rest.rpartition(":")
        if name == objective.name and parameter:
            slots.setdefault(parameter, {})[slot] = tensor
    names = {id(p): name for name, p in zip(objective.names, objective.parameters, strict=True)}
    listed = [p for group in objective.optimiser.param_groups for p in group["params"]]
    state = {
        index: {slot: like(tensor, p) for slot, tensor in slots[names[id(p)]].items()}
        for index, p in enumerate(listed)
        if names[id(p)] in slots
    }
    groups = objective.optimiser.state_dict()["param_groups"]
    objective.optimiser.load_state_dict({"state": state, "param_groups": groups})
