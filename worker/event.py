"""What the worker handles: an event as PgQ gives it, and the message that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple


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
