"""A TCP proxy that misbehaves on request: cuts, stalls, half-closes, drips, refuses."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Literal, Self

Side = Literal['client', 'server']

CHUNK = 65_536
DRIPS_PER_SECOND = 20  # how finely a throttled stream is cut
RESET = struct.pack('ii', 1, 0)  # SO_LINGER with no time: closing sends RST


class Proxy:
    """Forwards 127.0.0.1:`port` to a target. Every fault acts on the connections of the moment and says so below.

    Threads: one accepts, two pump each connection (one a direction); they end with the connection or with `close`.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._rate = 0.0
        self._pairs: list[_Pair] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.connections = 0  # ever accepted
        self._listener: socket.socket | None = None
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
        for pair in self._take_pairs():
            pair.cut(reset)

    def cut_after(self, count: int, towards: Side = 'server', *, reset: bool = True) -> None:
        """Let `count` more bytes of each present connection through in one direction, then cut that connection."""
        for pair in self._present():
            pair.limit(towards, count, reset)

    def stall(self) -> None:
        """Forward nothing, either way, on present and new connections; nobody is told."""
        self._flowing.clear()

    def resume(self) -> None:
        """Forward again: what was held back comes first."""
        self._flowing.set()

    def half_close(self, towards: Side = 'client') -> None:
        """Send FIN to one side of each present connection; the other direction goes on."""
        for pair in self._present():
            pair.half_close(towards)

    def throttle(self, bytes_per_second: float) -> None:
        """Forward so many bytes a second in each direction of each connection; 0: as fast as it goes."""
        self._rate = bytes_per_second

    def refuse(self) -> None:
        """Refuse new connections (nobody listens any more); present ones go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            listener.close()

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        if self._listener is not None:
            return
        listener = socket.create_server(('127.0.0.1', self.port), reuse_port=False)
        self._listener = listener
        self.port = listener.getsockname()[1]
        self._run(self._accept_all, listener)

    def close(self) -> None:
        """End everything and wait for the threads."""
        self._closed = True
        self.refuse()
        self._flowing.set()
        self._rate = 0.0
        self.cut()
        for thread in self._threads:
            thread.join()

    def _accept_all(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # refuse() or close()
            self.connections += 1
            try:
                server = socket.create_connection(self._target, 5.0)
            except OSError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.close()
                continue
            server.settimeout(None)
            self._join(_Pair(client, server))

    def _join(self, pair: _Pair) -> None:
        for end in pair.ends.values():
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._pairs.append(pair)
        self._run(self._pump, pair, 'server')
        self._run(self._pump, pair, 'client')
        if self._closed:
            self.cut()

    def _run(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _pump(self, pair: _Pair, towards: Side) -> None:
        source: Side = 'client' if towards == 'server' else 'server'
        try:
            while data := pair.ends[source].recv(self._portion()):
                self._flowing.wait()
                pair.forward(towards, data)
                if self._rate:
                    pair.over.wait(len(data) / self._rate)
            self._flowing.wait()
            pair.half_close(towards)
        except OSError:
            pair.cut(reset=True)
        pair.finished(towards)

    def _portion(self) -> int:
        return max(1, min(CHUNK, int(self._rate / DRIPS_PER_SECOND))) if self._rate else CHUNK

    def _present(self) -> Iterable[_Pair]:
        with self._lock:
            return [pair for pair in self._pairs if not pair.over.is_set()]

    def _take_pairs(self) -> Iterable[_Pair]:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        return pairs


class _Pair:
    """The two ends of one proxied connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends: dict[Side, socket.socket] = {'client': client, 'server': server}
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._pumping: set[Side] = {'client', 'server'}
        self._limits: dict[Side, tuple[int, bool]] = {}
        self._reset = False

    def limit(self, towards: Side, count: int, reset: bool) -> None:
        self._limits[towards] = (count, reset)

    def forward(self, towards: Side, data: bytes) -> None:
        """Send on, or as much of it as the limit allows and then cut."""
        if towards not in self._limits:
            self.ends[towards].sendall(data)
            return
        left, reset = self._limits[towards]
        self.ends[towards].sendall(data[:left])
        self._limits[towards] = (left - len(data), reset)
        if left <= len(data):
            self.cut(reset=False if not reset else True, flush=towards)

    def half_close(self, towards: Side) -> None:
        try:
            self.ends[towards].shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is gone already

    def cut(self, reset: bool, flush: Side | None = None) -> None:
        """Wake both pumps; the last to leave closes the sockets, by RST or FIN.

        `flush`: the side that has to receive what was sent to it: an RST would let it throw that away.
        """
        self.over.set()
        self._reset = reset and flush is None
        for end in self.ends.values():
            if self._reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            try:
                end.shutdown(socket.SHUT_RD if self._reset else socket.SHUT_RDWR)
            except OSError:
                pass  # it is gone already

    def finished(self, towards: Side) -> None:
        """One pump has ended; with the second the sockets are closed."""
        with self._lock:
            self._pumping.discard(towards)
            if self._pumping:
                return
        self.over.set()
        for end in self.ends.values():
            end.close()
