"""Requests of a client that declares, consumes and publishes one message at a time, as frames. No I/O.

Names that RabbitMQ allows and pamqp does not (blanks, letters beyond ASCII) are why they are made here.
All raise ValueError for a name over 255 bytes and for a value that no field table holds.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from mikkoo.common.amqp_frames import BODY, FRAME_END, FRAME_OVERHEAD, HEADER, METHOD, Reply, method
from mikkoo.common.amqp_values import short_string, table

Arguments = Mapping[str, Any] | None

QUEUE_DECLARED, QUEUE_BOUND, QUEUE_UNBOUND = Reply(50, 11), Reply(50, 21), Reply(50, 51)
QUEUE_PURGED, QUEUE_DELETED = Reply(50, 31), Reply(50, 41)
EXCHANGE_DECLARED, EXCHANGE_DELETED = Reply(40, 11), Reply(40, 21)
LIMITED, CONSUMING = Reply(60, 11), Reply(60, 21)

_TICKET = bytes(2)
_FRAME = struct.Struct('>BHI').pack
_HEADER = struct.Struct('>BHIHHQ').pack  # frame: type, channel, size; content: class, weight, body size
_SETTLE = struct.Struct('>BHIHHQBB').pack
_QOS = struct.Struct('>IHB').pack


def bits(*flags: bool) -> bytes:
    return bytes((sum(1 << index for index, flag in enumerate(flags) if flag),))


def queue_declare(
    channel: int,
    name: str,
    passive: bool = False,
    durable: bool = False,
    exclusive: bool = False,
    auto_delete: bool = False,
    arguments: Arguments = None,
) -> bytes:
    flags = bits(passive, durable, exclusive, auto_delete)
    return method(channel, 50, 10, _TICKET + short_string(name) + flags + table(arguments))


def queue_bind(channel: int, queue: str, exchange: str, key: str, arguments: Arguments) -> bytes:
    names = short_string(queue) + short_string(exchange) + short_string(key)
    return method(channel, 50, 20, _TICKET + names + b'\0' + table(arguments))


def queue_unbind(channel: int, queue: str, exchange: str, key: str, arguments: Arguments) -> bytes:
    names = short_string(queue) + short_string(exchange) + short_string(key)
    return method(channel, 50, 50, _TICKET + names + table(arguments))


def queue_purge(channel: int, name: str) -> bytes:
    return method(channel, 50, 30, _TICKET + short_string(name) + b'\0')


def queue_delete(channel: int, name: str, if_unused: bool, if_empty: bool) -> bytes:
    return method(channel, 50, 40, _TICKET + short_string(name) + bits(if_unused, if_empty))


def exchange_declare(
    channel: int,
    name: str,
    kind: str,
    passive: bool,
    durable: bool,
    auto_delete: bool,
    internal: bool,
    arguments: Arguments,
) -> bytes:
    flags = bits(passive, durable, auto_delete, internal)
    return method(
        channel, 40, 10, _TICKET + short_string(name) + short_string(kind) + flags + table(arguments)
    )


def exchange_delete(channel: int, name: str, if_unused: bool) -> bytes:
    return method(channel, 40, 20, _TICKET + short_string(name) + bits(if_unused))


def limit(channel: int, prefetch: int) -> bytes:
    """Basic.Qos: at most so many messages in hand."""
    return method(channel, 60, 10, _QOS(0, prefetch, 0))


def consume(channel: int, queue: str, arguments: Arguments = None) -> bytes:
    """Basic.Consume with acknowledgements, the broker to name the consumer."""
    names = short_string(queue) + short_string('')
    return method(channel, 60, 20, _TICKET + names + b'\0' + table(arguments))


def ack(channel: int, tag: int, multiple: bool) -> bytes:
    return _SETTLE(METHOD, channel, 13, 60, 80, tag, multiple, FRAME_END)


def nack(channel: int, tag: int, multiple: bool, requeue: bool) -> bytes:
    return _SETTLE(METHOD, channel, 13, 60, 120, tag, multiple | requeue << 1, FRAME_END)


def publish(
    channel: int, frame_max: int, exchange: str, key: str, mandatory: bool, properties: bytes, body: bytes
) -> bytes:
    """A whole message, cut to `frame_max`. `properties`: flags and list. ValueError: they fill a frame."""
    most = frame_max - FRAME_OVERHEAD if frame_max else len(body) or 1
    if frame_max and len(properties) + 12 > most:
        raise ValueError(f'the properties have {len(properties)} bytes: more than a frame holds')
    names = short_string(exchange) + short_string(key)
    head = method(channel, 60, 40, _TICKET + names + bits(mandatory))
    end = bytes((FRAME_END,))
    parts = [head, _HEADER(HEADER, channel, 12 + len(properties), 60, 0, len(body)), properties, end]
    for at in range(0, len(body), most):
        piece = body[at : at + most]
        parts += (_FRAME(BODY, channel, len(piece)), piece, end)
    return b''.join(parts)
