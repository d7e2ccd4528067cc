"""A connected socket, plain or TLS, that never blocks: bulk reads, and a queue of what is not written yet."""

from __future__ import annotations

import fcntl
import select
import socket
import ssl
import struct
import termios
import threading
from collections import deque

READ_SIZE = 64 * 1024  # bytes read at once
TLS_WRITE_SIZE = 16 * 1024  # one record; OpenSSL wants an interrupted write repeated with the very same bytes

ENDED = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)  # not the kernel's ETIMEDOUT


class Stream:
    """`push` from any thread; everything else by the one thread that polls the socket.

    `unsent`: bytes pushed that the kernel has not taken. `broken`: why writing failed, '' while it works;
    what the peer said before can still be read. `ended`: it failed because the peer had ended the stream.
    `lock` guards writing and reading: OpenSSL must not do both.
    """

    def __init__(self, sock: socket.socket, lock: threading.RLock) -> None:
        self._sock = sock
        self._lock = lock
        self._most = TLS_WRITE_SIZE if isinstance(sock, ssl.SSLSocket) else None
        self._pending: deque[memoryview] = deque()
        self._write_wants_read = self._read_wants_write = False  # TLS
        self.unsent = self.sent = self.received = 0
        self.broken = ''
        self.ended = False
        self.dry = False  # the last `receive` emptied it

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def sock(self) -> socket.socket:
        return self._sock

    @property
    def undelivered(self) -> int:
        """`unsent`, and the bytes in the kernel that the peer has not acknowledged (SIOCOUTQ, tcp(7))."""
        with self._lock:
            if self.broken:
                return self.unsent
            (queued,) = struct.unpack('i', fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)))
            return self.unsent + int(queued)

    def push(self, data: bytes) -> bool:
        """Send what the kernel takes now, queue the rest. True: the polling thread has something to do."""
        with self._lock:
            self._pending.append(memoryview(data))
            self.unsent += len(data)
            if len(self._pending) == 1:
                self.flush()
            return bool(self._pending)

    def flush(self) -> None:
        """Give the kernel what it takes."""
        with self._lock:
            if self.broken:
                return
            self._write_wants_read = False
            try:
                self._send()
            except ssl.SSLWantReadError:
                self._write_wants_read = True
            except (BlockingIOError, ssl.SSLWantWriteError):
                pass
            except OSError as error:
                self.broken = error.strerror or str(error)
                self.ended = isinstance(error, ENDED)

    def receive(self) -> bytes | None:
        """Bytes, b'' at the end of the stream, None when there are none now. Raises OSError, ssl.SSLError."""
        self._read_wants_write = False
        try:
            with self._lock:
                data = self._sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self._read_wants_write = True
            return None
        self._write_wants_read = False
        self.received += len(data)
        # A plain socket that gave less than was asked for is empty. One that is broken is read to its end.
        self.dry = self._most is None and len(data) < READ_SIZE and not self.broken
        return data

    def wanted(self) -> int:
        """The events to poll for: writing only if something waits, as an idle socket is always writable."""
        writing = self._read_wants_write or (self.unsent and not self._write_wants_read and not self.broken)
        return select.POLLIN | (select.POLLOUT if writing else 0)

    def readable(self, event: int) -> bool:
        """Whether to read, after a poll that gave `event`."""
        return bool(event & ~select.POLLOUT) or self.hoarding() or (self._read_wants_write and event != 0)

    def hoarding(self) -> bool:
        """TLS holds decrypted bytes that no poll will show."""
        return isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0

    def close(self) -> None:
        with self._lock:
            self.broken = self.broken or 'closed'
            self._pending.clear()
            self._sock.close()

    def _send(self) -> None:
        while self._pending:
            head = self._pending[0]
            sent = self._sock.send(head[: self._most])
            self.unsent -= sent
            self.sent += sent
            if sent < len(head):
                self._pending[0] = head[sent:]
            else:
                self._pending.popleft()
