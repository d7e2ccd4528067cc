"""Python values to AMQP 0-9-1 fields: the other direction of amqp_fields.py. No I/O.

Table values have the types of RabbitMQ's errata, and Python's those that pika gives them.
"""

from __future__ import annotations

import calendar
import struct
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

DEEPEST = 64  # nested tables and arrays; clients read them recursively

_SHORT = struct.Struct('>H').pack
_LONG = struct.Struct('>I').pack
_LONGLONG = struct.Struct('>Q').pack
_SMALL = struct.Struct('>ci').pack
_LARGE = struct.Struct('>cq').pack
_DOUBLE = struct.Struct('>cd').pack
_DECIMAL = struct.Struct('>cBi').pack

REFUSALS = (ValueError, TypeError, AttributeError, ArithmeticError, struct.error)


def short_string(text: str) -> bytes:
    """A shortstr. ValueError: over 255 bytes of UTF-8, or no Unicode; TypeError: no text."""
    if not isinstance(text, str):
        raise TypeError(f'must be a text, not {type(text).__name__}')
    data = text.encode()
    if len(data) > 255:
        raise ValueError(f'{len(data)} bytes are too long for a name: {text[:40]}...')
    return bytes((len(data),)) + data


def table(values: Mapping[str, Any] | None, depth: int = 0) -> bytes:
    """A field table; None is an empty one. ValueError names the key that cannot be carried."""
    parts: list[bytes] = []
    for key, value in (values or {}).items():
        try:
            parts += (short_string(key), _value(value, depth))
        except REFUSALS as error:
            raise ValueError(f'{key!r}: {error}') from None
    data = b''.join(parts)
    return _LONG(len(data)) + data


def properties(given: object) -> bytes:
    """Property flags and list (section 4.2.6.1) of an object with pika's attribute names; absent is None.

    Raises ValueError that names the property.
    """
    if given is None:
        return b'\0\0'
    flags, parts = 0, []
    for name, flag, encode in _PROPERTIES:
        value = getattr(given, name, None)
        if value is not None:
            try:
                parts.append(encode(value))
            except REFUSALS as error:
                raise ValueError(f'property {name}: {error}') from None
            flags |= flag
    return _SHORT(flags) + b''.join(parts)


def _value(value: Any, depth: int) -> bytes:
    encode = _VALUES.get(type(value))
    if encode is None:  # a subclass: an enumeration, an ordered dictionary
        encode = next((_VALUES[kind] for kind in _VALUES if isinstance(value, kind)), None)
    if encode is None:
        raise TypeError(f'AMQP has no type for {type(value).__name__}')
    if depth >= DEEPEST:
        raise ValueError(f'nested deeper than {DEEPEST}')
    return encode(value, depth)


def _text(value: str, depth: int) -> bytes:
    data = value.encode()
    return b'S' + _LONG(len(data)) + data


def _integer(value: int, depth: int) -> bytes:
    return _SMALL(b'I', value) if -(2**31) <= value < 2**31 else _LARGE(b'l', value)


def _array(values: list[Any] | tuple[Any, ...], depth: int) -> bytes:
    data = b''.join(_value(value, depth + 1) for value in values)
    return b'A' + _LONG(len(data)) + data


def _decimal(value: Decimal, depth: int) -> bytes:
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError(f'{value} is no finite number')
    places = max(0, -exponent)
    return _DECIMAL(b'D', places, int(value.scaleb(places)))


def seconds(value: int | datetime) -> bytes:
    """A timestamp. A datetime without a zone is taken for UTC."""
    return _LONGLONG(calendar.timegm(value.utctimetuple()) if isinstance(value, datetime) else value)


def _octet(value: int) -> bytes:
    return bytes((value,))


def _text_or_number(value: str | int) -> bytes:
    return short_string(str(value) if type(value) is int else value)  # type: ignore[arg-type]


_VALUES: Mapping[type, Callable[[Any, int], bytes]] = {
    str: _text,
    bool: lambda value, depth: b't\1' if value else b't\0',
    int: _integer,
    float: lambda value, depth: _DOUBLE(b'd', value),
    bytes: lambda value, depth: b'x' + _LONG(len(value)) + value,
    type(None): lambda value, depth: b'V',
    dict: lambda value, depth: b'F' + table(value, depth + 1),
    list: _array,
    tuple: _array,
    datetime: lambda value, depth: b'T' + seconds(value),
    Decimal: _decimal,
}

# Name, flag and encoder in the order of the wire: AMQP 0-9-1 section 1.8 (class basic).
_PROPERTIES: tuple[tuple[str, int, Callable[[Any], bytes]], ...] = (
    ('content_type', 1 << 15, short_string),
    ('content_encoding', 1 << 14, short_string),
    ('headers', 1 << 13, table),
    ('delivery_mode', 1 << 12, _octet),
    ('priority', 1 << 11, _octet),
    ('correlation_id', 1 << 10, short_string),
    ('reply_to', 1 << 9, short_string),
    ('expiration', 1 << 8, _text_or_number),
    ('message_id', 1 << 7, short_string),
    ('timestamp', 1 << 6, seconds),
    ('type', 1 << 5, short_string),
    ('user_id', 1 << 4, short_string),
    ('app_id', 1 << 3, short_string),
    ('cluster_id', 1 << 2, short_string),
)
