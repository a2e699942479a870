"""Batches of any nesting: moved to a device, cut into equal parts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from encyclo.errors import InputError


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor on `device`, its mappings, tuples and lists rebuilt, all else as it is.

    A batch class of its own kind is moved by its own `to(device)`.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, device) for value in batch)
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    return batch


def split(batch: Any, parts: int) -> list[Any]:
    """The batch as `parts` equal parts, in order.

    Tensors are cut along their first dimension, and so are lists (a list is a list of samples); mappings and tuples
    are cut entry by entry; single numbers, strings and None go into every part. A batch class of its own kind is cut
    by its own method `split(parts)`.

    Raises:
        InputError: a batch that has no samples to cut, whose entries differ in length, or that cannot be cut evenly.
    """
    if parts == 1:
        return [batch]
    if _own_split(batch):
        return list(batch.split(parts))
    lengths = sorted(_lengths(batch))
    if not lengths:
        raise InputError(
            f"a batch of type {type(batch).__name__} cannot be split into {parts} parts: it holds no tensors and no"
            " list, give it a method split(parts) or set accumulate=1"
        )
    if lengths[0] != lengths[-1]:
        raise InputError(
            f"the batch cannot be split into {parts} parts: its entries are of different lengths"
            f" ({', '.join(map(str, lengths))}); give it a method split(parts) or set accumulate=1"
        )
    if lengths[0] % parts:
        raise InputError(
            f"a batch of {lengths[0]} cannot be split into {parts} equal parts:"
            f" make batch_size a multiple of accumulate={parts} times the number of processes"
        )
    size = lengths[0] // parts
    return [_cut(batch, start * size, size) for start in range(parts)]


def _own_split(batch: Any) -> bool:
    return not isinstance(batch, Tensor | str | bytes) and callable(getattr(batch, "split", None))


def _lengths(batch: Any) -> set[int]:
    if isinstance(batch, Tensor):
        return {batch.shape[0]} if batch.ndim else set()
    if isinstance(batch, list):
        return {len(batch)}
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple) else ()
    return set().union(*map(_lengths, values))


def _cut(batch: Any, start: int, size: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start : start + size] if batch.ndim else batch
    if isinstance(batch, list):
        return batch[start : start + size]
    if isinstance(batch, Mapping):
        return {name: _cut(value, start, size) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_cut(value, start, size) for value in batch))
    if isinstance(batch, tuple):
        return tuple(_cut(value, start, size) for value in batch)
    return batch
