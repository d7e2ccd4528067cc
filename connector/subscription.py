"""One consumer on one link: declare, subscribe, take deliveries one after another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import Empty
from typing import NamedTuple

from mikkoo.common import amqp_mailbox as mail
from mikkoo.common import amqp_methods as methods
from mikkoo.common.amqp_fields import FrameError
from mikkoo.common.amqp_mailbox import Cancelled, Delivered, Raw
from mikkoo.common.amqp_shared import ClosedByBroker, SharedLink
from mikkoo.common.errors import BrokerError, BrokerLost, BrokerRefused
from mikkoo.connector.channel import Channel
from mikkoo.connector.errors import ChannelClosed
from mikkoo.connector.hand import Hand
from mikkoo.connector.properties import BasicProperties

LOGGER = logging.getLogger('mikkoo.connector')

ACKED_TOGETHER = 4  # parts of the prefetch: one is on its way while the others are handled
NOT_FOUND = 404  # deleted meanwhile, or its node is down: may come back


class Delivery(NamedTuple):
    """A message for the callback. `fault`: why its properties could not be read, or ''."""

    method: Delivered
    properties: BasicProperties
    body: bytes
    fault: str = ''


class Subscription:
    """Raises BrokerLost, and BrokerRefused where the broker does not let us have the queue."""

    def __init__(
        self, link: SharedLink, queue: str, prefetch: int, declare: Callable[[Channel, str], object]
    ) -> None:
        self._link = link
        self._queue = queue
        self._declare = declare
        try:
            self._number, self._mailbox = link.open_mailbox()
        except ClosedByBroker as error:
            raise _refused(error.closed.code, error.closed.text, queue) from None
        self._flushes = False  # the hand's acks are flushed soon
        self.hand = Hand(self._number, self._send, prefetch // ACKED_TOGETHER, self._may_wait)
        self.channel = Channel(link, self.hand)
        self._prefetch = prefetch

    @property
    def wake(self) -> Callable[[], None]:
        """Ends the present `next`."""
        return self._mailbox.wake

    def begin(self) -> None:
        """Declare the queue and subscribe."""
        try:
            self._declare(self.channel, self._queue)
            for request, expected in (
                (methods.limit(self._number, self._prefetch), methods.LIMITED),
                (methods.consume(self._number, self._queue), methods.CONSUMING),
            ):
                self._link.ask(self._mailbox, request, expected, f'consuming {self._queue!r}')
        except ChannelClosed as error:
            raise _refused(error.code, error.text, self._queue) from None
        except ClosedByBroker as error:
            raise _refused(error.closed.code, error.closed.text, self._queue) from None

    def next(self, timeout: float | None = None) -> Delivery | None:
        """The next delivery, which is in hand now; None: look around, and come again.

        Subscribes again by itself when the broker has cancelled the consumer.
        """
        try:
            item = self._mailbox.deliveries.get(timeout=timeout)
        except Empty:
            return None
        if not self._link.alive:
            self._link.raise_if_lost()
        if type(item) is Raw:
            return self._take(item)
        if self._mailbox.closed is not None:
            raise _refused(self._mailbox.closed.code, self._mailbox.closed.text, self._queue)
        if type(item) is Cancelled:
            self.begin()
        return None

    def leave(self) -> None:
        """Before the link is closed: nothing that was acked comes again for want of a moment."""
        try:
            self.hand.leave()
        except BrokerLost as error:  # and what ended the consumer is what counts
            LOGGER.debug('lost while leaving: %s', error)

    def _send(self, frame: bytes) -> None:
        self._link.send(self._mailbox, frame)

    def _may_wait(self) -> bool:
        """Whether an ack may wait for the next one: a message is there. If it takes long, the link acts."""
        if self._mailbox.deliveries.empty():
            return False
        if not self._link.alive:
            self._link.raise_if_lost()
        if not self._flushes:
            self._flushes = True
            self._link.call_soon(self._flush)
        return True

    def _flush(self) -> None:
        self._flushes = False
        self.hand.flush()

    def _take(self, raw: Raw) -> Delivery:
        try:
            method = mail.delivered(raw.method)
        except FrameError as error:
            self._link.lose(str(error))
            raise BrokerLost(f'{self._link.place}: {error}') from None
        self.hand.take(method.delivery_tag)
        try:
            return Delivery(method, BasicProperties.received(mail.properties(raw.header)), raw.body)
        except FrameError as error:
            return Delivery(method, BasicProperties(), raw.body, f'its properties cannot be read: {error}')


def _refused(code: int, text: str, queue: str) -> BrokerError:
    reason = f'consuming {queue!r}: {code} {text}'
    return BrokerLost(reason) if code == NOT_FOUND else BrokerRefused(reason, code)
