"""The registry of all metrics, their totals since the start, and statsd.

Counting is an addition in a dictionary. Once a second what was added since the last time leaves by UDP, in
packets below 1,432 bytes: counters as their sum, gauges as their last value, and of each timing at most
`SAMPLE` values picked at random, with the sample rate that tells the server how many there were
(`3.2|ms|@0.01`), so that its counts, means and percentiles hold whatever the flood.

Nothing here blocks: the socket does not, and a host is looked up in a thread, again every few minutes.
(More lines than a file should have: a third of it is the registry, which has to be in one place.)
"""

from __future__ import annotations

import logging
import random
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import statsd

from mikkoo.common.errors import MikkooError
from mikkoo.common.lookup import Address, Lookup
from mikkoo.common.settings import StatsdSettings

FLUSH_INTERVAL = 1.0  # seconds
SAMPLE = 10  # values of one timing in one flush
PACKET = 1432  # bytes: what one Ethernet frame carries, with room for tunnels

COUNTER, GAUGE, TIMING = 'counter', 'gauge', 'timing'
WORKER, SUPERVISOR, CONNECTOR, AUDITOR, EVERY = 'worker', 'supervisor', 'connector', 'auditor', 'every'

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured. `process`: who counts it: a worker, an auditor, the supervisor, a service's consumer
    or every process.

    A name with '<call>' in it stands for a family; `Metrics.timing` puts its `call` there.
    """

    name: str
    kind: str
    unit: str
    process: str
    help: str


PROCESSED = Metric('processed', COUNTER, 'events', WORKER, 'confirmed by RabbitMQ')
FAILED = Metric('failed', COUNTER, 'events', WORKER, 'failed attempts: returned, refused or not translatable')
RETRIED = Metric('retried', COUNTER, 'events', WORKER, 'given back to PgQ to come again later')
PUT_BACK = Metric(
    'put_back', COUNTER, 'events', WORKER, 'given back to PgQ uncounted, as a full queue rejects them'
)
DEAD = Metric('dead', COUNTER, 'events', WORKER, 'given up: past `max_failures`, or beyond any cure')
RETURNED = Metric('returned', COUNTER, 'events', WORKER, 'returned by RabbitMQ as unroutable')
NACKED = Metric('nacked', COUNTER, 'events', WORKER, 'nacked by RabbitMQ, for instance by a full queue')
REPEATS = Metric('repeats', COUNTER, 'events', WORKER, 'sent again because their confirm was lost')
BATCHES = Metric('batches', COUNTER, 'batches', WORKER, 'PgQ batches settled')
PENDING_EVENTS = Metric('pending_events', GAUGE, 'events', WORKER, 'waiting in the queue for this consumer')
IN_FLIGHT = Metric('in_flight', GAUGE, 'events', WORKER, 'published and not yet judged')
DEAD_LETTERS = Metric(
    'dead_letters', GAUGE, 'events', WORKER, 'kept in mikkoo.dead_letter for this consumer; 100,000: or more'
)
LAG = Metric('lag', GAUGE, 'seconds', WORKER, "age of the consumer's last finished tick")
LATENCY = Metric('latency', TIMING, 'seconds', WORKER, "from an event's ev_time to its confirm")
PGQ = Metric('pgq.<call>', TIMING, 'seconds', WORKER, 'one call of PgQ or of mikkoo.sql')
AMQP_CONNECTED = Metric('amqp.connected', COUNTER, 'connections', WORKER, 'connections to RabbitMQ opened')
AMQP_LOST = Metric('amqp.lost', COUNTER, 'connections', WORKER, 'connections to RabbitMQ lost')
AMQP_BLOCKED = Metric('amqp.blocked', COUNTER, 'alarms', WORKER, 'times that RabbitMQ blocked the connection')
WARNINGS = Metric(
    'warnings', COUNTER, 'warnings', WORKER, 'parts of an event that were left out of its message'
)
UNKNOWN_PROPERTY = Metric(
    'warnings.unknown_property', COUNTER, 'warnings', WORKER, 'names in ev_extra3 that are no property'
)
HEADERS_NOT_OBJECT = Metric(
    'warnings.headers_not_object', COUNTER, 'warnings', WORKER, 'ev_extra4 that is JSON but no object'
)
CHILDREN_RUNNING = Metric('children.running', GAUGE, 'processes', SUPERVISOR, 'children alive')
CHILDREN_RESTARTS = Metric('children.restarts', COUNTER, 'processes', SUPERVISOR, 'children started again')
RELOADS = Metric('reloads', COUNTER, 'reloads', SUPERVISOR, 'configurations accepted')
RELOAD_FAILURES = Metric('reload_failures', COUNTER, 'reloads', SUPERVISOR, 'configurations refused')
HANDLED = Metric('handled', COUNTER, 'messages', CONNECTOR, 'whose callback returned, and duplicates')
CALLBACK_FAILED = Metric('callback_failed', COUNTER, 'attempts', CONNECTOR, 'callbacks that raised')
DEAD_LETTERED = Metric('dead_lettered', COUNTER, 'messages', CONNECTOR, 'put into the dead-letter queue')
DUPLICATES = Metric('duplicates', COUNTER, 'messages', CONNECTOR, 'dropped: handled before')
SUBSCRIBED = Metric('subscribed', COUNTER, 'connections', CONNECTOR, 'times that the consumer subscribed')
LOST = Metric('lost', COUNTER, 'connections', CONNECTOR, 'connections lost or refused')
AUDIT_RECEIVED = Metric('audit.received', COUNTER, 'messages', AUDITOR, 'whose record was outstanding')
AUDIT_DUPLICATE = Metric('audit.duplicate', COUNTER, 'messages', AUDITOR, 'that arrived again')
AUDIT_DIFFERING = Metric('audit.differing', COUNTER, 'messages', AUDITOR, 'that were not as recorded')
AUDIT_UNKNOWN = Metric('audit.unknown', COUNTER, 'messages', AUDITOR, 'whose message_id has no record')
AUDIT_UNIDENTIFIED = Metric(
    'audit.unidentified', COUNTER, 'messages', AUDITOR, 'without a message_id that is a UUID'
)
AUDIT_EXPIRED = Metric(
    'audit.expired', COUNTER, 'records', AUDITOR, 'removed by age, their message never seen'
)
AUDIT_OUTSTANDING = Metric('audit.outstanding', GAUGE, 'records', AUDITOR, 'whose message has not arrived')
AUDIT_LATE = Metric('audit.late', GAUGE, 'records', AUDITOR, 'of these, older than `grace`')
AUDIT_LATENCY = Metric(
    'audit.latency', TIMING, 'seconds', AUDITOR, "from a record's transaction to its message"
)
LOG_DROPPED = Metric(
    'log.dropped',
    COUNTER,
    'records',
    EVERY,
    'log records lost: no room in the pipe, or a handler that failed',
)

REGISTRY = {value.name: value for value in tuple(globals().values()) if isinstance(value, Metric)}


def named(name: str) -> Metric:
    """The metric of that name. MikkooError if there is none."""
    try:
        return REGISTRY[name]
    except KeyError:
        raise MikkooError(f'no metric is called {name!r}') from None


class Metrics:
    """What one process, or thread of a service, counts. Not for several threads at once.

    `scope`: 'supervisor', 'worker.NAME', 'auditor.NAME' or 'connector.SERVICE.NAME'; in statsd
    `prefix.scope.metric`.

    Starts a thread when it first flushes a statsd host that is a name, so make it after a daemon's forks.
    """

    def __init__(
        self, settings: StatsdSettings, scope: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        process = scope.partition('.')[0]
        self._known = {name: m for name, m in REGISTRY.items() if m.process in (process, EVERY)}
        self._scope = '.'.join(_clean(part) for part in scope.split('.', 1))
        self._clock = clock
        self._counts: dict[str, int] = {name: 0 for name, m in self._known.items() if m.kind == COUNTER}
        self._sent: dict[str, int] = {}
        self._gauges: dict[str, float] = {}
        self._timings: dict[str, _Timing] = {}
        self._settings = settings
        self._statsd = _Statsd(settings, self._scope, clock) if settings.enabled else None
        self._next = clock() + FLUSH_INTERVAL

    def count(self, metric: Metric, n: int = 1) -> None:
        """Add to a counter. MikkooError, here and below: not a metric of this process and kind."""
        try:
            self._counts[metric.name] += n
        except KeyError:
            raise self._unknown(metric, COUNTER) from None

    def gauge(self, metric: Metric, value: float) -> None:
        """Set a gauge, in the metric's unit."""
        if metric.kind != GAUGE or metric.name not in self._known:
            raise self._unknown(metric, GAUGE)
        self._gauges[metric.name] = value

    def timing(self, metric: Metric, seconds: float, call: str = '') -> None:
        """Record a duration in seconds; `call` where the metric's name has '<call>', and only there."""
        name = metric.name.replace('<call>', call) if call else metric.name
        timing = self._timings.get(name)
        if timing is None:
            if (
                metric.kind != TIMING
                or metric.name not in self._known
                or ('<call>' in metric.name) != bool(call)
            ):
                raise self._unknown(metric, TIMING, call)
            timing = self._timings[name] = _Timing()
        timing.add(seconds)

    def totals(self) -> dict[str, int | float]:
        """Since the start, statsd or not: counters, last gauges, `.count`, `.mean`, `.upper` of timings."""
        totals: dict[str, int | float] = {**self._counts, **self._gauges}
        for name, timing in self._timings.items():
            totals[f'{name}.count'] = timing.count
            totals[f'{name}.mean'] = round(timing.total / timing.count, 6)
            totals[f'{name}.upper'] = round(timing.upper, 6)
        return totals

    def due_at(self) -> float:
        """When to flush next, by the clock; infinity while statsd is off."""
        return self._next if self._statsd is not None else float('inf')

    def flush_due(self, now: float) -> bool:
        """Flush if it is time to; whether it was. `now` by the clock."""
        due = now >= self.due_at()
        if due:
            self.flush()
        return due

    def flush(self) -> None:
        """Send what is new. While the host has no address counters go on adding up, and nothing is sent."""
        self._next = self._clock() + FLUSH_INTERVAL
        client = self._statsd and self._statsd.client()
        if client:
            with client.pipeline() as packets:
                self._write(packets)

    def configure(self, settings: StatsdSettings) -> None:
        """Take changed settings at once. What was counted while statsd was off is not sent."""
        if settings == self._settings:
            return
        self.close()
        if not self._settings.enabled:
            self._sent = dict(self._counts)
            for timing in self._timings.values():
                timing.take()
        self._settings = settings
        self._statsd = _Statsd(settings, self._scope, self._clock) if settings.enabled else None
        self._next = self._clock()

    def close(self) -> None:
        """Flush for the last time."""
        if self._statsd is not None:
            self.flush()
            self._statsd.close()
            self._statsd = None

    def _write(self, packets: Any) -> None:
        for name, count in self._counts.items():
            if count != self._sent.get(name, 0):
                packets.incr(name, count - self._sent.get(name, 0))
                self._sent[name] = count
        for name, value in self._gauges.items():
            packets.gauge(name, round(value, 3))
        for name, timing in self._timings.items():
            sample, rate = timing.take()
            for seconds in sample:
                # The client's own `rate` argument would draw lots again.
                packets._send_stat(
                    '.'.join(map(_clean, name.split('.'))), f'{seconds * 1000:.6f}|ms{rate}', 1
                )

    def _unknown(self, metric: Metric, kind: str, call: str = '') -> MikkooError:
        call = f' with call {call!r}' if call else ''
        return MikkooError(f'{metric.name!r}{call} is no {kind} of {self._scope}')


class _Timing:
    """One timing: its numbers since the start, and a sample of those since the last flush."""

    __slots__ = ('count', 'fresh', 'sample', 'total', 'upper')

    def __init__(self) -> None:
        self.count = self.fresh = 0
        self.total = self.upper = 0.0
        self.sample: list[float] = []

    def add(self, seconds: float) -> None:
        self.count += 1
        self.fresh += 1
        self.total += seconds
        self.upper = max(self.upper, seconds)
        if len(self.sample) < SAMPLE:
            self.sample.append(seconds)
        elif (place := int(random.random() * self.fresh)) < SAMPLE:  # every value is as likely to stay
            self.sample[place] = seconds

    def take(self) -> tuple[list[float], str]:
        """The sample and the ending that states its rate, '' for all; begins a new one."""
        sample, rate = self.sample, len(self.sample) / max(1, self.fresh)
        self.sample, self.fresh = [], 0
        return sample, '' if rate == 1 or not sample else f'|@{rate:.9f}'.rstrip('0')


class _Statsd:
    """The client of one host and port, made anew when the host's address changes."""

    def __init__(self, settings: StatsdSettings, scope: str, clock: Callable[[], float]) -> None:
        names = [_clean(part) for part in settings.prefix.split('.') if part]
        self._prefix = '.'.join([*names, scope])
        self._lookup = Lookup('statsd', settings.host, settings.port, clock)
        self._address: Address | None = None
        self._client: _Client | None = None
        self._told = ''

    def client(self) -> _Client | None:
        address = self._lookup.current()
        if address is not None and address != self._address:
            self.close()
            try:
                self._client = _Client(address, self._prefix)
            except OSError as error:  # no descriptor left, no IPv6: tried again at the next flush
                self._tell(f'no socket towards statsd at {address[1]}: {error}')
                return None
            self._address, self._told = address, ''
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = self._address = None

    def _tell(self, failure: str) -> None:
        if failure != self._told:
            logger.warning('%s', failure)
        self._told = failure


class _Client(statsd.StatsClient):  # type: ignore[misc]
    """statsd's UDP client, to a numeric address, with a socket that never blocks."""

    def __init__(self, address: Address, prefix: str) -> None:
        family, host, port = address
        super().__init__(host, port, prefix, maxudpsize=PACKET, ipv6=family == socket.AF_INET6)
        self._sock.setblocking(False)


def _clean(part: str) -> str:
    """One component of a statsd name: what the protocol or Graphite would take apart becomes '_'."""
    return re.sub(r'[^A-Za-z0-9_-]', '_', part)
