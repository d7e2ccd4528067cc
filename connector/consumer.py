"""The thread of one consumer: connects, subscribes, runs the callback, heals itself, leaves when told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from mikkoo.common import metrics as names
from mikkoo.common import reports
from mikkoo.common.amqp_shared import SharedLink
from mikkoo.common.amqp_values import short_string
from mikkoo.common.backoff import Backoff
from mikkoo.common.errors import BrokerError, BrokerRefused, Stopping
from mikkoo.common.metrics import Metric, Metrics
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import StatsdSettings
from mikkoo.connector.attempts import Attempts, BurialFailed, Callback
from mikkoo.connector.channel import Channel, declare_leniently
from mikkoo.connector.config import broker_settings
from mikkoo.connector.connection import CLOSE_TIMEOUT, Connection, open_link
from mikkoo.connector.errors import translated
from mikkoo.connector.inbox import Deduplicated, Inbox
from mikkoo.connector.subscription import Subscription

LOGGER = logging.getLogger('mikkoo.connector')

MOST_PREFETCH = 65_535
STARVED_AFTER = 300.0  # seconds with nothing but unsettled messages in hand that are no longer healthy

ErrorHandler = Callable[['ConsumerThread', BaseException], object]


def default_error_handler(thread: ConsumerThread, exception: BaseException) -> None:
    """Logs the exception with its traceback."""
    LOGGER.error('consumer %s: %s', thread.name, exception, exc_info=exception)


class ConsumerThread(threading.Thread):
    """Consumes `queue` from `start` to `stop`, through every outage in between.

    `connection`: what `create_mq_connection()` or `get_connection_params()` returned, or an object with the
    names of pika.ConnectionParameters; only its parameters are used, the thread has a link of its own.
    `callback_func(channel, method, properties, body)` runs in this thread, one message at a time.
    `error_func(thread, exception)`: told of the callback's exceptions, and of what is hopeless.
    `auto_ack`: ack after the callback; else the callback settles, now or later. `prefetch`: messages in hand.
    `inbox`: makes what remembers handled messages; see MQConnector.register_consumer for the usual ones.
    `declare(channel, queue)`: makes the queue, and what else has to be there, before each subscription.
    `bury_unreadable` False: a message whose properties cannot be read is the callback's, without any.
    `exception`: why the thread gave up, or None. Raises ConfigurationError, ValueError; does no I/O.
    """

    def __init__(
        self,
        connection: Any,
        queue: str,
        callback_func: Callback,
        error_func: ErrorHandler | None = None,
        auto_ack: bool = True,
        *,
        prefetch: int = 10,
        max_attempts: int = 3,
        dead_letter_queue: str | None = None,
        name: str | None = None,
        inbox: Callable[[Pulse], Inbox] | None = None,
        statsd: StatsdSettings | None = None,
        declare: Callable[[Channel, str], object] = declare_leniently,
        bury_unreadable: bool = True,
    ) -> None:
        super().__init__(name=name or f'consumer {queue}')
        if not isinstance(queue, str) or not queue:
            raise ValueError('a consumer needs the name of a queue')
        if not 1 <= prefetch <= MOST_PREFETCH:
            raise ValueError(f'prefetch is from 1 to {MOST_PREFETCH}, not {prefetch}')
        if max_attempts < 1:
            raise ValueError(f'max_attempts is 1 or more, not {max_attempts}')
        parameters = connection.parameters if isinstance(connection, Connection) else connection
        self._settings = broker_settings(parameters)
        self.queue = queue
        self.callback_func = callback_func
        self.error_func: ErrorHandler = error_func or default_error_handler
        self.auto_ack = auto_ack
        self.prefetch = prefetch
        self.max_attempts = max_attempts
        self.dead_letter_queue = dead_letter_queue or f'{queue}.dead'
        for one in (queue, self.dead_letter_queue):
            short_string(one)  # ValueError: no name for AMQP
        self.exception: BaseException | None = None
        self._given = (parameters, queue, callback_func, error_func, auto_ack)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._known = threading.Event()  # subscribed for the first time, or over
        self._subscribed = False  # ever
        self._subscription: Subscription | None = None
        self._link: SharedLink | None = None  # of the subscription
        self._opening: SharedLink | None = None  # not subscribed yet
        self._pulse: Pulse | None = None
        self._busy, self._idle_since = False, 0.0  # busy: in the callback
        self._burials = Backoff()
        self._attempts: Attempts | None = None
        self._make_inbox = inbox
        self._declare = declare
        self._bury_unreadable = bury_unreadable
        self.outage = 'not subscribed yet'  # why it does not consume at this moment, or ''
        self.inbox: Inbox | None = None  # while it runs
        self._statsd = statsd or StatsdSettings()
        self._metrics: Metrics | None = None

    def renewed(self) -> ConsumerThread:
        """Another thread with the same arguments, not started."""
        return type(self)(
            *self._given,
            **{key: getattr(self, key) for key in ('prefetch', 'max_attempts', 'dead_letter_queue', 'name')},
            inbox=self._make_inbox,
            statsd=self._statsd,
            declare=self._declare,
            bury_unreadable=self._bury_unreadable,
        )

    @property
    def is_consuming(self) -> bool:
        """Subscribed at this moment, and not asked to stop."""
        link = self._link
        return link is not None and link.alive and not self._stopping.is_set()

    @property
    def channel(self) -> Channel | None:
        """What its callbacks are given at this moment; None: it is not subscribed."""
        subscription = self._subscription
        return subscription.channel if subscription is not None else None

    @property
    def is_stopping(self) -> bool:
        """Asked to stop, whether it has ended or not."""
        return self._stopping.is_set()

    @property
    def is_starved(self) -> bool:
        """For STARVED_AFTER all messages it may have are in hand and nobody settles them: no more come."""
        subscription = self._subscription
        full = subscription is not None and not self._busy and len(subscription.hand) >= self.prefetch
        return full and time.monotonic() - self._idle_since >= STARVED_AFTER

    @property
    def waits_for(self) -> str:
        """Why the message in hand cannot be handled now, or '': what remembers messages is out, an alarm."""
        link, attempts = self._link, self._attempts
        if link is not None and link.blocked:
            return f'{link.place}: blocked: {link.blocked}'
        return attempts.waits_for if attempts is not None else ''

    @property
    def counted(self) -> dict[str, int | float]:
        """Its metrics since it started."""
        return self._metrics.totals() if self._metrics is not None else {}

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until it is subscribed for the first time; False: not in time, or it has ended without."""
        self._known.wait(timeout)
        return self._subscribed

    def stop(self) -> None:
        """Ask it to end after the message in hand; never blocks."""
        with self._lock:
            self._stopping.set()
            if self._pulse is not None:
                self._pulse.stop()
            if self._opening is not None:
                self._opening.lose('the consumer was asked to stop')
            if self._subscription is not None:
                self._subscription.wake()

    def join(self, timeout: float | None = None) -> None:
        """Stop it and wait for its end, `timeout` seconds at most; within itself it only asks."""
        self.stop()
        if self.ident is not None and self is not threading.current_thread():
            super().join(timeout)

    def run(self) -> None:
        pulse = Pulse()
        with self._lock:
            self._pulse = pulse
            if self._stopping.is_set():
                pulse.stop()
        self._metrics = Metrics(self._statsd, f'connector.{self.name}')
        try:
            if self._make_inbox is not None:
                self.inbox = self._make_inbox(pulse)
            self._live(pulse)
        except Stopping:
            pass
        except BaseException as error:  # noqa: BLE001 - the callback's SystemExit, or a bug of ours
            self._give_up(error)
        finally:
            with self._lock:
                self._pulse = None
                self._stopping.set()
            if self.inbox is not None:
                self.inbox.close()
            self._metrics.close()
            pulse.close()
            self._known.set()

    def _live(self, pulse: Pulse) -> None:
        """From link to link."""
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                link = open_link(self._settings, pulse, self.name)
                self._serve(link, backoff)
            except BrokerError as error:
                if isinstance(error, BrokerRefused) and not self._subscribed:
                    self._give_up(translated(error))
                    return
                self._count(names.LOST)
                self.outage = str(error)
                delay = (self._burials if isinstance(error, BurialFailed) else backoff).next()
                LOGGER.warning('consumer %s: %s; again in %.1f s', self.name, error, delay)
                pulse.sleep('consumer: waiting to connect again', delay)

    def _serve(self, link: SharedLink, backoff: Backoff) -> None:
        """Consume until asked to stop; whatever happens, nothing of the link is left."""
        try:
            with self._lock:
                self._opening = link
            if self._stopping.is_set():
                return
            subscription = Subscription(link, self.queue, self.prefetch, self._declare)
            subscription.begin()
            with self._lock:
                self._link, self._subscription, self._opening = link, subscription, None
            self._busy, self._subscribed, self.outage = False, True, ''
            self._known.set()
            self._count(names.SUBSCRIBED)
            backoff.reset()
            LOGGER.info('consumer %s: subscribed to %s at %s', self.name, self.queue, link.place)
            try:
                self._consume(link, subscription)
            finally:
                if link.alive:
                    subscription.leave()
                    link.close(CLOSE_TIMEOUT)  # in good order
        finally:
            with self._lock:
                self._link = self._subscription = self._opening = self._attempts = None
            link.dispose()

    def _consume(self, link: SharedLink, subscription: Subscription) -> None:
        callback, hand = self.callback_func, subscription.hand
        if self.inbox is not None:
            callback = Deduplicated(callback, self.inbox, hand, lambda: self._count(names.DUPLICATES))
        attempts = self._attempts = Attempts(
            link,
            subscription.channel,
            hand,
            self.queue,
            callback,
            self._tell,
            self._stopping,
            auto_ack=self.auto_ack,
            max_attempts=self.max_attempts,
            dead_letter_queue=self.dead_letter_queue,
            burials=self._burials,
            count=self._count,
            bury_unreadable=self._bury_unreadable,
        )
        stopping, take, handle = self._stopping.is_set, subscription.next, attempts.handle
        while not stopping():
            delivery = take(self._patience())
            if delivery is not None and not stopping():
                self._busy = True
                handle(delivery)
                self._busy = False
                self._idle_since = time.monotonic()

    def _patience(self) -> float | None:
        """Seconds until metrics have to be sent; None: they have not."""
        assert self._metrics is not None
        if not self._statsd.enabled:
            return None
        self._metrics.flush_due(time.monotonic())
        return max(0.0, self._metrics.due_at() - time.monotonic())

    def _count(self, metric: Metric) -> None:
        assert self._metrics is not None
        self._metrics.count(metric)

    def _tell(self, error: BaseException) -> None:
        try:
            self.error_func(self, error)
        except Exception:
            LOGGER.exception('consumer %s: the error handler failed', self.name)

    def _give_up(self, error: BaseException) -> None:
        self.exception, self.outage = error, str(error)
        LOGGER.error('consumer %s gives up: %s', self.name, error)
        reports.exception(error, queue=self.queue)
        self._tell(error)
