"""A small transaction pooler: each transaction of a client gets the other one of two server connections."""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType
from typing import Self

SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
MADE_UP_KEY = b'K' + struct.pack('!iii', 12, 4711, 42)  # what the client is told of its server process


class Pooler:
    """Speaks PostgreSQL's protocol 3.0 on 127.0.0.1:`port`, for servers without a password.

    `switching` False: it pools sessions.
    """

    def __init__(self, target_port: int, *, switching: bool = True) -> None:
        self._target_port = target_port
        self.switching = switching
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for opened in self._sockets:
            try:
                opened.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side was faster
        for thread in self._threads:
            thread.join()
        for opened in [self._listener, *self._sockets]:
            opened.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            startup = self._startup(client)
            servers = [self._login(startup, client if number == 0 else None) for number in range(2)]
            turn = 0
            while True:
                servers[turn].sendall(_message(client))
                turn ^= self._answer(servers[turn], client) and self.switching
        except (ConnectionError, OSError):
            client.close()

    def _startup(self, client: socket.socket) -> bytes:
        while True:
            head = _exactly(client, 8)
            length, code = struct.unpack('!ii', head)
            if code not in (SSL_REQUEST, GSS_REQUEST):
                return head + _exactly(client, length - 8)
            client.sendall(b'N')

    def _login(self, startup: bytes, client: socket.socket | None) -> socket.socket:
        server = socket.create_connection(('127.0.0.1', self._target_port))
        self._sockets.append(server)
        server.sendall(startup)
        self._answer(server, client)
        return server

    def _answer(self, server: socket.socket, client: socket.socket | None) -> bool:
        """Pass on everything up to ReadyForQuery; whether the server is outside a transaction then."""
        while True:
            message = _message(server)
            if client is not None:
                client.sendall(MADE_UP_KEY if message[:1] == b'K' else message)
            if message[:1] == b'Z':
                return message[5:6] == b'I'


def _message(source: socket.socket) -> bytes:
    head = _exactly(source, 5)
    return head + _exactly(source, struct.unpack('!i', head[1:])[0] - 4)


def _exactly(source: socket.socket, count: int) -> bytes:
    data = b''
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            raise ConnectionError('end of stream')
        data += more
    return data
