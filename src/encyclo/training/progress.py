"""The progress bar."""

import sys
import time
from typing import Any

SHOW_AFTER = 2.0
"""Seconds of work before a bar appears."""
REFRESH = 0.2
"""Least seconds between two drawings."""


class Bar:
    """A bar on stderr with steps or seconds, the loss and items per second, for all that lasts longer than two seconds.

    Args:
        label: what is being done.
        total: the budget, in steps or seconds.
        unit: "steps" or "s".
        shown: None shows it on a terminal only.
    """

    def __init__(self, label: str, total: float, unit: str, shown: bool | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.shown = sys.stderr.isatty() if shown is None else shown
        self._progress: Any = None
        self._task: Any = None
        self._started = self._next = time.monotonic() + SHOW_AFTER if self.shown else float("inf")
        self._began = time.monotonic()
        self._items = 0

    def update(self, done: float, loss: float, items: int) -> None:
        """Show `done` of the budget; `items` were worked through since the last call."""
        self._items += items
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + REFRESH
        if self._progress is None:
            self._open(done)
        speed = self._items / max(now - self._began, 1e-9)
        shown = f"{done:.0f}/{self.total:.0f} {self.unit}"
        self._progress.update(
            self._task, completed=done, shown=shown, loss=f"loss {loss:.4g}", speed=f"{_short(speed)}/s"
        )
        self._progress.refresh()

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._next = float("inf")

    def _open(self, done: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            console=Console(stderr=True),
            auto_refresh=False,  # no thread beside the training
            transient=True,
        )
        self._task = self._progress.add_task(self.label, total=self.total, completed=done, shown="", loss="", speed="")
        self._progress.start()


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
