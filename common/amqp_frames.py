"""AMQP 0-9-1 frames as a client receives them: cut out of the stream, and made into signals. No I/O.

Acks come by the ten thousand a second, so the common methods are read with struct straight from the buffer.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mikkoo.common.amqp_fields import Fields, FrameError
from mikkoo.common.amqp_values import short_string

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8  # frame types, AMQP 0-9-1 section 4.2.3
FRAME_END = 0xCE
FRAME_OVERHEAD = 8  # bytes of a frame that are not its payload

_FRAME = struct.Struct('>BHI')
_INDEX = struct.Struct('>HH')
_CONFIRM = struct.Struct('>HHQB')  # Basic.Ack and Basic.Nack alike: method, delivery tag, bits
_CONTENT = struct.Struct('>HHQ')  # class, weight, body size
_SHORT = struct.Struct('>H')

_OPEN_OK, _CLOSE, _CLOSE_OK = (20, 11), (20, 40), (20, 41)
_DECLARE_OK, _SELECT_OK = (40, 11), (85, 11)
_QOS_OK, _RETURN, _ACK, _NACK = (60, 11), (60, 50), (60, 80), (60, 120)
_BASIC_CLASS = 60


class Ack(NamedTuple):
    """Basic.Ack: this message, or with `multiple` every one up to it, is the broker's."""

    tag: int
    multiple: bool


class Nack(NamedTuple):
    """Basic.Nack: not stored."""

    tag: int
    multiple: bool


class Returned(NamedTuple):
    """Basic.Return and its content. `properties`: AMQP names; `timestamp` in seconds; absent: not set."""

    code: int
    text: str
    exchange: str
    routing_key: str
    properties: Mapping[str, Any]
    body: bytes


class ChannelClosed(NamedTuple):
    """The broker closed the channel, and has its answer. The ids name the method it did not like, or 0."""

    code: int
    text: str
    class_id: int
    method_id: int


class Synced(NamedTuple):
    """The answer to `sync`."""


Signal = Ack | Nack | Returned | ChannelClosed | Synced


class Reply(NamedTuple):
    """An answer to a call, by its class and method; arguments are of no use to us."""

    class_id: int
    method_id: int


OPENED, CLOSED = Reply(*_OPEN_OK), Reply(*_CLOSE_OK)
SELECTED, DECLARED = Reply(*_SELECT_OK), Reply(*_DECLARE_OK)


def cut(data: bytes, most: int) -> Iterator[tuple[int, int, int, int]]:
    """(type, channel, start, stop) of each whole frame's payload in `data`; the next begins at stop + 1.

    Raises FrameError at the first that is not AMQP or whose payload is over `most` bytes.
    """
    position, end = 0, len(data)
    while end - position >= 7:
        kind, channel, size = _FRAME.unpack_from(data, position)
        if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
            raise FrameError(_describe_garbage(data[position : position + 16]))
        if size > most:
            raise FrameError(f'a frame of {size} bytes, over the {most} that were agreed upon')
        stop = position + 7 + size
        if stop >= end:
            return
        if data[stop] != FRAME_END:
            raise FrameError(f'a frame that ends in {data[stop]:#04x} instead of {FRAME_END:#04x}')
        yield kind, channel, position + 7, stop
        position = stop + 1


def method(channel: int, class_id: int, method_id: int, arguments: bytes = b'') -> bytes:
    """One method frame."""
    return b''.join(
        (
            _FRAME.pack(METHOD, channel, 4 + len(arguments)),
            _INDEX.pack(class_id, method_id),
            arguments,
            bytes((FRAME_END,)),
        )
    )


def channel_open(channel: int) -> bytes:
    return method(channel, 20, 10, b'\0')


def channel_close(channel: int) -> bytes:
    return method(channel, *_CLOSE, _SHORT.pack(200) + short_string('closed') + bytes(4))


def channel_close_ok(channel: int) -> bytes:
    return method(channel, *_CLOSE_OK)


def confirm_select(channel: int) -> bytes:
    return method(channel, 85, 10, b'\0')


def qos(channel: int) -> bytes:
    """Basic.Qos without a limit: on a channel that does not consume, nothing but a round trip."""
    return method(channel, 60, 10, bytes(7))


def exchange_declare_passive(channel: int, name: str) -> bytes:
    """Asks whether an exchange exists; any name that RabbitMQ allows (255 bytes of UTF-8).

    Raises ValueError for a longer one.
    """
    names = short_string(name) + short_string('direct')
    return method(channel, 40, 10, bytes(2) + names + b'\1' + bytes(4))


class Inbox:
    """What arrives on one channel: signals, in order, and replies to calls.

    `closed` is set when the broker closed the channel, `over` when its number is free (both sides agree).
    Fed by one thread; drained by another, which tells before it asks what it will ask for: `asked`, `syncs`.
    """

    def __init__(self) -> None:
        self.signals: deque[Signal] = deque()
        self.replies: deque[Reply] = deque()
        self.asked: Reply | None = None
        self.syncs = 0
        self.closed: ChannelClosed | None = None
        self.closing = False  # we have sent Channel.Close
        self.answered = False  # we have sent Channel.CloseOk
        self.over = False
        self._return: Fields | None = None
        self._properties: Mapping[str, Any] | None = None
        self._body: list[bytes] = []
        self._missing = 0
        self._synced = 0

    def feed(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Take one frame's payload, data[start:stop]. True: a Channel.Close or CloseOk, look at `closed`."""
        if kind == METHOD:
            if self._return is not None:
                raise FrameError('a method in the midst of a message')
            if stop - start == 13:
                class_id, method_id, tag, bits = _CONFIRM.unpack_from(data, start)
                if class_id == _BASIC_CLASS and method_id == 80:
                    self.signals.append(Ack(tag, bits & 1 == 1))
                    return False
                if class_id == _BASIC_CLASS and method_id == 120:
                    self.signals.append(Nack(tag, bits & 1 == 1))
                    return False
            return self._take_method(Fields(data[start:stop]))
        if kind == HEADER:
            self._take_header(Fields(data[start:stop]))
        elif kind == BODY:
            self._take_body(data[start:stop])
        else:
            raise FrameError(f'a frame of type {kind} on a channel')
        return False

    def wake(self) -> None:
        """The link is lost, blocked or no longer so; whoever waits for signals hears it from the Bell."""

    def owes_answer(self) -> bool:
        """After a Close or CloseOk was fed: whether to send Channel.CloseOk now. Sets `over` where it is due.

        Where both sides closed at once, the number is free only when our own Close is answered too.
        """
        owes = self.closed is not None and not self.answered
        self.answered = self.answered or owes
        self.over = not (owes and self.closing)
        return owes

    def _take_method(self, fields: Fields) -> bool:
        index = fields.take(_INDEX)
        if index == _RETURN:
            self._return = fields
        elif index == _QOS_OK and self._synced < self.syncs:
            self._synced += 1
            self.signals.append(Synced())
        elif index == _CLOSE:
            (code,), text = fields.take(_SHORT), fields.short_text()
            self.closed = ChannelClosed(code, text, *fields.take(_INDEX))
            self.signals.append(self.closed)
            return True
        elif index == CLOSED and self.closing:
            self.replies.append(CLOSED)
            return True
        elif index == self.asked:
            self.asked = None
            self.replies.append(Reply(*index))
        else:
            raise FrameError('a method that was not expected, class {} method {}'.format(*index))
        return False

    def _take_header(self, fields: Fields) -> None:
        if self._return is None or self._properties is not None:
            raise FrameError('a content header that was not expected')
        class_id, _, self._missing = fields.take(_CONTENT)
        if class_id != _BASIC_CLASS:
            raise FrameError(f'a content header of class {class_id}')
        self._properties = fields.properties()
        if not self._missing:
            self._finish()

    def _take_body(self, part: bytes) -> None:
        if self._properties is None or len(part) > self._missing:
            raise FrameError('a body that was not expected')
        self._body.append(part)
        self._missing -= len(part)
        if not self._missing:
            self._finish()

    def _finish(self) -> None:
        assert self._return is not None and self._properties is not None
        (code,) = self._return.take(_SHORT)
        text, exchange, key = (self._return.short_text() for _ in range(3))
        self.signals.append(Returned(code, text, exchange, key, self._properties, b''.join(self._body)))
        self._return, self._properties, self._body = None, None, []


def _describe_garbage(data: bytes) -> str:
    if data[:4] == b'AMQP':
        return f'the server speaks another protocol, AMQP {".".join(str(byte) for byte in data[4:8])}'
    if data[:2] == b'\x15\x03':
        return 'the server speaks TLS on this port'
    return f'this is not AMQP: {data!r}'
