"""The Unix socket that `mikkood status`, `reload`, `restart` and `stop` speak over.

One connection carries one request and one answer, each a JSON object on a line of its own. A request is
`{"command": NAME, ...}`; an answer always has `exit`, the exit code for the command line, and `error` where
that is not 0. The server never blocks: a client that is slow, silent or sends rubbish costs it a descriptor
for at most PATIENCE seconds.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from mikkoo.common.errors import Exit, MikkooError

LARGEST_REQUEST = 65_536  # bytes
LARGEST_ANSWER = 64 * 1024 * 1024  # bytes; the client's limit
MOST_CLIENTS = 16  # at once; the oldest gives way to a new one
PATIENCE = 5.0  # seconds from connecting until the whole answer is taken
BACKLOG_PAUSE = 0.02  # seconds between attempts to connect where too many others do
ANSWER_TIMEOUT = 10.0  # seconds that a command waits for its answer

Request = Mapping[str, Any]
Answer = dict[str, Any]


class ControlError(MikkooError):
    """The control socket cannot be used, or did not answer."""


class NobodyListens(ControlError):
    """No mikkood listens there: the socket is missing or left behind by a dead one."""


class NotAllowed(ControlError):
    """The socket belongs to another user."""


def ask(path: str | Path, request: Request, timeout: float = ANSWER_TIMEOUT) -> Answer:
    """Send one request to the running mikkood and return its answer.

    Raises NobodyListens, NotAllowed, or ControlError (no answer within `timeout` seconds, or no sense in it).
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX) as link:
        try:
            _connect(link, os.fspath(path), deadline)
            link.sendall(orjson.dumps(dict(request)) + b'\n')
            received = _receive_line(link, deadline)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise NobodyListens(f'no mikkood listens on {path}') from error
        except PermissionError as error:
            raise NotAllowed(f'{path}: {error.strerror}') from error
        except TimeoutError as error:
            raise ControlError(f'{path}: no answer within {timeout:g} s') from error
        except OSError as error:
            raise ControlError(f'{path}: {error}') from error
    return _understand(path, received)


def _connect(link: socket.socket, path: str, deadline: float) -> None:
    """A full backlog refuses a socket with a timeout at once (EAGAIN): try again until there is room."""
    while (left := deadline - time.monotonic()) > 0:
        link.settimeout(left)
        try:
            link.connect(path)
        except BlockingIOError:
            time.sleep(min(left, BACKLOG_PAUSE))
        else:
            return
    raise TimeoutError


def _receive_line(link: socket.socket, deadline: float) -> bytes:
    received = bytearray()
    while not received.endswith(b'\n') and len(received) <= LARGEST_ANSWER:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        link.settimeout(left)
        data = link.recv(65_536)
        if not data:
            break
        received += data
    return bytes(received)


def _understand(path: str | Path, received: bytes) -> Answer:
    try:
        answer = orjson.loads(received)
    except orjson.JSONDecodeError as error:
        raise ControlError(f'{path}: the connection ended before the answer did') from error
    if not isinstance(answer, dict) or not isinstance(answer.get('exit'), int):
        raise ControlError(f'{path}: the answer has no exit code')
    return answer


class Server:
    """The supervisor's end. `answer` is called with each request, from the loop's own thread."""

    def __init__(
        self,
        path: str | Path,
        selector: selectors.BaseSelector,
        answer: Callable[[Request], Mapping[str, Any]],
    ) -> None:
        self._path = Path(path)
        self._selector = selector
        self._answer = answer
        self._clients: dict[socket.socket, _Client] = {}
        self._listener = self._listen()
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def due(self) -> float:
        """When the next client's patience ends, in monotonic seconds."""
        return min((client.deadline for client in self._clients.values()), default=float('inf'))

    def tick(self, now: float) -> None:
        """Drop the clients that have been too slow."""
        for link, client in list(self._clients.items()):
            if now >= client.deadline:
                self._drop(link)

    def close(self) -> None:
        """Stop listening, hang up on everybody and remove the socket file."""
        for link in list(self._clients):
            self._drop(link)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_stale()
            before = os.umask(0o177)  # the file is 0600 from its first moment on
            try:
                listener.bind(os.fspath(self._path))
            finally:
                os.umask(before)
            listener.listen(MOST_CLIENTS)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise ControlError(f'cannot listen on {self._path}: {error}') from error
        except ControlError:
            listener.close()
            raise
        return listener

    def _remove_stale(self) -> None:
        if not self._path.is_socket():
            return
        with socket.socket(socket.AF_UNIX) as link:
            link.setblocking(False)
            try:
                link.connect(os.fspath(self._path))
            except ConnectionRefusedError:
                self._path.unlink()
                return
            except BlockingIOError:
                pass  # its backlog is full: it lives
        raise ControlError(f'another mikkood listens on {self._path}')

    def _accept(self) -> None:
        try:
            link, _ = self._listener.accept()
        except OSError:
            return  # it hung up at once, or we are out of descriptors: it will try again
        link.setblocking(False)
        if len(self._clients) >= MOST_CLIENTS:
            self._drop(next(iter(self._clients)))
        self._clients[link] = _Client()
        self._selector.register(link, selectors.EVENT_READ, partial(self._receive, link))

    def _receive(self, link: socket.socket) -> None:
        client = self._clients.get(link)
        if client is None:
            return  # dropped earlier in this round of the loop
        try:
            data = link.recv(LARGEST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b''
        client.received += data
        if b'\n' in client.received or len(client.received) > LARGEST_REQUEST:
            client.unsent = orjson.dumps(self._judge(bytes(client.received)), default=str) + b'\n'
            self._selector.modify(link, selectors.EVENT_WRITE, partial(self._send, link))
            self._send(link)
        elif not data:
            self._drop(link)

    def _judge(self, received: bytes) -> Mapping[str, Any]:
        line = received.partition(b'\n')[0]
        try:
            request = orjson.loads(line) if len(line) <= LARGEST_REQUEST else None
        except orjson.JSONDecodeError:
            request = None
        if not isinstance(request, dict) or not isinstance(request.get('command'), str):
            return {'exit': int(Exit.USAGE), 'error': 'a request is one line: {"command": "status"}'}
        return self._answer(request)

    def _send(self, link: socket.socket) -> None:
        client = self._clients.get(link)
        if client is None:
            return
        try:
            client.unsent = client.unsent[link.send(client.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            client.unsent = b''  # the client has gone
        if not client.unsent:
            self._drop(link)

    def _drop(self, link: socket.socket) -> None:
        del self._clients[link]
        self._selector.unregister(link)
        link.close()


class _Client:
    """What was received from one connection, what is still to be sent to it, and until when it may live."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.unsent = b''
        self.deadline = time.monotonic() + PATIENCE
