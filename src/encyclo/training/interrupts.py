"""Ctrl-C and SIGTERM as a wish, to be granted at the end of a step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Inside, the first SIGINT or SIGTERM is noted in `received`; a second Ctrl-C stops at once.

    Only Python's main thread can listen to signals; elsewhere this does nothing.
    """

    def __init__(self, active: bool = True, insist: bool = True) -> None:
        self.active = active and threading.current_thread() is threading.main_thread()
        self.insist = insist
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if self.active:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number and self.insist:
            raise KeyboardInterrupt
        self.received = number
