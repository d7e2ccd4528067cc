"""A TCP proxy that misbehaves on request: cuts, stalls, half-closes, drips, refuses."""

from __future__ import annotations

import select
import socket
import struct
import threading
from types import TracebackType
from typing import Literal, NamedTuple, Self

Side = Literal['client', 'server']
OTHER: dict[Side, Side] = {'client': 'server', 'server': 'client'}

CHUNK = 65_536  # bytes read at once
LOOK = 0.02  # seconds between a pump's looks at whether its connection was cut
DRIPS_PER_SECOND = 20  # how finely a throttled stream is cut
CONNECT_TIMEOUT = 5.0  # seconds to reach the target
RESET = struct.pack('ii', 1, 0)  # SO_LINGER with no time: closing sends RST


class Proxy:
    """Forwards 127.0.0.1:`port` to a target. Faults act on the connections of the moment; each says so below.

    `connections`: how many were ever accepted. One thread accepts, two pump each connection, one a direction.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._lock = threading.Lock()
        self._weather = _Weather()
        self._pairs: list[_Pair] = []
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self.connections = 0
        self.port = 0
        self.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cut(self, *, reset: bool = True) -> None:
        """End every connection on both sides, by RST or (reset=False) by FIN. New ones are still accepted."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.cut(reset)
        for pair in pairs:
            pair.join()

    def cut_after(self, count: int, towards: Side = 'server', *, reset: bool = True) -> None:
        """Let `count` more bytes of each present connection through one way, then cut it."""
        for pair in self._present():
            pair.limits[towards] = (count, reset)

    def cut_answer(self, *questions: bytes) -> None:
        """Forward what holds these bytes towards the server, in turn, then cut instead of an answer.

        For each present connection, once, if each of them comes in one piece, of its own.
        """
        for pair in self._present():
            pair.questions = list(questions)

    def cut_on(self, pattern: bytes, towards: Side = 'server', *, reset: bool = True) -> None:
        """Cut each connection, new ones too, when these bytes come one way: what is before them still passes.

        b'' ends it. `cuts` counts them.
        """
        self._weather.trigger = _Trigger(pattern, towards, reset) if pattern else None

    @property
    def cuts(self) -> int:
        """Connections that `cut_on` has ended."""
        return self._weather.cuts

    def stall(self) -> None:
        """Forward nothing, either way, on present and new connections; nobody is told."""
        self._weather.flowing.clear()

    def resume(self) -> None:
        """Forward again: what was held back comes first."""
        self._weather.flowing.set()

    def hold(self, *towards: Side) -> None:
        """Forward nothing more that way (both, where none is named) on present connections, for good."""
        for pair in self._present():
            pair.held.update(towards or OTHER)

    def half_close(self, towards: Side = 'client') -> None:
        """Send FIN to one side of each present connection; the other direction goes on."""
        for pair in self._present():
            pair.half_close(towards)

    def throttle(self, bytes_per_second: float) -> None:
        """Forward so many bytes a second in each direction of each connection; 0: as fast as it goes."""
        self._weather.rate = bytes_per_second

    def refuse(self) -> None:
        """Refuse new connections (nobody listens any more); present ones go on."""
        if self._listener is None or self._acceptor is None:
            return
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._acceptor.join()
        self._listener.close()
        self._listener = self._acceptor = None

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        if self._listener is not None:
            return
        self._listener = socket.create_server(('127.0.0.1', self.port))
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept_all, args=[self._listener], daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """End everything and wait for the threads."""
        self.refuse()
        self.cut()

    def _present(self) -> list[_Pair]:
        with self._lock:
            return list(self._pairs)

    def _accept_all(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # refuse()
            self.connections += 1
            try:
                server = socket.create_connection(self._target, CONNECT_TIMEOUT)
            except OSError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.close()
                continue
            with self._lock:
                self._pairs.append(_Pair(client, server, self._weather))


class _Trigger(NamedTuple):
    pattern: bytes
    towards: Side
    reset: bool


class _Weather:
    """What all connections of a proxy have in common."""

    def __init__(self) -> None:
        self.flowing = threading.Event()
        self.flowing.set()
        self.rate = 0.0  # bytes a second, 0 for no limit
        self.trigger: _Trigger | None = None
        self.cuts = 0


class _Pair:
    """One proxied connection: two sockets, a pump for each direction; the last to end closes both sockets."""

    def __init__(self, client: socket.socket, server: socket.socket, weather: _Weather) -> None:
        self._ends: dict[Side, socket.socket] = {'client': client, 'server': server}
        self._weather = weather
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._pumping = 2
        self._passed: dict[Side, bytes] = {'client': b'', 'server': b''}  # the last bytes, for `cut_on`
        self.limits: dict[Side, tuple[int, bool]] = {}  # bytes still allowed, and then RST or FIN
        self.questions: list[bytes] = []  # of which the last is to get no answer but RST
        self.held: set[Side] = set()  # the directions in which nothing moves any more
        for end in self._ends.values():
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(False)
        self._threads = [threading.Thread(target=self._pump, args=[side], daemon=True) for side in OTHER]
        for thread in self._threads:
            thread.start()

    def cut(self, reset: bool) -> None:
        """Tell both pumps to end and the sockets to close with RST or FIN."""
        with self._lock:
            if not self._pumping:
                return
            if reset:
                for end in self._ends.values():
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._over.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def half_close(self, towards: Side) -> None:
        try:
            self._ends[towards].shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is gone already

    def _pump(self, towards: Side) -> None:
        try:
            while data := self._receive(OTHER[towards]):
                self._forward(towards, data)
            if not self._over.is_set():
                self.half_close(towards)
        except OSError:
            self.cut(reset=True)
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._pumping -= 1
            if not self._pumping:
                for end in self._ends.values():
                    end.close()

    def _receive(self, source: Side) -> bytes:
        """The next bytes, held back while the proxy stalls; b'' at the end of the stream."""
        if not self._ready(source, select.POLLIN):
            return b''
        rate = self._weather.rate
        data = self._ends[source].recv(max(1, min(CHUNK, int(rate / DRIPS_PER_SECOND))) if rate else CHUNK)
        if rate:
            self._over.wait(len(data) / rate)
        while OTHER[source] in self.held or not self._weather.flowing.is_set():
            if self._over.wait(LOOK):
                return b''
        return data

    def _forward(self, towards: Side, data: bytes) -> None:
        if towards == 'server' and self.questions and self.questions[0] in data:
            del self.questions[0]
            if not self.questions:
                self.limits['client'] = (0, True)
        limit = self.limits.get(towards)  # one that is set meanwhile is for what comes next
        allowed, reset = limit or (len(data) + 1, True)
        trigger = self._weather.trigger
        if trigger is not None and trigger.towards == towards:
            allowed, reset = min(allowed, self._until(trigger.pattern, towards, data)), trigger.reset
        rest = memoryview(data)[:allowed]
        while rest and self._ready(towards, select.POLLOUT):
            rest = rest[self._ends[towards].send(rest) :]
        if limit is not None:
            self.limits[towards] = (allowed - len(data), reset)
        if allowed <= len(data):
            self.cut(reset)

    def _until(self, pattern: bytes, towards: Side, data: bytes) -> int:
        """How many of these bytes come before the pattern; more than there are where it is not among them."""
        before = self._passed[towards]
        found = (before + data).find(pattern)
        self._passed[towards] = (before + data)[-(len(pattern) - 1) :] if len(pattern) > 1 else b''
        if found < 0:
            return len(data) + 1
        self._weather.cuts += 1
        return max(0, found - len(before))

    def _ready(self, side: Side, event: int) -> bool:
        """Wait until a socket can be read or written; False once the connection is cut."""
        poll = select.poll()
        poll.register(self._ends[side], event)
        while not self._over.is_set():
            if poll.poll(LOOK * 1000):
                return True
        return False
