"""Pure: what a message is to its record, and to the same message when it came before."""

from __future__ import annotations

import re
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import orjson

from mikkoo.common.audit_settle import Arrival

_USUAL = re.compile(r'[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}')


def identity(message_id: object) -> str | None:
    """The UUID of a property message_id in its usual form; None: it is none."""
    if not isinstance(message_id, str):
        return None
    if _USUAL.fullmatch(message_id):
        return message_id
    try:
        return str(uuid.UUID(message_id))
    except ValueError:
        return None


def recorded_content_type(content_type: str | None, properties: str | None) -> str:
    """The content type that the relay gives an event, '' for none: docs/mapping.md, ev_extra2, ev_extra3.

    By the relay's own reader: another may give up at JSON that is nested less deeply.
    """
    try:
        given = orjson.loads(properties) if properties else {}
    except orjson.JSONDecodeError:
        given = {}  # of a record that was made by hand: the relay refuses such an event
    own = given.get('content_type') if isinstance(given, dict) else None
    return (content_type or '') if own is None else str(own)


def differing(arrival: Arrival, earlier: Arrival) -> list[str]:
    """What is not the same in two messages with one message_id."""
    fields = ('exchange', 'routing_key', 'content_type')
    found = [name for name in fields if getattr(arrival, name) != getattr(earlier, name)]
    return found + (['body'] if arrival.body_sha256 != earlier.body_sha256 else [])


class Settled(NamedTuple):
    """A message whose record is deleted, and the queue of that."""

    arrival: Arrival
    queue: str


class Memory:
    """The messages settled last, at most `most`: in 'delete' mode nothing else remembers them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._settled: OrderedDict[str, Settled] = OrderedDict()

    def get(self, message_id: str) -> Settled | None:
        return self._settled.get(message_id)

    def add(self, settled: Iterable[Settled]) -> None:
        for one in settled:
            self._settled[one.arrival.message_id] = one
        while len(self._settled) > self._most:
            self._settled.popitem(last=False)
