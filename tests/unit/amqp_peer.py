"""A scripted AMQP server on a loopback socket, for what a real broker never does."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pamqp.exceptions
import pamqp.frame
from pamqp import base, commands, header

Script = Callable[['Conversation'], None]
PEER_TIMEOUT = 20.0  # seconds until a script that waits in vain fails


class Conversation:
    """One accepted connection, seen from the server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = b''

    def say(self, *frames: Any, channel: int = 0) -> None:
        self.sock.sendall(b''.join(pamqp.frame.marshal(frame, channel) for frame in frames))

    def hear(self) -> Any:
        """The next frame; None when the client has closed."""
        while True:
            if self._data:
                try:
                    used, _, frame = pamqp.frame.unmarshal(self._data)
                except pamqp.exceptions.UnmarshalingException:
                    pass
                else:
                    self._data = self._data[used:]
                    return frame
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._data += data

    def expect(self, kind: type[Any]) -> Any:
        frame = self.hear()
        assert isinstance(frame, kind), f'expected {kind.__name__}, heard {frame!r}'
        return frame

    def greet(self, *, heartbeat: int = 0, frame_max: int = 131_072) -> commands.Connection.StartOk:
        """The whole negotiation."""
        self.expect(header.ProtocolHeader)
        self.say(commands.Connection.Start(server_properties={'version': '0.0.1'}))
        answer: commands.Connection.StartOk = self.expect(commands.Connection.StartOk)
        self.say(commands.Connection.Tune(2047, frame_max, heartbeat))
        self.expect(commands.Connection.TuneOk)
        self.expect(commands.Connection.Open)
        self.say(commands.Connection.OpenOk())
        return answer

    def open_channel(self, number: int = 1, *, confirm: bool = False) -> None:
        self.expect(commands.Channel.Open)
        self.say(commands.Channel.OpenOk(), channel=number)
        if confirm:
            self.expect(commands.Confirm.Select)
            self.say(commands.Confirm.SelectOk(), channel=number)

    def wait_for_end(self) -> list[base.Frame]:
        """Whatever the client still sends until it closes."""
        heard = []
        while (frame := self.hear()) is not None:
            heard.append(frame)
        return heard

    def wait_for_end_of_bytes(self) -> None:
        """Read what is not AMQP until the client closes."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass


class Peer:
    """Runs a script for each connection, one after another; its failure is raised at the end of `with`."""

    def __init__(self, *scripts: Script, context: ssl.SSLContext | None = None) -> None:
        self._scripts = scripts
        self._context = context
        self._failures: list[BaseException] = []
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name='peer', daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join(PEER_TIMEOUT if error is None else 1.0)
        self._listener.close()
        if error is None:
            assert not self._thread.is_alive(), 'the script has not ended'
            if self._failures:
                raise self._failures[0]

    def _serve(self) -> None:
        for script in self._scripts:
            self._listener.settimeout(PEER_TIMEOUT)
            try:
                sock, _ = self._listener.accept()
                sock.settimeout(PEER_TIMEOUT)
                with sock:
                    self._converse(script, sock)
            except (AssertionError, OSError) as error:
                self._failures.append(error)

    def _converse(self, script: Script, sock: socket.socket) -> None:
        if self._context is None:
            script(Conversation(sock))
            return
        try:
            wrapped = self._context.wrap_socket(sock, server_side=True)
        except (ssl.SSLError, ConnectionError):
            return  # the client did not like us; that is for the test to see
        with wrapped:
            script(Conversation(wrapped))


def open_files() -> int:
    return len(os.listdir('/proc/self/fd'))
