"""A child for the tests of its keeper."""

from __future__ import annotations

import socket
import threading

from mikkoo.common.settings import Telemetry, WorkerSettings


def endless(settings: WorkerSettings, telemetry: Telemetry, end: socket.socket) -> int:
    """An Entry that never returns."""
    threading.Event().wait()
    return 0
