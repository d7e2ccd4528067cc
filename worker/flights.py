"""Messages on their way: sent on one channel and not yet judged. Bookkeeping only, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from mikkoo.common.errors import BrokerLost
from mikkoo.worker.event import Encoded, Event, Message


class Flight:
    """A message in flight. `returned`: the broker's (code, text) once it came back as unroutable.

    `rounds`: how many times the broker rejected it while it took most others for its exchange.
    """

    __slots__ = ('event', 'message', 'returned', 'rounds', 'size')

    def __init__(self, event: Event, message: Message, size: int) -> None:
        self.event = event
        self.message = message
        self.size = size
        self.returned: tuple[int, str] | None = None
        self.rounds = 0


class Flights:
    """The flights of one channel by delivery tag, which counts from 1 in publish order (RabbitMQ confirms).

    `bytes`: their encoded size together.
    """

    def __init__(self) -> None:
        self._order: deque[int] = deque()  # tags in publish order; judged ones stay until they reach the head
        self._by_tag: dict[int, Flight] = {}
        self.last_tag = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._by_tag)

    def add(self, flight: Flight) -> int:
        """Register a flight that is sent next; its tag."""
        self.last_tag += 1
        self._by_tag[self.last_tag] = flight
        self._order.append(self.last_tag)
        self.bytes += flight.size
        return self.last_tag

    def take(self, tag: int, multiple: bool) -> list[Flight]:
        """Remove and return what an Ack or Nack of `tag` judges; multiple: all up to it (AMQP basic.ack).

        A tag of 0 with multiple means all that is outstanding. Raises BrokerLost for a tag that was not sent.
        """
        if tag > self.last_tag:
            raise BrokerLost(f'it answered message {tag} where {self.last_tag} were sent')
        taken: list[Flight] = []
        if multiple:
            last = tag or self.last_tag
            while self._order and self._order[0] <= last:
                flight = self._by_tag.pop(self._order.popleft(), None)
                if flight is not None:
                    taken.append(flight)
        else:
            flight = self._by_tag.pop(tag, None)
            if flight is not None:
                taken.append(flight)
            while self._order and self._order[0] not in self._by_tag:
                self._order.popleft()
        for flight in taken:
            self.bytes -= flight.size
        return taken

    def outstanding(self) -> list[Flight]:
        """All flights, in publish order."""
        return [self._by_tag[tag] for tag in self._order if tag in self._by_tag]

    def mark_returned(
        self,
        code: int,
        text: str,
        exchange: str,
        routing_key: str,
        properties: Mapping[str, Any],
        body: bytes,
    ) -> bool:
        """Mark the oldest unmarked flight that equals the returned message; False if none does.

        A Return bears no delivery tag and comes before the Ack of its message, in publish order; messages
        that are equal in all that comes back are interchangeable. The broker strips the BCC header.
        """
        alike = [
            flight
            for flight in self.outstanding()
            if flight.returned is None
            and flight.message.routing_key == routing_key
            and flight.message.exchange == exchange
            and flight.message.body == body
        ]
        wanted = _comparable(properties)
        found = next((one for one in alike if _comparable(one.message.properties) == wanted), None)
        if found is None:  # an interceptor of the broker's has added to it
            message_id = properties.get('message_id')
            found = next(
                (one for one in alike if one.message.properties.get('message_id') == message_id), None
            )
        if found is not None:
            found.returned = (code, text)
        return found is not None


def _comparable(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Properties without what the broker changes on the way: BCC, and headers that are empty without it."""
    given = properties.read() if isinstance(properties, Encoded) else properties
    headers = {name: value for name, value in (given.get('headers') or {}).items() if name != 'BCC'}
    return {**given, 'headers': headers}
