"""A wake-up between threads that a poll can see."""

from __future__ import annotations

import os
import threading


class Bell:
    """Rung by any thread, cleared by the one that waits. Ringing twice is ringing once; safe after close."""

    def __init__(self) -> None:
        self._number = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._rung = False
        self._closed = False

    def fileno(self) -> int:
        """The descriptor: readable while the bell is rung; -1 once closed."""
        return self._number

    def ring(self) -> None:
        with self._lock:
            if not self._rung and not self._closed:
                self._rung = True
                os.eventfd_write(self._number, 1)

    def clear(self) -> None:
        """Clear first and look afterwards: then nothing that comes in between is missed."""
        with self._lock:
            if self._rung and not self._closed:
                self._rung = False
                os.eventfd_read(self._number)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._number)
                self._number = -1  # the kernel gives the number to the next that opens something
