"""Training time, which stands still during checkpoints and evaluation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """A stop watch that goes on from `elapsed` seconds; it stands until `start`."""

    def __init__(self, elapsed: float = 0.0) -> None:
        self._base = elapsed
        self._started: float | None = None

    def start(self) -> None:
        """Let it run."""
        if self._started is None:
            self._started = time.perf_counter()

    def stop(self) -> None:
        """Let it stand."""
        self._base = self.elapsed
        self._started = None

    @property
    def elapsed(self) -> float:
        """Seconds it has run in all."""
        return self._base + (0.0 if self._started is None else time.perf_counter() - self._started)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()
