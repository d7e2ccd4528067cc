"""AMQP 0-9-1 fields to Python values. No I/O."""

from __future__ import annotations

import struct
from decimal import Decimal
from typing import Any

_SHORT = struct.Struct('>H')
_LONG = struct.Struct('>I')
_NUMBERS = {
    kind: struct.Struct(form)
    for kind, form in {
        b't': '>?', b'b': '>b', b'B': '>B', b's': '>h', b'u': '>H', b'I': '>i', b'i': '>I',
        b'l': '>q', b'L': '>q', b'T': '>Q', b'f': '>f', b'd': '>d',
    }.items()
}  # fmt: skip
# Basic properties from the highest flag bit downwards (AMQP 0-9-1 reference, class basic).
_PROPERTIES = (
    ('content_type', 'short_text'), ('content_encoding', 'short_text'), ('headers', 'table'),
    ('delivery_mode', 'octet'), ('priority', 'octet'), ('correlation_id', 'short_text'),
    ('reply_to', 'short_text'), ('expiration', 'short_text'), ('message_id', 'short_text'),
    ('timestamp', 'seconds'), ('type', 'short_text'), ('user_id', 'short_text'),
    ('app_id', 'short_text'), ('cluster_id', 'short_text'),
)  # fmt: skip


class FrameError(Exception):
    """The peer sent what is not AMQP 0-9-1, or not in its order."""


class Fields:
    """Reads AMQP fields one after another (section 4.2.5; table values as RabbitMQ's errata have them)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, form: struct.Struct) -> tuple[Any, ...]:
        try:
            values = form.unpack_from(self._data, self._at)
        except struct.error:
            raise FrameError('a frame that ends too early') from None
        self._at += form.size
        return values

    def piece(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise FrameError('a frame that ends too early')
        self._at += size
        return data

    def octet(self) -> int:
        return self.piece(1)[0]

    def number(self) -> int:
        """An unsigned long of 32 bits."""
        return int.from_bytes(self.piece(4))

    def seconds(self) -> int:
        return int.from_bytes(self.piece(8))

    def short_text(self) -> str:
        return self.piece(self.octet()).decode(errors='replace')

    def table(self) -> dict[str, Any]:
        end = self._end()
        found = {}
        while self._at < end:
            name = self.short_text()
            found[name] = self.value()
        return found

    def value(self) -> Any:
        kind = self.piece(1)
        if kind in _NUMBERS:
            return self.take(_NUMBERS[kind])[0]
        if kind == b'S':
            data = self.piece(*self.take(_LONG))
            try:
                return data.decode()
            except UnicodeDecodeError:
                return data
        if kind == b'F':
            return self.table()
        if kind == b'A':
            end, found = self._end(), []
            while self._at < end:
                found.append(self.value())
            return found
        if kind == b'V':
            return None
        if kind == b'x':
            return self.piece(*self.take(_LONG))
        if kind == b'D':
            return Decimal(int.from_bytes(self.piece(5)[1:], signed=True)).scaleb(-self._data[self._at - 5])
        raise FrameError(f'a table value of type {kind!r}')

    def properties(self) -> dict[str, Any]:
        (flags,) = self.take(_SHORT)
        try:
            return {
                name: getattr(self, form)()
                for index, (name, form) in enumerate(_PROPERTIES)
                if flags & (0x8000 >> index)
            }
        except RecursionError:
            raise FrameError('headers that are nested too deeply') from None

    def _end(self) -> int:
        (size,) = self.take(_LONG)
        end = self._at + int(size)
        if end > len(self._data):
            raise FrameError('a table that is longer than its frame')
        return end
