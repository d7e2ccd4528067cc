"""What becomes of one message: the callback, its attempts in place, the dead-letter queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from mikkoo.common import metrics as names
from mikkoo.common import reports
from mikkoo.common.amqp_shared import SharedLink
from mikkoo.common.backoff import Backoff
from mikkoo.common.errors import BrokerLost, MikkooError, Stopping
from mikkoo.common.metrics import Metric
from mikkoo.connector.channel import Channel, declare_leniently
from mikkoo.connector.errors import ConnectionLost, ConnectorError
from mikkoo.connector.hand import Hand
from mikkoo.connector.properties import NAMES, BasicProperties
from mikkoo.connector.subscription import Delivery

LOGGER = logging.getLogger('mikkoo.connector')

FIRST_DELAY = 0.1  # seconds before the second attempt; doubles
LONGEST_DELAY = 30.0  # seconds
LONGEST_ERROR = 1000  # characters of x-error
PERSISTENT = 2
ROUTING_HEADERS = ('CC', 'BCC')  # RabbitMQ would send copies once more

Callback = Callable[[Any, Any, Any, bytes], object]


class Unavailable(MikkooError):
    """What remembers handled messages cannot be asked: no failure of the callback; wait, and try again."""


class BurialFailed(BrokerLost):
    """The dead-letter queue took it not, so the link was dropped."""


class Attempts:
    """Handles deliveries of one link. `failed`: told of each exception of the callback."""

    def __init__(
        self,
        link: SharedLink,
        channel: Channel,
        hand: Hand,
        queue: str,
        callback: Callback,
        failed: Callable[[Exception], None],
        stopping: threading.Event,
        *,
        auto_ack: bool,
        max_attempts: int,
        dead_letter_queue: str,
        burials: Backoff,
        count: Callable[[Metric], object],
        bury_unreadable: bool = True,
    ) -> None:
        self._link = link
        self._channel = channel
        self._hand = hand
        self._queue = queue
        self._callback = callback
        self._failed = failed
        self._stopping = stopping
        self._auto_ack = auto_ack
        self._most = max_attempts
        self._dead_letter_queue = dead_letter_queue
        self._burials = burials
        self._count = count
        self._bury_unreadable = bury_unreadable
        self._declared = False
        self._outage = Backoff()
        self.waits_for = ''  # what keeps the message in hand from being handled

    def handle(self, delivery: Delivery) -> None:
        """Return when the message is settled, or is left in hand because that is asked for.

        Raises BrokerLost, ConnectionLost: the link is gone, the message comes back.
        """
        method = delivery.method
        if delivery.fault and self._bury_unreadable:
            self._bury(delivery, ValueError(delivery.fault), 0)
            return
        attempts = 0
        while True:
            try:
                self._callback(self._channel, method, delivery.properties, delivery.body)
            except Unavailable as error:
                if not self._sit_out(error):
                    return
            except Stopping:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a service may raise
                attempts += 1
                if not self._another(delivery, error, attempts):
                    return
            else:
                self.waits_for = ''
                self._outage.reset()
                if self._auto_ack and self._hand.holds(method.delivery_tag):
                    self._hand.ack(method.delivery_tag)
                self._count(names.HANDLED)
                return

    def _sit_out(self, error: Unavailable) -> bool:
        """Whether to try again, when the delay is over; else it goes back to the queue."""
        self.waits_for = str(error)
        delay = self._outage.next()
        LOGGER.warning('queue %s: %s; again in %.1f s', self._queue, error, delay)
        if self._stopping.wait(delay):
            return False
        self._link.raise_if_lost()
        return True

    def _another(self, delivery: Delivery, error: Exception, attempt: int) -> bool:
        """After a failure: whether to try again, when the delay is over."""
        if caused_by(error, ConnectionLost):
            self._link.raise_if_lost()
        self._count(names.CALLBACK_FAILED)
        self._failed(error)
        self._link.raise_if_lost()
        if not self._hand.holds(delivery.method.delivery_tag):
            return False
        if attempt == self._most:
            self._bury(delivery, error, attempt)
            return False
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (attempt - 1))
        if self._stopping.wait(delay):
            return False  # it goes back to the queue
        self._link.raise_if_lost()
        return True

    def _bury(self, delivery: Delivery, error: Exception, attempts: int) -> None:
        """To the dead-letter queue, confirmed, and then acked. If that fails the link goes: it comes back."""
        target = self._dead_letter_queue
        LOGGER.error(
            'queue %s: message %s goes to %s after %d attempts: %s',
            self._queue, delivery.properties.message_id or delivery.method.delivery_tag, target, attempts,
            _text(error),
        )  # fmt: skip
        reports.exception(error, queue=self._queue, attempts=attempts, dead_letter_queue=target)
        try:
            if not self._declared:
                declare_leniently(self._channel, target, durable=True)
                self._declared = True
            self._publish_dead(delivery, error, attempts)
        except ConnectorError as failure:
            self._link.raise_if_lost()
            reason = f'the message could not be put into {target!r}: {failure}'
            self._link.lose(reason)
            raise BurialFailed(reason) from None
        self._burials.reset()
        self._count(names.DEAD_LETTERED)
        self._hand.ack(delivery.method.delivery_tag)

    def _publish_dead(self, delivery: Delivery, error: Exception, attempts: int) -> None:
        """With all its properties, or those that can be sent: others may send what AMQP does not allow us."""
        last = BasicProperties()
        for kept in (delivery.properties, _copy(delivery.properties, headers=None), last):
            properties = burial_properties(kept, error, self._queue, attempts)
            try:
                self._channel.basic_publish(
                    '', self._dead_letter_queue, delivery.body, properties, mandatory=True
                )
                return
            except ValueError as failure:
                LOGGER.warning('queue %s: a dead letter loses properties: %s', self._queue, failure)
                if kept is last:
                    raise


def _copy(properties: BasicProperties, **changed: Any) -> BasicProperties:
    return BasicProperties(**{**{name: getattr(properties, name) for name in NAMES}, **changed})


def burial_properties(
    properties: BasicProperties, error: Exception, queue: str, attempts: int
) -> BasicProperties:
    """The message's own, persistent, without what would eat, refuse or multiply it; and why it died."""
    made = _copy(properties, expiration=None, user_id=None, delivery_mode=PERSISTENT)
    headers = dict(made.headers or {})
    for name in ROUTING_HEADERS:
        if name in headers:
            headers[f'x-original-{name.lower()}'] = headers.pop(name)
    made.headers = {**headers, 'x-error': _text(error), 'x-original-queue': queue, 'x-attempts': attempts}
    return made


def _text(error: BaseException) -> str:
    text = f'{type(error).__name__}: {error}'[:LONGEST_ERROR]
    return text.encode(errors='backslashreplace').decode()


def caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether it is of that kind, or was raised because of, or while handling, one that is."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, kind):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
