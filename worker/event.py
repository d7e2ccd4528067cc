"""What the worker handles: an event as PgQ gives it, and the message that it becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from mikkoo.common.amqp_fields import Fields


class Event(NamedTuple):
    """One row of pgq.get_batch_events, in its column order.

    `time` is aware (UTC offset of the session); `retry` is NULL at the first delivery, then 1, 2, ...
    `left_out`: None; or texts were left out (they are None then), since the largest has so many bytes, more
    than the limit, or for this reason.
    """

    id: int
    time: datetime
    txid: int
    retry: int | None
    type: str | None
    data: str | None
    extra1: str | None
    extra2: str | None
    extra3: str | None
    extra4: str | None
    left_out: int | str | None = None


class Message(NamedTuple):
    """A message for RabbitMQ. `properties`: AMQP 0-9-1 basic property names ('type', 'headers', 'timestamp'
    as integer seconds, ...) to values ready for the wire; absent means not set."""

    exchange: str
    routing_key: str
    properties: Mapping[str, Any]
    body: bytes


class Encoded(Mapping[str, Any]):
    """Properties that are encoded already, and read only where somebody asks for one of them.

    `flags`, `encoded`: property flags and list, AMQP 0-9-1 section 4.2.6.1.
    """

    __slots__ = ('encoded', 'flags')

    def __init__(self, flags: int, encoded: bytes) -> None:
        self.flags = flags
        self.encoded = encoded

    def __getitem__(self, name: str) -> Any:
        return self.read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.read())

    def __len__(self) -> int:
        return self.flags.bit_count()

    def read(self) -> dict[str, Any]:
        """All of them, in one go."""
        return Fields(self.flags.to_bytes(2) + self.encoded).properties()
