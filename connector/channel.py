"""What a callback is given as `channel`: pika's names, from any thread, every publication confirmed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mikkoo.common import amqp_methods as methods
from mikkoo.common.amqp_frames import Reply
from mikkoo.common.amqp_shared import SharedLink
from mikkoo.common.errors import BrokerError
from mikkoo.connector.calls import Calls, encoded
from mikkoo.connector.errors import ChannelClosed, translated
from mikkoo.connector.hand import Hand

LOGGER = logging.getLogger('mikkoo.connector')

Arguments = Mapping[str, Any] | None


class DeclareOk(NamedTuple):
    """What `queue_declare` tells of the queue."""

    queue: str = ''
    message_count: int = 0
    consumer_count: int = 0


class CountOk(NamedTuple):
    """What `queue_delete` and `queue_purge` tell: the messages that went."""

    message_count: int = 0


class Nothing(NamedTuple):
    """The answer to a call that tells nothing."""


class Result(NamedTuple):
    """The result of a call, as pika's: what the broker said is in `method`."""

    method: Any


class Channel:
    """Two AMQP channels: the deliveries' of `hand`, if there is one, and another for everything else.

    Every method may be called from any thread. Raises ConnectionLost, ChannelClosed (the broker refused; the
    next call works again) and, for what AMQP cannot carry, ValueError or TypeError.
    """

    def __init__(self, link: SharedLink, hand: Hand | None = None) -> None:
        self._link = link
        self._hand = hand
        self._calls = Calls(link)
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether calls can be made: the link is there, and nobody has closed this channel."""
        return self._link.alive and not self._closed

    @property
    def is_closed(self) -> bool:
        """The opposite."""
        return not self.is_open

    def basic_ack(self, delivery_tag: int = 0, multiple: bool = False) -> None:
        """Done. `multiple`: all in hand up to this tag, 0 for all. What is settled already is left alone."""
        try:
            if self._hand is None or not self._hand.ack(delivery_tag, multiple):
                LOGGER.debug('delivery tag %s: nothing in hand to ack', delivery_tag)
        except BrokerError as error:
            raise translated(error) from None

    def basic_nack(self, delivery_tag: int = 0, multiple: bool = False, requeue: bool = True) -> None:
        """Not done: back to the queue, or (`requeue` False) dropped, or dead-lettered by a policy."""
        try:
            if self._hand is None or not self._hand.nack(delivery_tag, multiple, requeue):
                LOGGER.debug('delivery tag %s: nothing in hand to nack', delivery_tag)
        except BrokerError as error:
            raise translated(error) from None

    def basic_reject(self, delivery_tag: int = 0, requeue: bool = True) -> None:
        """The same for one message."""
        self.basic_nack(delivery_tag, False, requeue)

    def basic_publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes | str,
        properties: object = None,
        mandatory: bool = False,
    ) -> None:
        """Return when the broker has taken the message. `properties`: any object with pika's names.

        Raises PublishFailed (refused by a full queue), Unroutable (`mandatory`, and no queue wanted it).
        """
        self._calls.publish(encoded(exchange, routing_key, body, properties), mandatory)

    def publish_many(self, messages: Iterable[tuple[Any, ...]], mandatory: bool = False) -> int:
        """The same for many in flight at once: (exchange, routing_key, body[, properties]); how many.

        Returns when all are confirmed. PublishFailed tells how many were not; the others are.
        """
        return self._calls.publish_many((_publication(*message) for message in messages), mandatory)

    def queue_declare(
        self,
        queue: str,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Arguments = None,
    ) -> Result:
        """Make a queue, or (`passive`) ask for one. The result's `.method` has queue and counts."""
        given = (queue, passive, durable, exclusive, auto_delete, arguments)
        fields = self._calls.ask(
            lambda number: methods.queue_declare(number, *given), methods.QUEUE_DECLARED, f'queue {queue!r}'
        )
        name = fields.short_text()
        return Result(DeclareOk(name, fields.number(), fields.number()))

    def queue_bind(
        self, queue: str, exchange: str, routing_key: str | None = None, arguments: Arguments = None
    ) -> Result:
        """Bind a queue; the key is the queue's name where it is None, as with pika."""
        key = queue if routing_key is None else routing_key
        return self._tell(
            lambda number: methods.queue_bind(number, queue, exchange, key, arguments),
            methods.QUEUE_BOUND,
            f'binding {queue!r} to {exchange!r}',
        )

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str | None = None,
        arguments: Arguments = None,
    ) -> Result:
        """Undo `queue_bind`; there need be no such binding."""
        key = queue if routing_key is None else routing_key
        return self._tell(
            lambda number: methods.queue_unbind(number, queue, exchange or '', key, arguments),
            methods.QUEUE_UNBOUND,
            f'unbinding {queue!r} from {exchange!r}',
        )

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False) -> Result:
        """Delete a queue, if there is one; the result's `.method.message_count` is how many messages went."""
        fields = self._calls.ask(
            lambda number: methods.queue_delete(number, queue, if_unused, if_empty),
            methods.QUEUE_DELETED,
            f'deleting {queue!r}',
        )
        return Result(CountOk(fields.number()))

    def queue_purge(self, queue: str) -> Result:
        """Drop the messages that wait in a queue; the result's `.method.message_count` is how many."""
        fields = self._calls.ask(
            lambda number: methods.queue_purge(number, queue), methods.QUEUE_PURGED, f'purging {queue!r}'
        )
        return Result(CountOk(fields.number()))

    def exchange_declare(
        self,
        exchange: str,
        exchange_type: str = 'direct',
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: Arguments = None,
    ) -> Result:
        """Make an exchange of a type that the broker has, or (`passive`) ask for one."""
        kind = str(getattr(exchange_type, 'value', exchange_type))  # pika's ExchangeType is an enumeration
        given = (exchange, kind, passive, durable, auto_delete, internal, arguments)
        return self._tell(
            lambda number: methods.exchange_declare(number, *given),
            methods.EXCHANGE_DECLARED,
            f'exchange {exchange!r}',
        )

    def exchange_delete(self, exchange: str, if_unused: bool = False) -> Result:
        """Delete an exchange, if there is one."""
        return self._tell(
            lambda number: methods.exchange_delete(number, exchange, if_unused),
            methods.EXCHANGE_DELETED,
            f'deleting exchange {exchange!r}',
        )

    def close(self) -> None:
        """Close the channel of calls. A callback's channel stays of use: the next call opens another."""
        self._closed = self._hand is None
        self._calls.close()

    def _tell(self, make: Callable[[int], bytes], expected: Reply, what: str) -> Result:
        self._calls.ask(make, expected, what)
        return Result(Nothing())


def declare_leniently(channel: Channel, queue: str, durable: bool = False) -> None:
    """Declare a queue plainly; one that exists with other arguments, or that we may not make, as it is.

    Raises ChannelClosed: it is not there, or nobody else's to use.
    """
    try:
        channel.queue_declare(queue, durable=durable)
    except ChannelClosed as refused:
        if refused.code not in (403, 406):
            raise
        try:
            channel.queue_declare(queue, passive=True)
        except ChannelClosed as error:
            raise (refused if error.code == 404 else error) from None


def _publication(
    exchange: str, routing_key: str, body: bytes | str, properties: object = None
) -> tuple[str, str, bytes, bytes]:
    return encoded(exchange, routing_key, body, properties)
