"""The pipe between the supervisor and a child: small JSON messages that never block either side.

A SOCK_SEQPACKET pair keeps message boundaries and shows the other side's death as end of file.
Every message is an object with a `kind`:

child to parent
    beat    {waits}                          its loop moves; what it waits for
    state   {state, reason}                  'running', 'standby' or 'paused', and why
    report  {counters...}                    numbers for `mikkood status`
    log     {record...}                      a log record for the parent's handlers
    died    {reason}                         an exception ends it, before or outside of its logging
parent to child
    tell    {telemetry}                      logging, statsd and Sentry settings have changed
    retire  {}                               the next TERM is for good: unregister if so configured
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from typing import Any

import orjson

# A message has to fit into one packet of an AF_UNIX socket with the default buffer (212,992 bytes).
LARGEST_MESSAGE = 100_000

Message = dict[str, Any]


class Pipe:
    """One end. `dropped` counts messages that did not fit (the buffer was full, or the message too large)."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self.dropped = 0
        self.ended = False

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two connected ends: (the parent's, the child's)."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, kind: str, **fields: Any) -> bool:
        """Send one message if it fits now; False (and counted) if not. Never blocks, never raises for I/O."""
        data = orjson.dumps({'kind': kind, **fields}, default=str)
        if len(data) <= LARGEST_MESSAGE:
            try:
                self._end.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self.ended = True
            else:
                return True
        self.dropped += 1
        return False

    def fill(self) -> float:
        """How full the buffer towards the other side is; at 1.0 it takes no more. OSError once closed."""
        queued = int.from_bytes(fcntl.ioctl(self._end, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return queued / self._end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def receive(self, most: int = 100) -> list[Message]:
        """What has arrived, at most `most` messages; sets `ended` when the other side is gone."""
        messages: list[Message] = []
        while len(messages) < most and not self.ended:
            try:
                data = self._end.recv(LARGEST_MESSAGE)
            except BlockingIOError:
                break
            except OSError:
                data = b''
            if data:
                messages.append(orjson.loads(data))
            else:
                self.ended = True
        return messages

    def close(self) -> None:
        self.ended = True
        self._end.close()
