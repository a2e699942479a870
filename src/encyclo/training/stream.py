"""The batches of one process, with a position that can be stored."""

from collections.abc import Iterable, Iterator
from typing import Any

from encyclo.errors import InputError
from encyclo.training import micro_batches


class Stream:
    """Endless batches out of any iterable, of which this process gets its share.

    An iterable with `state_dict` and `load_state_dict` (`encyclo.data.Batches`) keeps its own position and, with
    `shard(rank, world)`, makes its own shares. Any other must be possible to go through again and again, in the same
    order (a list of batches): its position is the number of batches taken, its batches are split among the processes.

    Raises:
        InputError: an iterable without batches.
    """

    def __init__(self, batches: Iterable[Any], rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.source: Any = batches
        self.cut = False
        if world > 1:
            shard = getattr(batches, "shard", None)
            if callable(shard):
                batches = shard(rank, world)
            else:
                self.cut = True
        self.batches: Any = batches
        self.keeps_position = callable(getattr(batches, "state_dict", None)) and callable(
            getattr(batches, "load_state_dict", None)
        )
        self.taken = 0
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._start()
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._iterator = iter(self.batches)
            try:
                batch = next(self._iterator)
            except StopIteration:
                message = (
                    "the data gave no batch" if not self.taken else "the batches ended and cannot be gone through again"
                )
                raise InputError(f"{message}: give a list of batches or encyclo.data.Batches") from None
        self.taken += 1
        return micro_batches.split(batch, self.world)[self.rank] if self.cut else batch

    def _start(self) -> Iterator[Any]:
        iterator: Iterator[Any] = iter(self.batches)
        if not self.keeps_position and self.taken:
            length = len(self.batches) if hasattr(self.batches, "__len__") else 0
            for _ in range(self.taken % length if length else self.taken):
                next(iterator, None)
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch taken."""
        return {"taken": self.taken, "batches": self.batches.state_dict() if self.keeps_position else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batch at which `state_dict` was called."""
        self.taken = int(state["taken"])
        self._iterator = None
        if self.keeps_position and state["batches"] is not None:
            self.batches.load_state_dict(state["batches"])

    def close(self) -> None:
        """Leave the position in the batches that were handed in, for who goes on with them."""
        if self.keeps_position and self.batches is not self.source:
            self.source.load_state_dict(self.batches.state_dict())
