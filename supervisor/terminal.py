"""Whether the terminal that a process was started on is still there: SIGHUP has two meanings."""

from __future__ import annotations

import os
import signal


class Terminal:
    """The controlling terminal at this moment. Made before the handler of SIGHUP is set.

    Under nohup, which ignores SIGHUP, a process is meant to survive its terminal: that counts as none.
    """

    def __init__(self) -> None:
        self._had = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _is_there()

    def gone(self) -> bool:
        """Whether there was one and it hung up, or its session has ended."""
        return self._had and not _is_there()


def _is_there() -> bool:
    """/dev/tty is whatever terminal controls the process, its standard streams aside (tty(4))."""
    try:
        os.close(os.open('/dev/tty', os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:  # ENXIO; EIO where it hangs up at this moment
        return False
    return True
