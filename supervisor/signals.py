"""Signals to numbers on a pipe: nothing happens in a handler, the loop acts.

The interpreter's own C handler writes the number (`signal.set_wakeup_fd`), whichever thread it came to.
A handler in Python would wait until the main thread leaves its `select`, which may be never.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

STOP = frozenset({signal.SIGTERM, signal.SIGINT})
RELOAD = frozenset({signal.SIGHUP})
ALL = STOP | RELOAD


class Signals:
    """Takes TERM, INT and HUP until closed. Main thread only."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {
            number: signal.signal(number, _ignore) for number in ALL
        }
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)

    def fileno(self) -> int:
        return self._read

    def take(self) -> list[signal.Signals]:
        """The signals of ours that have arrived, in their order."""
        try:
            numbers = os.read(self._read, 4096)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in numbers if number in ALL]

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Its being there is what makes the interpreter write the number."""
