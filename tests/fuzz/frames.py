"""Any bytes from the broker: frames are delivered, or the link ends by FrameError or BrokerError; soon."""

from __future__ import annotations

import queue
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import pamqp.frame
from pamqp import body, commands, header

from mikkoo.common.amqp import Ack, Nack, Returned
from mikkoo.common.amqp_fields import FrameError
from mikkoo.common.amqp_frames import DECLARED, OPENED, SELECTED
from mikkoo.common.amqp_transport import RingingEvents, Transport
from mikkoo.common.bell import Bell
from mikkoo.common.errors import BrokerError
from mikkoo.common.stream import Stream
from mikkoo.worker.event import Message
from mikkoo.worker.flights import Flight, Flights
from tests.unit.test_flights import event

SLOWEST = 5.0  # seconds of CPU
ARGUMENTS = {'host': 'fuzz', 'port': 1, 'ssl': False, 'ssl_options': {}}
ANSWERS = (None, OPENED, SELECTED, DECLARED)
KINDS = (1, 2, 3, 8)  # frame types, AMQP 0-9-1 section 4.2.3
SETTLED, CLOSING, ENVELOPED, SYNCED = 1, 2, 4, 8  # bits of an input's first octet; its last two: ANSWERS
PROPERTIES = commands.Basic.Properties(
    content_type='a', headers={'h': [1, {'k': None}], 'd': 1.5}, message_id='m', timestamp=None
)


@cache
def wire() -> tuple[socket.socket, socket.socket]:
    """Both ends of one TCP connection, for every line: a new one each time would use all ports up."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


@contextmanager
def line(settled: bool) -> Iterator[Transport]:
    """A transport without its thread, on one end of the wire; channels 1 and 2 are open."""
    ours, theirs = wire()
    bell = Bell()
    transport = Transport(ARGUMENTS, None, bell, 0.0, RingingEvents(bell), queue.Queue())
    try:
        transport._stream = Stream(ours.dup(), transport.lock)
        transport._settled = settled
        transport.open_inbox(2)
        transport.open_inbox(2)
        yield transport
    finally:
        transport.close()
        bell.close()
        with suppress(BlockingIOError):
            while theirs.recv(65536):
                pass


def check(data: bytes, flags: int = SETTLED) -> None:
    """Fails on any other exception, and on signals that no worker would survive."""
    began = time.process_time()
    with line(bool(flags & SETTLED)) as transport:
        inbox = transport.inboxes[1]
        inbox.closing = bool(flags & CLOSING)
        inbox.syncs = 1 if flags & SYNCED else 0
        inbox.asked = ANSWERS[flags >> 6]
        try:
            with warnings.catch_warnings(
                action='ignore', category=DeprecationWarning
            ):  # pamqp's, of RecoverAsync
                transport._parse(data)
        except (FrameError, BrokerError) as error:
            assert str(error)
        judge([signal for signal in inbox.signals if isinstance(signal, Ack | Nack | Returned)])
    assert time.process_time() - began < SLOWEST


def judge(signals: list[Ack | Nack | Returned]) -> None:
    """What the worker makes of them, with four messages in flight: each is judged once, or the link ends."""
    flights = Flights()
    for number in range(1, 5):
        flights.add(Flight(event(number), Message('e', 'k', {'headers': {'n': number}}, b'b'), 10))
    judged = 0
    try:
        for signal in signals:
            if isinstance(signal, Returned):
                flights.mark_returned(*signal)
            else:
                judged += len(flights.take(signal.tag, signal.multiple))
    except BrokerError as error:
        assert str(error)
    assert judged + len(flights) == 4
    assert flights.bytes == 10 * len(flights)


def envelop(data: bytes) -> bytes:
    """Frames with whole envelopes: each of a type, a channel, a length and its payload."""
    frames = []
    while len(data) >= 4:
        kind, channel, size = KINDS[data[0] & 3], data[1] % 4, int.from_bytes(data[2:4])
        payload, data = data[4 : 4 + size], data[4 + size :]
        frames.append(bytes((kind, 0, channel)) + len(payload).to_bytes(4) + payload + b'\xce')
    return b''.join(frames)


def run(data: bytes) -> None:
    """For atheris."""
    flags, data = (data[0], data[1:]) if data else (0, b'')
    check(envelop(data) if flags & ENVELOPED else data, flags)


def _seeds() -> Iterator[bytes]:
    returned = commands.Basic.Return(312, 'NO_ROUTE', 'e', 'k')
    talks: list[tuple[int, int, list[pamqp.frame.FrameTypes]]] = [
        (0, 0, [commands.Connection.Start(server_properties={'version': '3', 'c': {'x': [True, 1.5, 'l']}})]),
        (0, 0, [commands.Connection.Tune(0, 0, 65535), commands.Connection.OpenOk()]),
        (0, 0, [commands.Connection.Close(403, 'no', 10, 40)]),
        (0, SETTLED, [commands.Connection.Blocked('memory'), commands.Connection.Unblocked()]),
        (1, SETTLED, [commands.Basic.Ack(1, True), commands.Basic.Nack(2, False), commands.Basic.Ack(9)]),
        (1, SETTLED, [returned, header.ContentHeader(0, 2, PROPERTIES), body.ContentBody(b'b')]),
        (1, SETTLED | 1 << 6, [commands.Channel.OpenOk(), commands.Channel.Close(404, 'no', 60, 40)]),
        (1, SETTLED | CLOSING | SYNCED, [commands.Basic.QosOk(), commands.Channel.CloseOk()]),
    ]
    for channel, flags, parts in talks:
        yield bytes((flags,)) + b''.join(pamqp.frame.marshal(part, channel) for part in parts)
        payloads = [pamqp.frame.marshal(part, channel)[7:-1] for part in parts]
        kinds = [KINDS.index(pamqp.frame.marshal(part, channel)[0]) for part in parts]
        yield bytes((flags | ENVELOPED,)) + b''.join(
            bytes((kind, channel)) + len(payload).to_bytes(2) + payload
            for kind, payload in zip(kinds, payloads, strict=True)
        )


SEEDS = list(_seeds())
