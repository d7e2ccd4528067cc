"""PgQ's and mikkoo.sql's calls: one consumer of one queue, its batches and how they are settled.

`Reader` reads a batch over a second session; what mikkoo.sql keeps is in `pgq_keep`, what `mikkood check`
asks in `pgq_facts`. A few lines more than other files: the SQL stands beside the calls that use it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mikkoo.common.errors import DatabaseError, Fenced
from mikkoo.common.pgq_facts import (
    FUTURE_TICK,
    PL_ONLY,
    RETRYING,
    SCHEMA_VERSION,
    Ahead,
    ahead,
    lacking,
    last_tick_age,
    may_move_retries,
    mikkoo_schema_version,
    missing_privileges,
    nearest_queue,
    no_such_queue,
    pgq_version,
    queue_exists,
    raise_if_read_only,
)
from mikkoo.common.pgq_keep import FORGET, Dead, Keeper, Opening, Stage
from mikkoo.common.pgq_reader import COLUMNS, Batch, Observe, Reader, Row, timed, unobserved
from mikkoo.common.postgres import Session

__all__ = [
    'FUTURE_TICK',
    'PL_ONLY',
    'SCHEMA_VERSION',
    'Ahead',
    'Batch',
    'Consumer',
    'Dead',
    'Observe',
    'Opening',
    'Pending',
    'Reader',
    'Retry',
    'Row',
    'Stage',
    'ahead',
    'last_tick_age',
    'mikkoo_schema_version',
    'missing_privileges',
    'nearest_queue',
    'pgq_version',
    'queue_exists',
]

CHANNEL = 'mikkoo_tick'
RAW_LIMIT = 1024 * 1024  # bytes of text; a larger event is copied within the server instead
RAW_AT_ONCE = 100  # events in one statement
UNIQUE_VIOLATION = '23505'
REGISTER_ATTEMPTS = 3  # two first registrations of one consumer name at once: UniqueViolation for one

LOCK = 'select pg_try_advisory_lock(%s)'
LOCK_HOLDERS = """
    from pg_locks where locktype = 'advisory' and granted and objsubid = 1
        and database = (select oid from pg_database where datname = current_database())
        and classid = (%s::bigint >> 32 & 4294967295)::oid and objid = (%s::bigint & 4294967295)::oid
"""
OWNER = f'select pid {LOCK_HOLDERS}'
OWNED = f'select exists (select {LOCK_HOLDERS} and pid = pg_backend_pid())'
OPEN = 'select exists (select from pgq.subscription where sub_batch = %s)'
CREATE_QUEUE = 'select pgq.create_queue(%s)'
REGISTER = 'select pgq.register_consumer(%s, %s)'
UNREGISTER = 'select pgq.unregister_consumer(%s, %s)'
TRIGGERED = """
    select exists (select from pg_trigger
        where tgrelid = to_regclass('pgq.tick') and tgname = 'mikkoo_tick' and tgenabled in ('O', 'A'))
"""
# Ticks are merged by asking for a number of events: never for more than PgQ counts, or it would wait for
# them. It counts by a sequence, which misses what committed late: where it counts none, take the next tick.
NEXT_BATCH = """
    select batch_id, cur_tick_id, prev_tick_id, cur_tick_time, prev_tick_time
    from pgq.next_batch_custom(%s, %s, null, (
        select nullif(greatest(least(pending_events, %s), 0), 0)::int4 from pgq.get_consumer_info(%s, %s)
    ), null)
"""
RETRY_RAW = """
    select count(pgq.event_retry_raw(%s, %s, clock_timestamp() + due * interval '1 second',
        id, time, retry, type, data, extra1, extra2, extra3, extra4))
    from unnest(%s::float8[], %s::int8[], %s::timestamptz[], %s::int4[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::text[], %s::text[])
        as e (due, id, time, retry, type, data, extra1, extra2, extra3, extra4)
"""
RETRY = "select pgq.event_retry(%s, %s, clock_timestamp() + %s * interval '1 second')"
FINISH = 'select pgq.finish_batch(%s)'
FORCE_TICK = 'select pgq.force_tick(%s)'
FINISH_KEPT = f'with forgotten as ({FORGET}) {FINISH}'
MOVE_RETRIES = 'select mikkoo.move_retries()'
PENDING = """
    select pending_events, extract(epoch from lag)::float8, extract(epoch from last_seen)::float8,
        current_batch
    from pgq.get_consumer_info(%s, %s)
"""


@dataclass(frozen=True, slots=True)
class Retry:
    """An event for later, as Reader gave it, and in how many seconds it is due again.

    `counted`: its attempt counts (ev_retry), as it failed; else it comes as it is, see `may_put_back`.
    """

    row: Row
    at: float
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Pending:
    """How far behind a consumer is, as PgQ counts: by a sequence, gaps and all, up to the last tick.

    `lag`: seconds since the last tick that was finished; `seen`: since the consumer last did anything.
    """

    events: int
    lag: float
    seen: float
    batch: int | None


class Consumer:
    """The consumer `name` of `queue`, over the control session."""

    def __init__(self, session: Session, queue: str, name: str, observe: Observe = unobserved) -> None:
        self._session = session
        self.queue = queue
        self.name = name
        self._observe = observe
        self._key = lock_key(queue, name)
        self.keeper = Keeper(session, queue, name)
        self.keeps = False  # whether mikkoo.sql keeps dead letters and progress here; `register` finds out
        self._raw = False  # whether event_retry_raw is granted; `register` finds out

    def own(self) -> bool:
        """Become the one process that relays for this consumer: a session's advisory lock. Does not wait."""
        if self.owned():
            return True
        [(locked,)] = self._session.fetch(LOCK, (self._key,), waits='advisory lock')
        return bool(locked)

    def owned(self) -> bool:
        """Whether this session holds the lock now."""
        [(owned,)] = self._session.fetch(OWNED, (self._key, self._key), waits='advisory lock')
        return bool(owned)

    def owner(self) -> int | None:
        """The server process that holds the lock, of this session or another."""
        row = self._session.one(OWNER, (self._key, self._key), waits='advisory lock')
        return None if row is None else int(row[0])

    def register(self, create_queue: bool = False) -> None:
        """Register the consumer, from the last tick on, if it is not yet; the queue too with `create_queue`.

        Raises DatabaseError that names the nearest queue if there is none of this name; that says why nothing
        can be written; or that says that PgQ's state is of another cluster.
        """
        raise_if_read_only(self._session)
        if not queue_exists(self._session, self.queue):
            if not create_queue:
                raise no_such_queue(self._session, self.queue)
            self._call('create_queue', CREATE_QUEUE, self.queue)
        if (found := ahead(self._session, self.queue)) is not None:
            raise DatabaseError(
                f'{self._session.where}: {found}: see "After a restore" in docs/operations.md'
            )
        self.keeps = self.keeper.available()
        self._raw = not lacking(self._session, RETRYING)
        for attempt in range(REGISTER_ATTEMPTS):
            try:
                self._call('register_consumer', REGISTER, self.queue, self.name)
                return
            except DatabaseError as error:
                if error.sqlstate != UNIQUE_VIOLATION or attempt + 1 == REGISTER_ATTEMPTS:
                    raise

    def unregister(self) -> int:
        """Unregister; 1, or 0 if it was not. Events inserted from now on are lost to this consumer."""
        [(count,)] = self._call('unregister_consumer', UNREGISTER, self.queue, self.name)
        return int(count)

    def listen(self) -> bool:
        """LISTEN for ticks, if mikkoo.sql's trigger announces them; else False: ask now and then."""
        [(triggered,)] = self._session.fetch(TRIGGERED, waits='listen')
        if triggered:
            self._session.execute(f'listen {CHANNEL}', waits='listen')
        return bool(triggered)

    def ticked(self) -> bool:
        """Whether a tick of this queue was announced since the last call. Does not wait."""
        return (CHANNEL, self.queue) in self._session.notifications()

    def next_batch(self, most: int = 20_000) -> Batch | None:
        """Open the next batch, of all ticks up to about `most` events, or return the one that is open.

        None: there is no new tick.
        """
        args = (self.queue, self.name, most, self.queue, self.name)
        [(number, tick, previous, at, previous_at)] = self._call('next_batch', NEXT_BATCH, *args)
        return None if number is None else Batch(number, tick, previous, at, previous_at)

    def settle(
        self,
        batch: Batch,
        retries: Sequence[Retry] = (),
        dead: Sequence[Dead] = (),
        recovered: Sequence[int] = (),
    ) -> None:
        """Retries, dead letters and the end of the batch, in one transaction.

        `recovered`: ids of events that had failed before and are delivered. Raises Fenced, and changes
        nothing, if the lock or the batch is no longer ours; DatabaseError for dead letters nothing can keep.
        """
        with timed(self._observe, 'settle'), self._session.transaction():
            self._fence(batch)
            self._judge(batch, retries, dead, recovered)
            sql, place = (FINISH_KEPT, (self.queue, self.name)) if self.keeps else (FINISH, ())
            if self._call('finish_batch', sql, *place, batch.id) != [(1,)]:
                raise _finished(batch)

    def save(
        self,
        batch: Batch,
        last_event_id: int | None,
        retries: Sequence[Retry] = (),
        dead: Sequence[Dead] = (),
        recovered: Sequence[int] = (),
        stage: Stage = Stage.TOGETHER,
    ) -> None:
        """As `settle`, in the middle of the batch: every event up to `last_event_id` is judged.

        None: nothing is known of any. With a mikkoo.sql that keeps nothing a crash repeats the batch.
        """
        with timed(self._observe, 'save'), self._session.transaction():
            self._fence(batch)
            self._judge(batch, retries, dead, recovered)
            if self.keeps:
                self.keeper.save(batch, last_event_id, stage)

    def open(self, batch: Batch, again: bool = False) -> Opening:
        """What a former owner, or we, saved of this batch. To be called before anything of it is read.

        It counts the processes that did; `again`: this process was the last to open it, and lives.
        """
        return self.keeper.open(batch, again) if self.keeps else Opening()

    def bury_next(
        self, batch: Batch, after: int | None, ends: int, code: str, reason: str
    ) -> tuple[int, int] | None:
        """The first event behind `after` becomes a dead letter, and progress is behind it: one transaction.

        For an event that cannot be read: see `Keeper.bury_next`. Raises Fenced, as `settle` does.
        """
        with timed(self._observe, 'save'), self._session.transaction():
            self._fence(batch)
            buried = self.keeper.bury_next(batch, after, ends, code, reason)
            self.keeper.save(batch, buried[0] if buried else after, Stage.TOGETHER)
        return buried

    def may_put_back(self, row: Row) -> bool:
        """Whether this event can be given back uncounted: only event_retry_raw does that.

        `register` has found out: a question here could be interrupted, with messages in nobody's hands.
        """
        return self._raw and _weight(row) <= RAW_LIMIT

    def move_retries(self) -> int:
        """Put retries that are due back into their queues, where mikkoo.sql is installed; how many."""
        if not may_move_retries(self._session):
            return 0
        [(count,)] = self._call('move_retries', MOVE_RETRIES)
        return int(count)

    def pending(self) -> Pending:
        """How far behind this consumer is. DatabaseError if it is not registered."""
        rows = self._call('get_consumer_info', PENDING, self.queue, self.name)
        if not rows:
            raise DatabaseError(
                f'consumer "{self.name}" is not registered with queue "{self.queue}"', '42704'
            )
        events, lag, seen, batch = rows[0]
        return Pending(events or 0, lag or 0.0, seen or 0.0, batch)

    def force_tick(self) -> None:
        """Have the ticker tick at its next look, whatever the time of the last tick."""
        self._call('force_tick', FORCE_TICK, self.queue)

    def dead_letters(self) -> int | None:
        """As `Keeper.count_dead`; None: none are kept here."""
        return self.keeper.count_dead() if self.keeps else None

    def schema_version(self) -> int | None:
        """As `mikkoo_schema_version`."""
        return mikkoo_schema_version(self._session)

    def _fence(self, batch: Batch) -> None:
        if not self.owned():
            raise Fenced(f'another process owns consumer "{self.name}" of queue "{self.queue}"')
        if self._session.one(OPEN, (batch.id,), waits='settle') != (True,):
            raise _finished(batch)

    def _judge(
        self, batch: Batch, retries: Sequence[Retry], dead: Sequence[Dead], recovered: Sequence[int]
    ) -> None:
        if retries:
            self._retry(batch, retries)
        if self.keeps:
            self.keeper.failed_first([one.row for one in retries if one.counted and not one.row[3]])
            self.keeper.bury(batch, dead, [_weight(one.row) > RAW_LIMIT for one in dead])
            self.keeper.recovered(recovered)
        elif dead:
            raise DatabaseError(f'queue "{self.queue}": nothing here keeps dead letters', '42P01')

    def _retry(self, batch: Batch, retries: Sequence[Retry]) -> None:
        raw = [retry for retry in retries if self._raw and _weight(retry.row) <= RAW_LIMIT]
        copied = [retry for retry in retries if not self._raw or _weight(retry.row) > RAW_LIMIT]
        for start in range(0, len(raw), RAW_AT_ONCE):
            due = raw[start : start + RAW_AT_ONCE]
            if not self._retry_raw(due):
                for retry in due:
                    self._retry_raw([retry])  # False: it is in the retry queue already
        for retry in copied:
            self._call('event_retry', RETRY, batch.id, retry.row[0], retry.at)

    def _retry_raw(self, retries: Sequence[Retry]) -> bool:
        """False, and nothing is done: one of them is in the retry queue already."""
        columns = zip(*((retry.at, *_again(retry)) for retry in retries), strict=True)
        try:
            with self._session.savepoint():
                self._call('event_retry', RETRY_RAW, self.queue, self.name, *map(list, columns))
        except DatabaseError as error:
            if error.sqlstate != UNIQUE_VIOLATION:
                raise
            return False
        return True

    def _call(self, call: str, sql: str, *args: object) -> list[Row]:
        with timed(self._observe, call):
            return self._session.fetch(sql, args, waits=call)


def lock_key(queue: str, name: str) -> int:
    """The advisory lock of a consumer, a signed 64-bit integer: the same in every process and release."""
    text = f'mikkoo\0{queue}\0{name}'
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], signed=True)


def _weight(row: Row) -> float:
    """Characters of an event's texts; without end where one of them was left out."""
    if row[COLUMNS - 1 :] not in ((), (None,)):
        return float('inf')
    return sum(len(text) for text in row[4 : COLUMNS - 1] if text)


def _again(retry: Retry) -> Row:
    """event_retry_raw's arguments: ev_id, ev_time, the new ev_retry, and the texts."""
    row = retry.row
    return (row[0], row[1], (row[3] or 0) + 1 if retry.counted else row[3], *row[4 : COLUMNS - 1])


def _finished(batch: Batch) -> Fenced:
    return Fenced(f'batch {batch.id} is not open: another process finished it')
