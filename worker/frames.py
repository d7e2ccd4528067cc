"""A Message becomes AMQP 0-9-1 frames: Basic.Publish, content header, body. Pure; the hot path.

Frame layout: AMQP 0-9-1 sections 2.3.5 and 4.2. The types of header values are those of RabbitMQ's errata:
t boolean, I and l signed integers, d double, S text, A array, F table, V void.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from types import NoneType
from typing import Any

from mikkoo.common.errors import EventError
from mikkoo.worker.event import Encoded, Message

DEFAULT_FRAME_MAX = 131_072  # bytes; RabbitMQ's own. In tuning, 0 says "no limit"
FRAME_OVERHEAD = 8  # bytes around a frame's payload: type, channel, size; end
PROPERTY_OVERHEAD = 14  # bytes of a content header before its properties: class, weight, body size, flags
LARGEST_DEPTH = 64  # of arrays and objects within headers; clients read them recursively
LARGEST_PATH = 200  # characters of the path to a header, in an error
CACHED = 4096  # names and exchange / routing key pairs whose bytes are kept

METHOD, HEADER, BODY = 1, 2, 3
BASIC, PUBLISH = 60, 40
MANDATORY = 1
FRAME_END = b'\xce'

frame_start = Struct('>BHI').pack  # type, channel, size
publish_start = Struct('>HHH').pack  # class, method, the reserved ticket
header_start = Struct('>IHHQH').pack  # size of the frame; class, weight, body size, flags
length = Struct('>I').pack
octet = Struct('>B').pack
timestamp = Struct('>Q').pack
text_start = Struct('>cI').pack
short_integer = Struct('>ci').pack
long_integer = Struct('>cq').pack
double = Struct('>cd').pack
octets = tuple(bytes((number,)) for number in range(256))

# What an encoder raises for a value that it cannot carry.
REFUSALS = (EventError, ValueError, TypeError, AttributeError, KeyError, StructError)


def encoder(channel: int, frame_max: int) -> Callable[[Message], bytes]:
    """A function that gives a message's frames, ready to send on `channel`, published as mandatory.

    `frame_max`: as negotiated, in bytes, 0 for no limit. The function raises EventError, whose field is the
    property or 'headers' and the path in it, for what cannot be encoded.
    """
    frame_max = frame_max or DEFAULT_FRAME_MAX
    largest_properties = frame_max - FRAME_OVERHEAD - PROPERTY_OVERHEAD
    largest_piece = frame_max - FRAME_OVERHEAD
    number = channel.to_bytes(2, 'big')
    body_start = FRAME_END + octets[BODY] + number

    @lru_cache(CACHED)
    def published(exchange: str, routing_key: str) -> bytes:
        return _publish(channel, exchange, routing_key) + octets[HEADER] + number

    def encode(message: Message) -> bytes:
        exchange, routing_key, properties, body = message
        if type(properties) is Encoded:
            flags, encoded = properties.flags, properties.encoded
        else:
            flags, encoded = encode_properties(properties)
        if len(encoded) > largest_properties:
            raise EventError('headers', f'{len(encoded):,} bytes do not fit a frame: {largest_properties:,}')
        size = len(body)
        start = published(exchange, routing_key)
        header = header_start(PROPERTY_OVERHEAD + len(encoded), BASIC, 0, size, flags)
        if 0 < size <= largest_piece:
            return b''.join((start, header, encoded, body_start, length(size), body, FRAME_END))
        parts = [start, header, encoded]
        for offset in range(0, size, largest_piece):
            piece = body[offset : offset + largest_piece]
            parts += (body_start, length(len(piece)), piece)
        parts.append(FRAME_END)
        return b''.join(parts)

    return encode


def _publish(channel: int, exchange: str, routing_key: str) -> bytes:
    arguments = publish_start(BASIC, PUBLISH, 0)
    for name, value in (('exchange', exchange), ('routing_key', routing_key)):
        try:
            arguments += short_string(value)
        except ValueError as error:
            raise EventError(name, str(error)) from None
    arguments += octets[MANDATORY]
    return frame_start(METHOD, channel, len(arguments)) + arguments + FRAME_END


def short_string(text: str) -> bytes:
    """An AMQP shortstr. Raises ValueError for more than 255 bytes of UTF-8, or what is not Unicode."""
    encoded = text.encode()
    if len(encoded) > 255:
        raise ValueError(f'has {len(encoded)} bytes, and may have 255')
    return octets[len(encoded)] + encoded


repeated_string = lru_cache(CACHED)(short_string)


def shown(value: object) -> str:
    """A value for an error's text, not the whole of it: `repr` would recurse through all that it nests."""
    return reprlib.repr(value)[:80]


def encode_properties(properties: Mapping[str, Any]) -> tuple[int, bytes]:
    """Property flags and list, AMQP 0-9-1 section 4.2.6.1. Raises EventError, as `encoder` tells."""
    flags = 0
    parts = []
    for name, flag, encode in PROPERTIES:
        if name in properties:
            try:
                parts.append(encode(properties[name]))
            except EventError:
                raise
            except REFUSALS as error:
                raise EventError(name, f'{shown(properties[name])}: {error}') from None
            flags |= flag
    if len(parts) != len(properties):
        raise EventError(min(properties.keys() - NAMES), 'is no property of AMQP')
    return flags, b''.join(parts)


def _headers(headers: Mapping[str, Any]) -> bytes:
    try:
        return _table(headers, 1)
    except EventError as error:
        raise EventError(f'headers{error.field}'[:LARGEST_PATH], error.reason) from None


def _table(table: Mapping[str, Any], depth: int) -> bytes:
    """A field table, AMQP 0-9-1 section 4.2.5.5; the field of its EventErrors is the path within it."""
    parts = []
    for key, value in table.items():
        try:
            parts.append(repeated_string(key))
            parts.append(VALUES[type(value)](value, depth))
        except REFUSALS as error:
            raise _blame(f'.{key}', value, error) from None
    encoded = b''.join(parts)
    return length(len(encoded)) + encoded


def _array(values: Sequence[Any], depth: int) -> bytes:
    parts = []
    for index, value in enumerate(values):
        try:
            parts.append(VALUES[type(value)](value, depth))
        except REFUSALS as error:
            raise _blame(f'[{index}]', value, error) from None
    encoded = b''.join(parts)
    return length(len(encoded)) + encoded


def _text(value: str, depth: int) -> bytes:
    encoded = value.encode()
    return text_start(b'S', len(encoded)) + encoded


def _integer(value: int, depth: int) -> bytes:
    if -0x80000000 <= value <= 0x7FFFFFFF:
        return short_integer(b'I', value)
    if -(2**63) <= value < 2**63:
        return long_integer(b'l', value)
    raise ValueError('needs more than 64 bits with its sign')


def _nested(kind: bytes, encode: Callable[[Any, int], bytes]) -> Callable[[Any, int], bytes]:
    def encode_nested(value: Any, depth: int) -> bytes:
        if depth == LARGEST_DEPTH:
            raise ValueError(f'nested deeper than {LARGEST_DEPTH}')
        return kind + encode(value, depth + 1)

    return encode_nested


def _blame(step: str, value: object, error: Exception) -> EventError:
    """The error with one more step of the path to what is to blame."""
    if isinstance(error, EventError):
        return EventError(step + error.field, error.reason)
    if isinstance(error, KeyError):
        return EventError(step, f'AMQP has no type for {type(value).__name__}')
    return EventError(step, f'{shown(value)}: {error}')


VALUES: Mapping[type, Callable[[Any, int], bytes]] = {
    str: _text,
    int: _integer,
    bool: lambda value, depth: b't\x01' if value else b't\x00',
    float: lambda value, depth: double(b'd', value),
    NoneType: lambda value, depth: b'V',
    dict: _nested(b'F', _table),
    list: _nested(b'A', _array),
}

# Name, flag and encoder of every property, in the order of the wire: AMQP 0-9-1 section 1.8 (class basic).
PROPERTIES: tuple[tuple[str, int, Callable[[Any], bytes]], ...] = (
    ('content_type', 1 << 15, repeated_string),
    ('content_encoding', 1 << 14, repeated_string),
    ('headers', 1 << 13, _headers),
    ('delivery_mode', 1 << 12, octet),
    ('priority', 1 << 11, octet),
    ('correlation_id', 1 << 10, short_string),
    ('reply_to', 1 << 9, repeated_string),
    ('expiration', 1 << 8, repeated_string),
    ('message_id', 1 << 7, short_string),
    ('timestamp', 1 << 6, timestamp),
    ('type', 1 << 5, repeated_string),
    ('user_id', 1 << 4, repeated_string),
    ('app_id', 1 << 3, repeated_string),
)
NAMES = frozenset(name for name, _, _ in PROPERTIES)
