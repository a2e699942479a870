"""Ctrl-C and SIGTERM as a wish, to be granted at the end of a step."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Inside, the first SIGINT or SIGTERM is noted in `received`.

    Only Python's main thread can listen to signals; elsewhere this does nothing.

    Args:
        active: False does nothing.
        insist: a second Ctrl-C stops at once. (A launcher sends its own after the user's.)
        speak: say on stderr that the wish was heard.
    """

    def __init__(self, active: bool, insist: bool, speak: bool) -> None:
        self.active = active and threading.current_thread() is threading.main_thread()
        self.insist, self.speak = insist, speak
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
        if self.received is None and self.speak:
            again = ", Ctrl-C again stops at once" if self.insist else ""
            os.write(2, f"encyclo: stopping after this step{again}\n".encode())  # a print may be under way
        self.received = number
