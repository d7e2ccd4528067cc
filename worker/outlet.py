"""The way out: a link to RabbitMQ and the publisher on it, made again after every loss.

Losing the broker is nobody's failure: what was unjudged is sent again over the next link, nothing is counted
against an event, and nobody else sees a BrokerError.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from mikkoo.common import metrics as names
from mikkoo.common.amqp import Link
from mikkoo.common.backoff import Backoff
from mikkoo.common.errors import BrokerError, BrokerLost, Stopping
from mikkoo.common.metrics import Metrics
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import WorkerSettings
from mikkoo.worker.event import Event, Message
from mikkoo.worker.flights import Flight
from mikkoo.worker.publisher import Publisher
from mikkoo.worker.routes import PutBack, Route, Routes
from mikkoo.worker.routes import names as names_of
from mikkoo.worker.suspicion import Suspicion
from mikkoo.worker.verdict import Failure, Kind

LOGGER = logging.getLogger('mikkoo.worker')

CLOSE_TIMEOUT = 1.0  # seconds
COUNTED = (names.PROCESSED, names.RETURNED, names.NACKED, names.REPEATS, names.AMQP_BLOCKED)
NOTHING = (0, 0, 0, 0, 0)


class Outlet:
    """Publishes over whatever link there is. `idle`: called with the seconds without progress, once a second.

    Every call may wait through an outage; Stopping ends it. While it is out the state is 'paused'.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        pulse: Pulse,
        metrics: Metrics,
        idle: Callable[[float], None],
        may_put_back: Callable[[Event], bool],
    ) -> None:
        self._settings = settings
        self._pulse = pulse
        self._metrics = metrics
        self._idle = idle
        self._backoff = Backoff(first=0.5, most=30.0)
        self._short = Backoff(first=1.5, most=1.5)  # while one message is suspected of ending links
        self._suspicion = Suspicion()
        self._routes = Routes(settings.retry_delay, may_put_back)
        self._told_full: list[Route] = []
        self._link: Link | None = None
        self._publisher: Publisher | None = None
        self._unjudged: list[Flight] = []
        self._failures: list[Failure] = []
        self._put_back: list[PutBack] = []
        self._counted = NOTHING
        self._out_since: float | None = None

    def filenos(self) -> list[int]:
        """The descriptor that is readable when the link has news, if there is a link."""
        return [self._link.fileno()] if self._link is not None else []

    @property
    def in_flight(self) -> int:
        return len(self._unjudged) + (self._publisher.in_flight if self._publisher is not None else 0)

    @property
    def blocked(self) -> str | None:
        """Why the broker takes nothing at present (connection.blocked), or None."""
        return self._link.blocked if self._link is not None else None

    @property
    def waiting_nacked(self) -> int:
        return self._publisher.waiting_nacked if self._publisher is not None else 0

    @property
    def full(self) -> str:
        """What the broker rejects and is put back meanwhile; '' if nothing is."""
        routes = self._routes.full(time.monotonic())
        return f'RabbitMQ rejects messages for {names_of(routes)}: a queue is full' if routes else ''

    def open(self) -> None:
        """Return when there is a link, on which all that was unjudged has been sent again."""
        if self._publisher is None:
            self._insist(lambda _: None)
        else:
            self._insist(Publisher.look)

    def publish(self, event: Event, message: Message) -> None:
        """Take one message. EventError: it cannot be encoded, and was not taken."""
        if self._publisher is None:
            self.open()
        assert self._publisher is not None
        try:
            if event.retry is not None and self._suspicion.knows(event.id):
                self._suspicion.accuse()
                self._publisher.publish_alone(event, message)
                self._suspicion.clear()
            else:
                self._publisher.publish(event, message)
        except BrokerError as error:
            # It was taken: whatever was unjudged, this message too, goes over the next link.
            self._sit_out(error)
            self.open()

    def oldest(self) -> int | None:
        """The lowest id of an event that was taken and is not judged; None: all are."""
        unjudged = self._unjudged if self._publisher is None else self._publisher.unjudged()
        return min((flight.event.id for flight in unjudged), default=None)

    def drain(self) -> None:
        """Return when every message that was taken is judged."""
        self._insist(Publisher.drain)

    def take_failures(self) -> list[Failure]:
        """Failures since the last call."""
        self.count()
        failures, self._failures = self._failures, []
        if self._publisher is not None:
            failures += self._publisher.take_failures()
        return failures

    def take_put_back(self) -> list[PutBack]:
        """Events since the last call that go back to PgQ uncounted, as their queue is full."""
        put_back, self._put_back = self._put_back, []
        if self._publisher is not None:
            put_back += self._publisher.take_put_back()
        full = self._routes.full(time.monotonic()) if put_back or self._told_full else []
        new = [route for route in full if route not in self._told_full]
        if new:
            LOGGER.warning('RabbitMQ rejects messages for %s: their events are put back', names_of(new))
        self._told_full = full
        return put_back

    def count(self) -> None:
        """Bring the metrics up to date with the publisher's counters."""
        publisher = self._publisher
        if publisher is None:
            return
        now = (
            publisher.delivered,
            publisher.returned,
            publisher.nacked,
            publisher.repeated,
            publisher.alarms,
        )
        for metric, new, old in zip(COUNTED, now, self._counted, strict=True):
            if new > old:
                self._metrics.count(metric, new - old)
        if now[0] > self._counted[0] and publisher.last_delivered is not None:
            self._metrics.timing(names.LATENCY, time.time() - publisher.last_delivered.time.timestamp())
        self._counted = now

    def close(self) -> None:
        """Leave in order: the broker sees the connection closed, not lost."""
        link, self._link, self._publisher = self._link, None, None
        if link is not None:
            link.close(CLOSE_TIMEOUT)

    def dispose(self) -> None:
        """Drop the link and all that is unjudged: the batch is not ours any more."""
        link, self._link, self._publisher = self._link, None, None
        self._unjudged, self._failures, self._put_back, self._counted = [], [], [], NOTHING
        if link is not None:
            link.dispose()

    def _insist(self, action: Callable[[Publisher], None]) -> None:
        """Do it on the present link, or on the next that lasts long enough."""
        while True:
            try:
                action(self._connected())
                self._out_since = None
                return
            except BrokerError as error:
                self._sit_out(error)

    def _sit_out(self, error: BrokerError) -> None:
        """Give the dead link up, and wait before the next attempt."""
        delay = self._lose(error)
        if self._pulse.stopping:
            raise Stopping('asked to stop during an outage of RabbitMQ') from error
        now = time.monotonic()
        self._out_since = self._out_since or now
        self._idle(now - self._out_since)
        self._pulse.sleep(f'RabbitMQ to come back: {error}', delay)

    def _connected(self) -> Publisher:
        if self._publisher is None:
            self._link = Link.open(self._settings.rabbitmq, self._pulse, properties=self._identity())
            self._publisher = Publisher(self._link, self._pulse, self._settings, self._routes, self._idle)
            self._metrics.count(names.AMQP_CONNECTED)
            LOGGER.info(
                'connected to RabbitMQ at %s:%d, virtual host %s',
                *self._link.node,
                self._settings.rabbitmq.vhost,
            )
        flights, self._unjudged = self._unjudged, []
        self._metrics.count(names.REPEATS, len(flights))
        if self._suspicion.alone:
            if flights:
                self._publisher.resend_alone(flights)
            self._suspicion.clear()
        else:
            self._publisher.resend(flights)
        return self._publisher

    def _identity(self) -> dict[str, str]:
        settings = self._settings
        return {
            'connection_name': f'mikkoo {settings.name}',
            'worker': settings.name,
            'queue': settings.queue,
            'consumer': settings.consumer_name,
        }

    def _lose(self, error: BrokerError) -> float:
        """Save what the dead publisher knows, and dispose of its link; seconds to wait before the next."""
        backoff = self._backoff
        if self._publisher is not None:
            self._publisher.hear_the_last()
            self.count()
            if self._publisher.delivered:
                self._backoff.reset()
            self._failures += self._publisher.take_failures()
            self._put_back += self._publisher.take_put_back()
            self._unjudged = self._publisher.unjudged()
            self._look_for_culprit(error, self._publisher)
            backoff = self._short if self._suspicion.quick else backoff
        self._counted = NOTHING
        if self._link is not None:
            self._metrics.count(names.AMQP_LOST)
            self._link.dispose()
        self._link = self._publisher = None
        delay = backoff.next()
        LOGGER.warning(
            'RabbitMQ is out: %s; %d messages wait; next attempt in %.1f s', error, len(self._unjudged), delay
        )
        self._pulse.state('paused', f'RabbitMQ: {error}')
        return delay

    def _look_for_culprit(self, error: BrokerError, publisher: Publisher) -> None:
        provoked = isinstance(error, BrokerLost) and error.provoked
        convicted = self._suspicion.lost(publisher.loss(provoked))
        for flight in [flight for flight in self._unjudged if flight.event.id == convicted]:
            self._unjudged.remove(flight)
            self._failures.append(
                Failure(flight.event, Kind.KILLS_LINK, 0, f'with it alone in flight: {error}')
            )
