"""What the broker takes: ready-made frames on a bare socket, confirms in flight, and nothing else.

`python -m bench.ceiling PORT EXCHANGE COUNT` publishes COUNT copies of the very bytes that the relay sends
for the benchmark's event, and prints JSON: `seconds` from the first write to the last confirm, `cpu` seconds
for that and `peak` KiB of this process.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import struct
import time
from datetime import UTC, datetime

from pamqp import commands, frame, header

from mikkoo.worker.event import Event
from mikkoo.worker.frames import encoder
from mikkoo.worker.translate import Translator

CHANNEL = 1
FRAME_MAX = 131_072  # bytes
CHUNK, CHUNK_BYTES = 64, 256 * 1024  # messages, or bytes, in a write
ACK = struct.Struct('>BHIHHQBB')  # a whole Basic.Ack frame, AMQP 0-9-1 section 1.8.3.13
BASIC_ACK = (60, 80)
SILENCE = 60.0  # seconds without an answer that end the run


class Confirms:
    """Counts the messages that the broker has confirmed."""

    def __init__(self) -> None:
        self._all_up_to = 0
        self._single: set[int] = set()

    def hear(self, data: bytes) -> bytes:
        """Take the whole acks from the stream; the rest of the bytes."""
        whole = len(data) // ACK.size * ACK.size
        for _, _, _, class_id, method_id, tag, multiple, _ in ACK.iter_unpack(data[:whole]):
            if (class_id, method_id) != BASIC_ACK:
                raise RuntimeError(f'not an ack: class {class_id} method {method_id}')
            if multiple:
                self._all_up_to = max(tag, self._all_up_to)
                self._single = {one for one in self._single if one > tag}
            else:
                self._single.add(tag)
        return data[whole:]

    @property
    def count(self) -> int:
        return self._all_up_to + len(self._single)


class Bare:
    """A socket that has logged in, with a channel in confirm mode."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(('127.0.0.1', port), SILENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b''
        self._socket.sendall(header.ProtocolHeader().marshal())
        self._expect('Connection.Start')
        self._say(commands.Connection.StartOk({}, 'PLAIN', '\0guest\0guest', 'en_US'), 0)
        self._expect('Connection.Tune')
        self._say(commands.Connection.TuneOk(2047, FRAME_MAX, 0), 0)
        self._say(commands.Connection.Open('/'), 0)
        self._expect('Connection.OpenOk')
        self._say(commands.Channel.Open(), CHANNEL)
        self._expect('Channel.OpenOk')
        self._say(commands.Confirm.Select(), CHANNEL)
        self._expect('Confirm.SelectOk')
        self._confirms = Confirms()

    def publish(self, message: bytes, count: int, window: int) -> None:
        """Return when so many copies are confirmed, `window` of them in flight at most."""
        each = max(1, min(CHUNK, CHUNK_BYTES // len(message), window))
        chunk, sent = message * each, 0
        while self._confirms.count < count:
            size = min(each, count - sent)
            if size and sent + size - self._confirms.count <= window:
                self._socket.sendall(chunk if size == each else message * size)
                sent += size
            else:
                self._rest = self._confirms.hear(self._rest + self._receive())

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> bytes:
        data = self._socket.recv(65_536)
        if not data:
            raise RuntimeError('the broker closed the connection')
        return data

    def _say(self, method: frame.FrameTypes, channel: int) -> None:
        self._socket.sendall(frame.marshal(method, channel))

    def _expect(self, name: str) -> None:
        used = 0
        while not used:
            self._rest += self._receive()
            used, _, value = frame.unmarshal(self._rest)
        self._rest = self._rest[used:]
        if value.name != name:
            raise RuntimeError(f'{value.name} where {name} was expected')


def message(exchange: str, routing_key: str, body: str, properties: str, headers: str) -> bytes:
    """The frames that the relay sends for an event with these texts."""
    translate = Translator(database='bench', queue='bench', origin='bench.example.org')
    event = Event(
        id=1_000_000, time=datetime(2026, 1, 1, tzinfo=UTC), txid=1_000_000, retry=None, type=routing_key,
        data=body, extra1=exchange, extra2='application/json', extra3=properties, extra4=headers,
    )  # fmt: skip
    return encoder(CHANNEL, FRAME_MAX)(translate(event))


def run(port: int, frames: bytes, count: int, window: int) -> tuple[float, float]:
    """Seconds, and CPU seconds, from the first write to the last confirm."""
    bare = Bare(port)
    try:
        started, used = time.monotonic(), time.process_time()
        bare.publish(frames, count, window)
        return time.monotonic() - started, time.process_time() - used
    finally:
        bare.close()


def main() -> None:
    from bench.relay import BODY, HEADERS, PROPERTIES

    parser = argparse.ArgumentParser(description='What the broker takes from a bare socket.')
    parser.add_argument('port', type=int)
    parser.add_argument('exchange')
    parser.add_argument('count', type=int)
    parser.add_argument('--window', type=int, default=1_000, help='in flight (default %(default)s)')
    options = parser.parse_args()
    frames = message(options.exchange, 'bench.key', BODY, PROPERTIES, HEADERS)
    seconds, cpu = run(options.port, frames, options.count, options.window)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({'seconds': seconds, 'cpu': cpu, 'peak': peak}))


if __name__ == '__main__':
    main()
