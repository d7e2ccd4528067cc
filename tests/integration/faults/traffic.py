"""Events that are inserted all the time, a consumer that records everything that arrives, and the tally."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pika
import psycopg2
from pika.exceptions import AMQPError
from psycopg2.extensions import connection

from tests.integration.product import Product
from tests.servers.waiting import until

QUEUE = 'events'
EXCHANGE = 'mikkoo'
ARRIVALS = 'arrivals'
INTERVAL = 0.05  # seconds between two transactions of the producer
RETRY = 0.1  # seconds before a lost connection of ours is made again
CONSUMED_AT_ONCE = 100  # messages on their way to the recorder
ACKNOWLEDGED_AT_ONCE = 50
POISON_EVERY = 50  # one event in so many has bad JSON in ev_extra3: a dead letter at once
SETTLED = 180.0  # seconds until all is delivered once the faults are over; a few on an idle machine

PRODUCED = """
    create table produced (n bigserial primary key, at timestamptz not null default clock_timestamp());
    create index on produced (at);
"""
PRODUCE = """
    with made as (insert into produced (n) select default_n from (
        select nextval('produced_n_seq') as default_n from generate_series(1, %s)) as numbers returning n)
    select count(pgq.insert_event(%s, 'good.' || n %% 7, format('{"n": %%s}', n), %s, 'application/json',
        case when n %% %s = 0 then '{"priority": ' end, null)) from made
"""
# The same, with a record each but for the poison, which has no place for a message_id.
PRODUCE_AUDITED = """
    with made as (insert into produced (n) select default_n from (
        select nextval('produced_n_seq') as default_n from generate_series(1, %s)) as numbers returning n),
    given as (select n, 'good.' || n %% 7 as key, format('{"n": %%s}', n) as body, %s as queue,
        %s as exchange, 'application/json' as kind, n %% %s = 0 as poison from made)
    select count(case when poison
        then pgq.insert_event(queue, key, body, exchange, kind, '{"priority": ', null)
        else mikkoo.insert_audited_event(queue, exchange, key, body, kind) end) from given
"""


@dataclass(frozen=True)
class Tally:
    """What was committed, what arrived (n to how many times), and what is a dead letter."""

    inserted: frozenset[int]
    delivered: Counter[int]
    dead: Counter[int]
    message_ids: dict[int, set[str]]

    @property
    def repeats(self) -> int:
        """Messages beyond the first of their event."""
        return sum(self.delivered.values()) - len(self.delivered)

    def check(self, repeats: int, poison_every: int = POISON_EVERY) -> None:
        """Inserted = delivered + dead, the dead are the poison, and no more repeats than this."""
        poison = {n for n in self.inserted if n % poison_every == 0}
        assert self.delivered.keys() | self.dead.keys() == self.inserted, self._differences()
        assert self.dead.keys() == poison, self._differences()
        assert not self.delivered.keys() & self.dead.keys(), self._differences()
        assert self.repeats <= repeats, f'{self.repeats} repeats, not {repeats}: {self}'
        assert all(len(ids) == 1 for ids in self.message_ids.values()), 'a repeat keeps its message_id'

    def _differences(self) -> str:
        gone = sorted(self.inserted - self.delivered.keys() - self.dead.keys())
        extra = sorted((self.delivered.keys() | self.dead.keys()) - self.inserted)
        return f'{self}; lost {gone[:20]} ({len(gone)}), from nowhere {extra[:20]} ({len(extra)})'

    def __str__(self) -> str:
        return (
            f'{len(self.inserted)} inserted, {len(self.delivered)} delivered, {len(self.dead)} dead, '
            f'{self.repeats} repeats'
        )


class Producer:
    """Inserts `rate` events a second, numbered from 1, through every outage of PostgreSQL.

    A number is in the table `produced` by the very transaction that inserts its event: what a lost connection
    left in doubt, the table tells.
    """

    def __init__(
        self, connect: Callable[[], connection], rate: float, poison_every: int, produce: str = PRODUCE
    ) -> None:
        self._connect = connect
        self._produce = produce
        self._arguments = (max(1, round(rate * INTERVAL)), QUEUE, EXCHANGE, poison_every)
        self._going = threading.Event()
        self._over = threading.Event()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._going.set()
        self._thread.start()

    def pause(self) -> None:
        """Return when nothing is being inserted."""
        self._going.clear()
        assert self._idle.wait(SETTLED), 'the producer does not pause'

    def resume(self) -> None:
        self._idle.clear()
        self._going.set()

    def stop(self) -> None:
        self._over.set()
        self._going.set()
        self._thread.join(SETTLED)
        assert not self._thread.is_alive(), 'the producer does not stop'

    def _run(self) -> None:
        opened: connection | None = None
        while not self._over.is_set():
            try:
                opened = opened or self._connect()
                if not self._going.is_set():
                    self._idle.set()
                    self._going.wait()
                    continue
                with opened.cursor() as cursor:
                    cursor.execute(self._produce, self._arguments)
                self._over.wait(INTERVAL)
            except psycopg2.Error:  # PostgreSQL is out or read only, as the test wants it
                opened = None
                self._over.wait(RETRY)
        if opened is not None:
            opened.close()


class Recorder:
    """Consumes a queue on a connection of its own, remade whenever it breaks.

    What RabbitMQ marks as redelivered is a repeat of its own making, since our acknowledgement was lost: it
    counts only if the first delivery never came here.
    """

    def __init__(self, connect: Callable[[], pika.BlockingConnection], queue: str = ARRIVALS) -> None:
        self._connect = connect
        self._queue = queue
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self.arrived: list[tuple[float, int]] = []  # monotonic time, n
        self.message_ids: dict[int, set[str]] = {}
        self._latest = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def counts(self) -> Counter[int]:
        with self._lock:
            return Counter(n for _, n in self.arrived)

    def repeats(self) -> int:
        """Messages beyond the first of their event, so far."""
        with self._lock:
            return len(self.arrived) - len(self.message_ids)

    def latest(self) -> int:
        """The highest n so far; 0: none."""
        return self._latest

    def pause(self) -> None:
        """Consume no more, until `resume`: the queue fills."""
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    def stop(self) -> None:
        self._over.set()
        self._going.set()
        self._thread.join(SETTLED)
        assert not self._thread.is_alive(), 'the recorder does not stop'

    def _run(self) -> None:
        while self._going.wait() and not self._over.is_set():
            try:
                broker = self._connect()
            except (AMQPError, OSError):
                self._over.wait(RETRY)
                continue
            try:
                self._consume(broker)
            except (AMQPError, OSError):
                self._over.wait(RETRY)
            finally:
                if broker.is_open:
                    broker.close()

    def _consume(self, broker: pika.BlockingConnection) -> None:
        channel = broker.channel()
        channel.basic_qos(prefetch_count=CONSUMED_AT_ONCE)
        taken = acknowledged = 0  # delivery tags
        for method, properties, body in channel.consume(self._queue, inactivity_timeout=RETRY):
            if method is not None:
                self._record(json.loads(body)['n'], properties.message_id, method.redelivered)
                taken = method.delivery_tag
            at_once = taken - acknowledged
            if at_once >= ACKNOWLEDGED_AT_ONCE or (at_once and (method is None or self._over.is_set())):
                channel.basic_ack(taken, multiple=True)
                acknowledged = taken
            if self._over.is_set() or not self._going.is_set():
                channel.cancel()
                return

    def _record(self, n: int, message_id: str, redelivered: bool) -> None:
        with self._lock:
            if redelivered and n in self.message_ids:
                return
            self._latest = max(self._latest, n)
            self.arrived.append((time.monotonic(), n))
            self.message_ids.setdefault(n, set()).add(message_id)


class Traffic:
    """Producer and recorder around a mikkood (`product`) with one worker named `events`.

    Made before the daemon starts. `record(name, value)`: keeps a figure in the test's report.
    `audited`: events have records.
    """

    def __init__(
        self,
        product: Product,
        record: Callable[[str, object], None],
        *,
        rate: float = 200.0,
        poison_every: int = POISON_EVERY,
        audited: bool = False,
        **worker: Any,
    ) -> None:
        self.product = product
        self._record = record
        self._poison_every = poison_every
        self._produce = PRODUCE_AUDITED if audited else PRODUCE
        product.create_queue(QUEUE)
        product.arrivals(ARRIVALS, EXCHANGE, 'good.#')
        product.worker(QUEUE, **worker)
        product.sql(PRODUCED)
        self.recorder = Recorder(lambda: product.rabbitmq.connect(product.vhost))
        self.producer = Producer(lambda: product.database.connect(), rate, poison_every, self._produce)

    def flows(self, within: float = 60.0) -> None:
        """Until an event arrives that was inserted after this call."""
        self._until_flows(time.time(), within)

    def flows_again(self, fault: str, over_at: float, within: float) -> float:
        """Seconds from `over_at` (time.time() when the fault ended) until an event inserted later arrives.

        `within`: three times what is promised, in seconds. The figure is kept in the test's report.
        """
        seconds = self._until_flows(over_at, within)
        self._record(f'flows again: {fault}', f'{seconds:.1f} s')
        return seconds

    def burst(self, count: int, queue: str = QUEUE) -> None:
        """Insert so many events in one transaction, beside the producer: one batch holds them all."""
        self.product.sql(self._produce, count, queue, EXCHANGE, self._poison_every)

    def finish(self, repeats: int) -> Tally:
        """Stop inserting, wait until all is settled and consumed, and check the tally; see Tally.check."""
        self.producer.stop()
        self.product.until_settled(SETTLED)
        until(lambda: self.product.queued(ARRIVALS) == 0, SETTLED, 'the recorder has taken everything')
        expected = self._missing()
        until(lambda: not self._missing(), 30, lambda: f'missing: {sorted(expected)[:20]} ({len(expected)})')
        self.recorder.stop()
        tally = self.tally()
        self._record('tally', str(tally))
        tally.check(repeats, self._poison_every)
        return tally

    def tally(self) -> Tally:
        """As of now. Dead letters of other routing keys are the test's own."""
        inserted = frozenset(n for (n,) in self.product.sql('select n from produced'))
        ours = "select payload from mikkoo.dead_letter where starts_with(routing_key, 'good.')"
        dead = Counter(json.loads(payload)['n'] for (payload,) in self.product.sql(ours))
        return Tally(inserted, self.recorder.counts(), dead, dict(self.recorder.message_ids))

    def close(self) -> None:
        self.producer.stop()
        self.recorder.stop()

    def _missing(self) -> set[int]:
        tally = self.tally()
        return set(tally.inserted - tally.delivered.keys() - tally.dead.keys())

    def _until_flows(self, since: float, within: float) -> float:
        def first() -> int:
            rows = self.product.sql(
                'select n from produced where at > to_timestamp(%s) and n %% %s <> 0 order by at limit 1',
                since, self._poison_every,
            )  # fmt: skip
            return int(rows[0][0]) if rows else 0

        wanted = until(first, within, 'an event is inserted')
        until(
            lambda: self.recorder.latest() >= wanted,
            within,
            lambda: f'event {wanted} arrives: {self.tally()}\n{self.product.children()}',
        )
        with self.recorder._lock:
            arrived = min(at for at, n in self.recorder.arrived if n >= wanted)
        return max(0.0, arrived - time.monotonic() + time.time() - since)
