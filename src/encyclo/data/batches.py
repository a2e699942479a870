"""Batches in an order that is a pure function of (seed, epoch), from a position that can be stored exactly."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from itertools import islice
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from encyclo.errors import InputError

__all__ = ["Batches"]

Collate = Callable[[Any], Any]


class Batches:
    """An endless iterator of batches over a source; epochs follow one another without a seam.

    What a batch is depends on the source: an int (a length) gives the int64 indices [b]; a tensor gives its rows; a
    mapping or tuple of tensors gives the same of their rows; a `datasets.Dataset` gives a dict of columns; any
    other sequence gives a list; a streaming `datasets.IterableDataset` gives a dict of columns. `collate` turns
    that into what the loop wants.

    A stream is shuffled in blocks of `block` samples, each in an order that depends on (seed, epoch, block) alone, so
    that it too can stop and go on exactly.

    Args:
        source: what to draw from.
        batch_size: samples in one global batch, over all ranks.
        seed: decides, with the epoch's number, the order.
        shuffle: False keeps the source's order.
        drop_last: leave out the short batch at an epoch's end.
        collate: applied to each batch.
        block: samples that a stream is shuffled in at a time.

    Raises:
        InputError: no samples, or too few for one batch.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
        collate: Collate | None = None,
        block: int = 4096,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} holds nothing: give at least 1")
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.collate = collate
        self.block = max(block, batch_size)
        self.rank, self.world = 0, 1
        self.epoch, self.index = 0, 0
        self._order: Int64[Tensor, " n"] | None = None
        self._stream: _Stream | None = None
        self.length: int | None = None
        if _streams(source):
            self._stream = _Stream(source, self)
            return
        self.length = _length(source)
        if self.length < 1:
            raise InputError("the data set has no samples: nothing to make batches of")
        if drop_last and self.length < batch_size:
            raise InputError(
                f"{self.length} samples cannot fill a batch of {batch_size}: lower batch_size to {self.length} or less"
            )

    def shard(self, rank: int, world: int) -> "Batches":
        """The same batches, of which rank `rank` of `world` gets its slice; the slices together are the global batch.

        Slices differ in length by at most one sample. Only a short last batch (`drop_last=False`) with fewer samples
        than ranks leaves a rank an empty slice.

        Raises:
            InputError: a rank outside 0..world-1, or more ranks than samples in a batch.
        """
        if not 0 <= rank < world:
            raise InputError(f"rank {rank} is not one of {world}: give 0..{world - 1}")
        if world > self.batch_size:
            raise InputError(f"batch_size={self.batch_size} cannot be shared by {world} ranks: raise it to {world}")
        other = copy(self)
        other.rank, other.world = rank, world
        if self._stream is not None:
            state = self.state_dict()
            other._stream = _Stream(self.source, other)
            other.load_state_dict(state)
        return other

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one epoch.

        Raises:
            InputError: for a stream, whose length is not known.
        """
        if self.length is None:
            raise InputError("a stream has no known length: give the budget in steps or seconds")
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The exact position, as plain values: epoch, index (samples of this epoch already given out, over all ranks),
        seed; for a stream also the stream's own position."""
        state: dict[str, Any] = {"epoch": self.epoch, "index": self.index, "seed": self.seed}
        if self._stream is not None:
            state["stream"] = self._stream.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position that `state_dict` gave, on any number of ranks.

        Raises:
            InputError: a position that this source does not have.
        """
        epoch, index, seed = int(state["epoch"]), int(state["index"]), int(state["seed"])
        if epoch < 0 or index < 0 or (self.length is not None and index > self.length):
            raise InputError(f"position {index} of epoch {epoch} is not in this data set of {self.length} samples")
        if (self._stream is not None) != ("stream" in state):
            raise InputError(
                "the stored position is of another kind of data set (streaming and not): use the same data"
            )
        self.epoch, self.index, self.seed = epoch, index, seed
        self._order = None
        if self._stream is not None:
            self._stream.load_state_dict(state["stream"])

    def order(self, epoch: int) -> Int64[Tensor, " n"]:
        """The order of the samples in `epoch`.

        Raises:
            InputError: for a stream, whose length is not known.
        """
        if self.length is None:
            raise InputError("a stream has no order of its whole: it is shuffled block by block")
        return _permutation(self.length, self.seed, epoch) if self.shuffle else torch.arange(self.length)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._stream is not None:
            batch = self._stream.next_batch()
        else:
            batch = self._next_rows()
        return batch if self.collate is None else self.collate(batch)

    def _next_rows(self) -> Any:
        assert self.length is not None
        left = self.length - self.index
        if left <= 0 or (self.drop_last and left < self.batch_size):
            self.epoch, self.index, self._order = self.epoch + 1, 0, None
            left = self.length
        if self._order is None:
            self._order = self.order(self.epoch)
        count = min(self.batch_size, left)
        start, stop = self._slice(count)
        chosen = self._order[self.index + start : self.index + stop]
        batch = _rows(self.source, chosen)
        self.index += count  # only now: a sample that cannot be read leaves the position where it was
        return batch

    def _slice(self, count: int) -> tuple[int, int]:
        """Where this rank's share of a global batch of `count` lies."""
        return count * self.rank // self.world, count * (self.rank + 1) // self.world


class _Stream:
    """A position in a streaming data set: the stream's own state where a block starts, and the place in the block."""

    def __init__(self, dataset: Any, owner: Batches) -> None:
        self.dataset = deepcopy(dataset)  # its state is ours alone
        self.owner = owner
        self.blocks = 0  # whole blocks of this epoch before the present one
        self.offset = 0  # samples of the present block already given out
        self._block_state: dict[str, Any] | None = None  # None is the start of an epoch
        self._rows: list[dict[str, Any]] | None = None
        self._iterator: Iterator[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"blocks": self.blocks, "offset": self.offset, "state": deepcopy(self._block_state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.blocks, self.offset = int(state["blocks"]), int(state["offset"])
        self._block_state = deepcopy(state["state"])
        self._rows = self._iterator = None

    def _start(self) -> Iterator[dict[str, Any]]:
        # `datasets` orders the shards by the epoch's number and keeps them as they are for 0; it takes up a state only
        # when that state's epoch is the present one, so epoch -1 means: from the start.
        epoch = _seed(self.owner.seed, self.owner.epoch) % (2**31 - 1) + 1 if self.owner.shuffle else 0
        self.dataset.set_epoch(epoch)
        state = self._block_state or {"epoch": -1, "examples_iterable": None}
        self.dataset.load_state_dict(deepcopy(state))
        return iter(self.dataset)

    def _fill(self) -> bool:
        """Read the present block; False at the end of the stream."""
        if self._iterator is None:
            self._iterator = self._start()
        rows = list(islice(self._iterator, self.owner.block))
        if self.owner.shuffle:
            order = _permutation(len(rows), self.owner.seed, self.owner.epoch, self.blocks)
            rows = [rows[i] for i in order.tolist()]
        self._rows = rows or None
        return bool(rows)

    def _advance(self) -> None:
        """Go on to the next block, noting where it starts."""
        self._block_state = deepcopy(self.dataset.state_dict())
        self.blocks, self.offset, self._rows = self.blocks + 1, 0, None

    def _next_epoch(self) -> None:
        self.owner.epoch, self.owner.index = self.owner.epoch + 1, 0
        self.blocks, self.offset = 0, 0
        self._block_state = self._rows = self._iterator = None

    def next_batch(self) -> dict[str, list[Any]]:
        """The next batch; it may span blocks, not epochs."""
        owner = self.owner
        while True:
            rows: list[dict[str, Any]] = []
            while len(rows) < owner.batch_size:
                if self._rows is None and not self._fill():
                    break
                assert self._rows is not None
                taken = self._rows[self.offset : self.offset + owner.batch_size - len(rows)]
                rows += taken
                self.offset += len(taken)
                if self.offset >= len(self._rows):
                    self._advance()
            if len(rows) == owner.batch_size or (rows and not owner.drop_last):
                owner.index += len(rows)
                start, stop = owner._slice(len(rows))
                return {name: [row[name] for row in rows[start:stop]] for name in rows[0]}
            if owner.index == 0:  # a whole epoch gave no batch, and so would the next
                raise InputError(
                    f"the stream has {len(rows) or 'no'} samples, which do not fill a batch of {owner.batch_size}:"
                    " lower batch_size"
                )
            self._next_epoch()


def _seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, so that neighbouring seeds and epochs share nothing."""
    digest = hashlib.sha256(":".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _permutation(length: int, *numbers: int) -> Int64[Tensor, " n"]:
    return torch.randperm(length, generator=torch.Generator().manual_seed(_seed(*numbers)))


def _streams(source: Any) -> bool:
    """Whether the source is a streaming data set (told by what it can do, so that `datasets` need not be imported)."""
    return not hasattr(source, "__len__") and hasattr(source, "state_dict") and hasattr(source, "set_epoch")


def _length(source: Any) -> int:
    if isinstance(source, int):
        return source
    if isinstance(source, Mapping):
        lengths = {name: len(column) for name, column in source.items()}
    elif isinstance(source, tuple):
        lengths = {str(index): len(column) for index, column in enumerate(source)}
    else:
        return len(source)
    if len(set(lengths.values())) != 1:
        raise InputError(f"the columns differ in length: {lengths or 'there are none'}")
    return next(iter(lengths.values()))


def _rows(source: Any, chosen: Int64[Tensor, " b"]) -> Any:
    """The chosen samples of the source."""
    if isinstance(source, int):
        return chosen
    if isinstance(source, Tensor):
        return source[chosen.to(source.device)]
    if isinstance(source, Mapping):
        return {name: _rows(column, chosen) for name, column in source.items()}
    if isinstance(source, tuple):
        return tuple(_rows(column, chosen) for column in source)
    indices = chosen.tolist()
    if hasattr(source, "column_names"):  # a Hugging Face data set reads many rows at once
        return source[indices]
    if isinstance(source, Sequence) or hasattr(source, "__getitem__"):
        return [source[index] for index in indices]
    raise InputError(f"{type(source).__name__} is nothing to make batches of: give a data set, tensors or a length")
