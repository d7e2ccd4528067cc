"""An auditor's messages: the connector's consumer takes them, the auditor's loop settles them."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from typing import Any, NamedTuple

from mikkoo.auditor.compare import identity
from mikkoo.auditor.topology import declaring
from mikkoo.common.audit_settle import Arrival
from mikkoo.common.backoff import Backoff
from mikkoo.common.bell import Bell
from mikkoo.common.settings import AuditorSettings
from mikkoo.connector import ChannelClosed, ConnectionLost, ConsumerThread
from mikkoo.connector.channel import Channel

LOGGER = logging.getLogger('mikkoo.auditor')

MOST_AT_ONCE = 1000  # messages in one batch
CLOSE_TIMEOUT = 1.5  # seconds for the consumer to leave in good order


class Taken(NamedTuple):
    """A message in hand, without its body. `arrival` None: it has no message_id that is a UUID."""

    channel: Channel
    tag: int
    at: float  # monotonic
    exchange: str
    arrival: Arrival | None


class Intake:
    """One consumer at a time. `bell` rings for the first message that waits, and for a full batch.

    Full is half the prefetch: while that is settled the broker sends the other half.
    """

    def __init__(self, settings: AuditorSettings, bell: Bell) -> None:
        self._settings = settings
        self._bell = bell
        self._declare = declaring(settings)
        self._waiting: deque[Taken] = deque()
        self._thread: ConsumerThread | None = None
        self._backoff = Backoff()
        self._retry_at = 0.0
        self._inspection: threading.Thread | None = None
        self._emptied_at: float | None = None  # the last inspection, if no message was left in RabbitMQ
        self.unbound = ''  # why the queue is not bound as configured
        self.full = min(MOST_AT_ONCE, max(1, settings.prefetch // 2))

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first_at(self) -> float:
        """When the message that waits longest came, monotonic; infinity: none waits."""
        return self._waiting[0].at if self._waiting else float('inf')

    @property
    def caught_up(self) -> bool:
        """Whether every message that was in RabbitMQ at the last inspection has been taken."""
        return self._emptied_at is not None and self.first_at > self._emptied_at

    @property
    def outage(self) -> str:
        """Why nothing is consumed at this moment, or ''."""
        thread = self._thread
        if thread is None:
            return 'not consuming'
        return '' if thread.is_consuming else thread.outage or 'connecting to RabbitMQ'

    def open(self) -> None:
        """See that a consumer runs; one that the broker has refused is tried again after a while."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            if thread.is_consuming:
                self._backoff.reset()
            else:
                self._emptied_at = None
            return
        now = time.monotonic()
        if thread is None:
            thread = self._consumer()
        elif not self._retry_at:
            self._retry_at = now + self._backoff.next()
            return
        elif now < self._retry_at:
            return
        else:
            thread = thread.renewed()
        self._thread, self._retry_at = thread, 0.0
        thread.daemon = True
        thread.start()

    def take(self) -> list[Taken]:
        """A batch: the messages that wait, at most `full`."""
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), self.full))]

    def acknowledge(self, batch: list[Taken]) -> None:
        """Tell RabbitMQ that these, the oldest in hand, are settled; with their link lost they come again."""
        last = {id(taken.channel): taken for taken in batch}
        for taken in last.values():
            try:
                taken.channel.basic_ack(taken.tag, multiple=True)
            except ConnectionLost as error:
                LOGGER.info('messages that are settled will come again: %s', error)

    def inspect(self) -> None:
        """Have the queue and its bindings made again, where somebody removed them, and see what waits.

        In a thread of its own: the broker may take half a minute to answer. Again does nothing meanwhile.
        """
        channel = self._thread.channel if self._thread is not None else None
        if channel is not None and (self._inspection is None or not self._inspection.is_alive()):
            self._inspection = threading.Thread(
                target=self._inspect, args=(channel,), name='inspection', daemon=True
            )
            self._inspection.start()

    def close(self) -> None:
        """Consume no more; what is in hand and not acknowledged goes back to the queue."""
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT)
        self._thread = None
        self._waiting.clear()

    def _inspect(self, channel: Channel) -> None:
        queue = self._settings.queue
        try:
            self._declare(channel, queue)
            looked_at = time.monotonic()
            left = channel.queue_declare(queue, passive=True).method.message_count
            self._emptied_at, self.unbound = None if left else looked_at, ''
        except ChannelClosed as error:
            if self.unbound != str(error):
                LOGGER.warning('auditor %s: %s', self._settings.name, error)
            self._emptied_at, self.unbound = None, str(error)
        except ConnectionLost:
            self._emptied_at = None
        self._bell.ring()

    def _consumer(self) -> ConsumerThread:
        settings = self._settings
        return ConsumerThread(
            settings.rabbitmq,
            settings.queue,
            self._receive,
            auto_ack=False,
            prefetch=settings.prefetch,
            name=f'auditor {settings.name}',
            declare=self._declare,
            bury_unreadable=False,
        )

    def _receive(self, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        """The consumer's callback, in its thread."""
        now = time.monotonic()
        message_id = identity(properties.message_id)
        arrival = None
        if message_id is not None:
            arrival = Arrival(
                message_id,
                method.exchange,
                method.routing_key,
                properties.content_type or '',
                hashlib.sha256(body).digest(),
                len(body),
                now,
            )
        self._waiting.append(Taken(channel, method.delivery_tag, now, method.exchange, arrival))
        if len(self._waiting) in (1, self.full):
            self._bell.ring()
