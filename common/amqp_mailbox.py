"""What arrives on a channel of a client whose threads wait for it: answers, confirms and deliveries."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from functools import lru_cache
from queue import SimpleQueue
from typing import Any, NamedTuple

from mikkoo.common.amqp_fields import Fields, FrameError
from mikkoo.common.amqp_frames import BODY, CLOSED, HEADER, METHOD, Ack, ChannelClosed, Inbox, Nack, Reply

CACHED = 1024  # pairs of exchange and routing key whose texts are kept

_INDEX = struct.Struct('>HH')
_SHORT = struct.Struct('>H')
_LONGLONG = struct.Struct('>Q')
_SETTLE = struct.Struct('>QB')
_SIZE_AT, _PROPERTIES_AT = 4, 12  # in a content header, after class and weight; after the size
_DELIVER, _RETURN = _INDEX.pack(60, 60), _INDEX.pack(60, 50)
_CANCEL, _ACK, _NACK, _CLOSE = (60, 30), (60, 80), (60, 120), (20, 40)


class Unroutable(NamedTuple):
    """Basic.Return: why."""

    code: int
    text: str


class Answer(NamedTuple):
    """The answer to a request, and its arguments."""

    reply: Reply
    fields: Fields


class Cancelled(NamedTuple):
    """The broker has ended the consumer, for instance because its queue was deleted."""


class Raw(NamedTuple):
    """A delivery as it came: Basic.Deliver, content header, body."""

    method: bytes
    header: bytes
    body: bytes


class Delivered(NamedTuple):
    """What Basic.Deliver says, under pika's names."""

    consumer_tag: str
    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str


class Mailbox(Inbox):
    """An Inbox for threads that block: `answers` for whoever called, `deliveries` for the consumer.

    None in either: something changed (link lost, blocked or not, channel closed, asked to stop); look at it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: SimpleQueue[Answer | Ack | Nack | Unroutable | None] = SimpleQueue()
        self.deliveries: SimpleQueue[Raw | Cancelled | None] = SimpleQueue()
        self._head = self._header = b''
        self._parts: list[bytes] = []

    def wake(self) -> None:
        self.answers.put(None)
        self.deliveries.put(None)

    def feed(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        if kind == METHOD:
            if self._head:
                raise FrameError('a method in the midst of a message')
            if data[start : start + 4] in (_DELIVER, _RETURN):
                self._head = data[start:stop]
                return False
            return self._take_method(Fields(data[start:stop]))
        if kind == HEADER:
            if not self._head or self._header or stop - start < _PROPERTIES_AT + 2:
                raise FrameError('a content header that was not expected')
            self._header = data[start:stop]
            (self._missing,) = _LONGLONG.unpack_from(data, start + _SIZE_AT)
        elif kind == BODY:
            self._missing -= stop - start
            if not self._header or self._missing < 0:
                raise FrameError('a body that was not expected')
            self._parts.append(data[start:stop])
        else:
            raise FrameError(f'a frame of type {kind} on a channel')
        if not self._missing:
            self._finish()
        return False

    def _finish(self) -> None:
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b''.join(parts)
        if self._head.startswith(_DELIVER):
            self.deliveries.put(Raw(self._head, self._header, body))
        else:
            fields = Fields(self._head[4:])
            (code,) = fields.take(_SHORT)
            self.answers.put(Unroutable(code, fields.short_text()))
        self._head = self._header = b''
        self._parts = []

    def _take_method(self, fields: Fields) -> bool:
        index = fields.take(_INDEX)
        if index in (_ACK, _NACK):
            tag, flags = fields.take(_SETTLE)
            self.answers.put((Ack if index == _ACK else Nack)(tag, flags & 1 == 1))
        elif index == _CANCEL:
            self.deliveries.put(Cancelled())
        elif index == _CLOSE:
            (code,), text = fields.take(_SHORT), fields.short_text()
            self.closed = ChannelClosed(code, text, *fields.take(_INDEX))
            self.wake()
            return True
        else:
            reply = Reply(*index)
            if reply == CLOSED and not self.closing:
                raise FrameError('the answer to a Channel.Close that was not sent')
            self.answers.put(Answer(reply, fields))
            return reply == CLOSED
        return False


class RichFields(Fields):
    """Fields whose table values are pika's: a timestamp is a datetime in UTC."""

    def value(self) -> Any:
        stamp = self._data[self._at : self._at + 1] == b'T'
        found = super().value()
        if not stamp:
            return found
        try:
            return datetime.fromtimestamp(found, UTC)
        except (OverflowError, ValueError, OSError):
            return found  # beyond the year 9999


def delivered(method: bytes) -> Delivered:
    """Basic.Deliver, read. FrameError: it ends too early."""
    at = 5 + method[4] if len(method) > 4 else 0
    if len(method) < at + 11:
        raise FrameError('a frame that ends too early')
    (tag,) = _LONGLONG.unpack_from(method, at)
    exchange, key = _names(method[at + 9 :])
    return Delivered(_consumer(method[5:at]), tag, method[at + 8] & 1 == 1, exchange, key)


def properties(header: bytes) -> dict[str, Any]:
    """The properties of a content header; absent: not set. FrameError, RecursionError: cannot be read."""
    if header[_PROPERTIES_AT:] == b'\0\0':
        return {}
    return RichFields(header[_PROPERTIES_AT:]).properties()


@lru_cache(CACHED)
def _names(data: bytes) -> tuple[str, str]:
    fields = Fields(data)
    return fields.short_text(), fields.short_text()


@lru_cache(CACHED)
def _consumer(data: bytes) -> str:
    return data.decode(errors='replace')
