"""The worker's loop: own the queue, fetch a batch, publish it, judge what failed, settle it.

PostgreSQL's outages are met here, RabbitMQ's in `outlet`. Losing PostgreSQL means losing the queue: all that
was not settled is dropped, and PgQ gives the batch again to whoever owns the queue next.
"""

from __future__ import annotations

import logging
import time
from heapq import heappop, heappush

from mikkoo.common import metrics as names
from mikkoo.common.backoff import Backoff
from mikkoo.common.errors import DatabaseError, DatabaseLost, Fenced, Stopping
from mikkoo.common.metrics import Metrics
from mikkoo.common.pgq import FUTURE_TICK, SCHEMA_VERSION, Batch, Consumer, Opening, Pending, Reader
from mikkoo.common.postgres import Backend, Session
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import WorkerSettings
from mikkoo.worker import isolation
from mikkoo.worker.event import Event
from mikkoo.worker.gauges import Gauges
from mikkoo.worker.identity import origin
from mikkoo.worker.outlet import Outlet
from mikkoo.worker.passage import Passage
from mikkoo.worker.settling import Settling
from mikkoo.worker.templates import TemplateTranslator
from mikkoo.worker.translate import DeduplicatingTranslator, Translator

LOGGER = logging.getLogger('mikkoo.worker')

GRACE = 2.0  # seconds that a stop leaves a batch to finish; the supervisor kills after 4.5
STANDBY_INTERVAL = 2.0  # seconds between attempts to become the owner of the queue
READER_PATIENCE = 5.0  # seconds without a confirm after which the reading transaction is ended
OWNER_CHECK = 5.0  # seconds between looks at whether the lock is still ours, in the middle of a batch
WARNING_INTERVAL = 60.0  # seconds between two log lines of one kind about what was ignored in events
MOVED_AT_ONCE = 10_000  # mikkoo.move_retries() moves no more in one call


class Relay:
    """One PgQ queue to one broker, for ever. `retired` set: the stop is for good."""

    def __init__(self, settings: WorkerSettings, pulse: Pulse, metrics: Metrics) -> None:
        self._settings = settings
        self._pulse = pulse
        self._metrics = metrics
        self._backoff = Backoff(first=0.5, most=30.0)
        self._gauges = Gauges(metrics)
        self._outlet = Outlet(settings, pulse, metrics, self._on_idle, self._may_put_back)
        self._control: Session | None = None
        self._consumer: Consumer | None = None
        self._reader: Reader | None = None
        self._former: list[Backend] = []  # of the sessions that were dropped
        self._translate: TemplateTranslator | None = None
        self._passage: Passage | None = None  # of the batch in hand
        self._opened: Batch | None = None  # the last one that this process opened
        self._due: list[float] = []  # when our retries are due, monotonic; a heap
        self._checked_at = float('-inf')
        self._warned_at: dict[str, float] = {}
        self._origin = origin()
        self.retired = False

    def run(self) -> None:
        """Relay until asked to stop."""
        try:
            while True:
                try:
                    self._own()
                    while True:
                        self._relay_next()
                except DatabaseError as error:
                    self._lose(error)
        except Stopping:
            LOGGER.info('stopping')
            self._leave()
        finally:
            self._drop()

    def numbers(self) -> dict[str, float]:
        """The counters of `mikkood status`."""
        self._outlet.count()
        return {**self._metrics.totals(), names.IN_FLIGHT.name: self._outlet.in_flight}

    def measure(self, now: float) -> None:
        """A chore of the pulse: the gauge that nobody else sets."""
        self._metrics.gauge(names.IN_FLIGHT, self._outlet.in_flight)

    def _own(self) -> None:
        """Connect, and return as the queue's owner, registered, with a link to RabbitMQ."""
        settings = self._settings
        name = f'mikkoo {settings.name}'
        self._control = Session.connect(settings.postgres_url, self._pulse, application_name=name)
        self._end_former(self._control)
        consumer = Consumer(self._control, settings.queue, settings.consumer_name, observe=self._observe)
        self._stand_by(consumer)
        consumer.register(settings.create_queue)
        if not consumer.listen():
            LOGGER.info('no tick is announced here (mikkoo.sql); looking every %g s', settings.wait_duration)
        self._reader = Reader(
            Session.connect(settings.postgres_url, self._pulse, application_name=f'{name} reader'),
            observe=self._observe,
        )
        self._consumer = consumer
        self._translate = self._translator()
        heappush(self._due, time.monotonic())  # retries that a former owner left are moved at once
        self._check_schema(consumer)
        LOGGER.info('relaying queue %s as consumer %s', settings.queue, settings.consumer_name)

    def _end_former(self, session: Session) -> None:
        """Of a session that we have lost the server may not know yet: it would go on owning the queue."""
        while self._former:
            former = self._former.pop()
            try:
                if session.terminate(former):
                    LOGGER.info('ended a session of ours that the server still took for alive')
            except DatabaseLost:
                self._former.append(former)
                raise

    def _stand_by(self, consumer: Consumer) -> None:
        while not consumer.own():
            reason = f'queue {self._settings.queue} is owned by backend {consumer.owner()}'
            self._pulse.state('standby', reason)
            self._pulse.sleep(reason, STANDBY_INTERVAL)

    def _translator(self) -> TemplateTranslator:
        assert self._control is not None
        row = self._control.one('select current_database()')
        assert row is not None
        kind = DeduplicatingTranslator if self._settings.deduplication_header else Translator
        plain = kind(
            database=row[0],
            queue=self._settings.queue,
            origin=self._origin,
            persistent=self._settings.persistent,
            username=self._settings.rabbitmq.username,
            on_warning=self._on_warning,
        )
        return TemplateTranslator(plain)

    def _check_schema(self, consumer: Consumer) -> None:
        version = consumer.schema_version()
        if version != SCHEMA_VERSION:
            found = 'is not installed' if version is None else f'has version {version}'
            LOGGER.warning(
                'mikkoo.sql %s in the database of %s; this Mikkoo brings version %d: mikkood sql | psql',
                found,
                self._settings.queue,
                SCHEMA_VERSION,
            )

    def _relay_next(self) -> None:
        """One turn: the next batch, or the wait for one."""
        self._outlet.open()
        self._pulse.state('running', self._outlet.full)
        assert self._consumer is not None
        self._move_retries()
        batch = self._consumer.next_batch()
        pending = self._gauges.look(self._consumer)
        if batch is None:
            if pending is not None and pending.lag < -FUTURE_TICK:
                self._force_tick(self._consumer, pending)
            self._await_tick()
        else:
            with self._pulse.grace(GRACE):
                self._relay(batch)
        self._backoff.reset()  # not earlier: a batch that cannot be settled is repeated

    def _relay(self, batch: Batch) -> None:
        assert self._consumer is not None and self._reader is not None and self._translate is not None
        survived = self._opened == batch
        opening = self._consumer.open(batch, survived)
        self._opened = batch
        way = self._way(opening, survived)
        settling = Settling(self._consumer, batch, self._settings, self._metrics, self._pulse)
        self._passage = Passage(
            batch, self._reader, self._translate, self._outlet, settling, self._pulse, self._check_ownership
        )
        stretch = isolation.stretch(self._settings.confirm_window)
        try:
            self._passage.run(self._settings.window_bytes // 2, opening, way, stretch)
        finally:
            self._passage = None
            for due in settling.dues:
                heappush(self._due, due)
            if settling.buried:
                self._gauges.buried()

    def _way(self, opening: Opening, survived: bool) -> isolation.Way:
        way = isolation.way(opening, survived)
        if way is not isolation.Way.TOGETHER:
            say = 'queue %s: its process ended, %d running without progress: one event at a time for now'
            LOGGER.warning(say, self._settings.queue, isolation.ends(opening))
        return way

    def _await_tick(self) -> None:
        """Until a tick is announced, a retry is due, the link has news, or wait_duration is over."""
        assert self._control is not None
        timeout = self._settings.wait_duration
        if self._due:
            timeout = min(timeout, max(0.0, self._due[0] - time.monotonic()))
        deadline = time.monotonic() + timeout
        # A notification may have come with the answer to a query: the socket does not tell of it.
        while not self._has_ticked() and (left := deadline - time.monotonic()) > 0:
            read = [self._control.fileno(), *self._outlet.filenos()]
            ready, _ = self._pulse.wait(f'a tick of {self._settings.queue}', left, read=read)
            if ready and ready != [self._control.fileno()]:
                self._outlet.open()

    def _has_ticked(self) -> bool:
        return self._consumer is not None and self._consumer.ticked()

    def _move_retries(self) -> None:
        """Bring back the retries that are due; the next tick shows them (PgQ moves none by itself)."""
        assert self._consumer is not None
        if self._due and time.monotonic() >= self._due[0]:
            while self._due and time.monotonic() >= self._due[0]:
                heappop(self._due)
            if self._consumer.move_retries() >= MOVED_AT_ONCE:
                heappush(self._due, time.monotonic())

    def _force_tick(self, consumer: Consumer, pending: Pending) -> None:
        """The ticker, which goes by the clock, would tick again only when that has caught up."""
        say = 'queue %s: the last tick is %.0f s in the future, as the clock was set back: forcing one'
        LOGGER.warning(say, self._settings.queue, -pending.lag)
        consumer.force_tick()

    def _on_idle(self, silent: float) -> None:
        """While nothing is confirmed: show it, hold no snapshot, and see that the queue is still ours."""
        if self._outlet.blocked is not None:
            self._pulse.state('paused', f'RabbitMQ is blocked: {self._outlet.blocked}')
        elif self._outlet.waiting_nacked:
            self._pulse.state(
                'paused', f'RabbitMQ rejects {self._outlet.waiting_nacked} messages: a queue is full'
            )
        if silent >= READER_PATIENCE and self._reader is not None:
            self._reader.pause()
            if self._passage is not None:
                self._passage.acquit()
        self._check_ownership()
        if self._passage is not None:
            self._passage.save_if_due()

    def _may_put_back(self, event: Event) -> bool:
        return self._consumer is not None and self._consumer.may_put_back(event)

    def _check_ownership(self) -> None:
        now = time.monotonic()
        if self._consumer is not None and now >= self._checked_at + OWNER_CHECK:
            self._checked_at = now
            if not self._consumer.owned():
                raise Fenced(f'the lock on queue {self._settings.queue} is not ours any more')

    def _observe(self, call: str, seconds: float) -> None:
        self._metrics.timing(names.PGQ, seconds, call)

    def _on_warning(self, kind: str, text: str) -> None:
        """Counted each time; logged once a minute for each kind, as a million events may bear the same."""
        self._metrics.count(names.WARNINGS)
        self._metrics.count(names.named(f'{names.WARNINGS.name}.{kind}'))
        now = time.monotonic()
        if now >= self._warned_at.get(kind, float('-inf')) + WARNING_INTERVAL:
            self._warned_at[kind] = now
            LOGGER.warning('queue %s: %s', self._settings.queue, text)

    def _lose(self, error: DatabaseError) -> None:
        """PostgreSQL is out, or refuses: drop everything, and wait."""
        self._drop()
        delay = self._backoff.next()
        what = 'PostgreSQL is out' if isinstance(error, DatabaseLost) else 'PostgreSQL refuses'
        LOGGER.warning('%s: %s; next attempt in %.1f s', what, error, delay)
        self._pulse.state('paused', f'PostgreSQL: {error}')
        self._pulse.sleep(f'PostgreSQL to come back: {error}', delay)

    def _leave(self) -> None:
        """The stop's last acts; nothing here may keep the process from ending."""
        self._pulse.beat('leaving')  # hears a `retire` that came right before the TERM
        if self.retired and self._settings.unregister and self._consumer is not None:
            with self._pulse.grace(GRACE + 1.0):
                try:
                    self._consumer.unregister()
                except DatabaseError as error:
                    LOGGER.error('consumer %s stays registered: %s', self._settings.consumer_name, error)
        self._outlet.close()

    def _drop(self) -> None:
        self._outlet.dispose()
        for session in (self._reader, self._control):
            if session is not None:
                session.close()
                self._former += [session.backend] if session.backend is not None else []
        self._control = self._consumer = self._reader = None
