"""The local syslog, where a daemon's warnings go when its configuration leaves them nowhere else."""

from __future__ import annotations

import logging
import logging.handlers
import socket

ADDRESS = '/dev/log'
SEND_TIMEOUT = 1.0  # seconds: a stuck syslog loses a record, it does not stop the supervisor


class Syslog(logging.handlers.SysLogHandler):
    """WARNING and above to the syslog at a Unix socket, facility daemon. OSError if nobody listens there."""

    def __init__(self, address: str = '') -> None:
        address = address or ADDRESS
        _probe(address)
        super().__init__(address, self.LOG_DAEMON)
        self.setLevel(logging.WARNING)
        self.setFormatter(logging.Formatter('%(levelname)s %(processName)s %(name)s: %(message)s'))

    def emit(self, record: logging.LogRecord) -> None:
        self.ident = f'mikkood[{record.process}]: '
        connection = getattr(self, 'socket', None)
        if isinstance(connection, socket.socket) and connection.fileno() >= 0:
            connection.settimeout(SEND_TIMEOUT)
        super().emit(record)


def _probe(address: str) -> None:
    """Raise the OSError that SysLogHandler passes over."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        try:
            datagram.connect(address)
        except OSError:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
                stream.connect(address)
