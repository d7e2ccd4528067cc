"""A bare AMQP 0-9-1 socket to a broker on this machine, with one channel: as little as a client can be."""

from __future__ import annotations

import socket
import ssl

from pamqp import commands, frame, header

CHANNEL = 1
FRAME_MAX = 131_072  # bytes
SILENCE = 60.0  # seconds
PIECE = 256 * 1024  # bytes read at once


class Link:
    """Logged in as guest, channel open.

    `authority`: a PEM file, for TLS. `silence`: seconds without an answer that end the run.
    """

    def __init__(self, port: int, authority: str | None = None, silence: float | None = SILENCE) -> None:
        plain = socket.create_connection(('127.0.0.1', port), silence)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = ssl.create_default_context(cafile=authority) if authority else None
        self._socket = tls.wrap_socket(plain, server_hostname='127.0.0.1') if tls else plain
        self.rest = b''  # received, and not yet taken
        self.send(header.ProtocolHeader().marshal())
        self.expect('Connection.Start')
        self.say(commands.Connection.StartOk({}, 'PLAIN', '\0guest\0guest', 'en_US'), 0)
        self.expect('Connection.Tune')
        self.say(commands.Connection.TuneOk(2047, FRAME_MAX, 0), 0)
        self.say(commands.Connection.Open('/'), 0)
        self.expect('Connection.OpenOk')
        self.say(commands.Channel.Open())
        self.expect('Channel.OpenOk')

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def say(self, method: frame.FrameTypes, channel: int = CHANNEL) -> None:
        self.send(frame.marshal(method, channel))

    def expect(self, name: str) -> None:
        """Take the next frame. RuntimeError if it is not the method of this name."""
        used, _, value = frame.unmarshal(self.rest) if self.rest else (0, 0, None)
        while not used:
            self.rest += self.receive()
            used, _, value = frame.unmarshal(self.rest)
        assert value is not None
        self.rest = self.rest[used:]
        if value.name != name:
            raise RuntimeError(f'{value.name} where {name} was expected')

    def receive(self) -> bytes:
        """Some bytes. RuntimeError when the broker has closed, TimeoutError when it is silent."""
        data = self._socket.recv(PIECE)
        if not data:
            raise RuntimeError('the broker closed the connection')
        return data

    def close(self) -> None:
        self._socket.close()
