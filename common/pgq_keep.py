"""What mikkoo.sql keeps for the relay: dead letters, when an event failed first, how far a batch has got.

Every writing call runs within the caller's transaction, the one that settles: both commit, or neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from mikkoo.common.pgq_facts import mikkoo_schema_version
from mikkoo.common.pgq_reader import BATCH_SQL, COLUMNS, FIRST_ID, Batch, Row
from mikkoo.common.postgres import Session

FIRST_VERSION = 2  # of mikkoo.sql that keeps these
ISOLATING = 3  # the first version that counts who opened a batch
AT_ONCE = 100  # events in one statement
COUNTED = 100_000  # dead letters; more are not counted

MAY_KEEP = """
    select has_table_privilege('mikkoo.dead_letter', 'INSERT')
        and has_table_privilege('mikkoo.dead_letter', 'UPDATE')
        and has_table_privilege('mikkoo.dead_letter', 'SELECT')
        and has_table_privilege('mikkoo.failing_event', 'SELECT')
        and has_table_privilege('mikkoo.failing_event', 'INSERT')
        and has_table_privilege('mikkoo.failing_event', 'DELETE')
        and has_table_privilege('mikkoo.batch_progress', 'SELECT')
        and has_table_privilege('mikkoo.batch_progress', 'INSERT')
        and has_table_privilege('mikkoo.batch_progress', 'UPDATE')
        and has_table_privilege('mikkoo.batch_progress', 'DELETE')
"""
COLUMN_NAMES = """
    queue, consumer, event_id, event_time, event_txid, attempts, routing_key, payload, exchange, content_type,
    properties, headers, reason_code, reason, first_failed_at
"""
FIRST_FAILED = """
    coalesce((
        select f.first_failed_at from mikkoo.failing_event as f
        where (f.queue, f.consumer, f.event_id, f.event_time) = (%s, %s, {id}, {time})
    ), clock_timestamp())
"""
AGAIN = """
    on conflict on constraint dead_letter_event do update set (attempts, reason_code, reason, last_failed_at,
        dead_at) = (excluded.attempts, excluded.reason_code, excluded.reason, excluded.last_failed_at, now())
"""
BURY = f"""
    insert into mikkoo.dead_letter ({COLUMN_NAMES})
    select %s, %s, id, time, txid, attempts, type, data, extra1, extra2, extra3, extra4, code, reason,
        {FIRST_FAILED.format(id='e.id', time='e.time')}
    from unnest(%s::int8[], %s::timestamptz[], %s::int8[], %s::int4[], %s::text[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
        as e (id, time, txid, attempts, type, data, extra1, extra2, extra3, extra4, code, reason)
    {AGAIN}
"""
BURY_COPY = """
    insert into mikkoo.dead_letter ({columns})
    select %s, %s, ev_id, ev_time, ev_txid, {attempts}, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3,
        ev_extra4, %s, %s, {first_failed}
    from ({batch}) as e where ev_id {which} %s order by ev_id, ev_txid desc limit 1
    {again}
    returning event_id, attempts
"""
FAILED_FIRST = """
    insert into mikkoo.failing_event (queue, consumer, event_id, event_time)
    select %s, %s, id, time from unnest(%s::int8[], %s::timestamptz[]) as e (id, time)
    on conflict do nothing
"""
RECOVERED = """
    delete from mikkoo.failing_event as f using unnest(%s::int8[]) as e (id)
    where (f.queue, f.consumer, f.event_id) = (%s, %s, e.id)
"""
# Without fsync: a count that a crash of PostgreSQL loses costs a process more, nothing else.
OPEN = """
    insert into mikkoo.batch_progress as p
        (queue, consumer, batch_id, tick_id, previous_tick_id, tick_time, attempts)
    values (%s, %s, %s, %s, %s, %s, 1)
    on conflict (queue, consumer) do update
        set (batch_id, tick_id, previous_tick_id, tick_time, last_event_id, attempts, alone, saved_at) = (
            select excluded.batch_id, excluded.tick_id, excluded.previous_tick_id, excluded.tick_time,
                case when same then p.last_event_id end, case when same then p.attempts + %s else 1 end,
                same and p.alone, now()
            from (select (p.batch_id, p.tick_id, p.previous_tick_id, p.tick_time) = (excluded.batch_id,
                excluded.tick_id, excluded.previous_tick_id, excluded.tick_time)) as row (same))
    returning last_event_id, attempts, alone, set_config('synchronous_commit', 'off', true)
"""
SAVE = """
    insert into mikkoo.batch_progress as p
        (queue, consumer, batch_id, tick_id, previous_tick_id, tick_time, last_event_id, attempts, alone)
    values (%s, %s, %s, %s, %s, %s, %s, %s, %s)
    on conflict (queue, consumer) do update
        set (batch_id, tick_id, previous_tick_id, tick_time, last_event_id, attempts, alone, saved_at) = (
            excluded.batch_id, excluded.tick_id, excluded.previous_tick_id, excluded.tick_time,
            excluded.last_event_id,
            case when excluded.attempts = 0 then 0
                when excluded.alone or excluded.last_event_id is not distinct from p.last_event_id
                then p.attempts else 1 end,
            excluded.alone, now())
    returning case when alone then set_config('synchronous_commit', 'off', true) end
"""
# Of many millions the index is read no further than this: some 20 ms.
COUNT = """
    select count(*) from (
        select from mikkoo.dead_letter where (queue, consumer) = (%s, %s) limit %s) as counted
"""
FORGET = 'delete from mikkoo.batch_progress where (queue, consumer) = (%s, %s)'  # the batch is finished
# Of version 2, which has no attempts
PROGRESS = """
    select batch_id, tick_id, previous_tick_id, tick_time, last_event_id from mikkoo.batch_progress
    where (queue, consumer) = (%s, %s)
"""
SAVE_UNCOUNTED = """
    insert into mikkoo.batch_progress as p
        (queue, consumer, batch_id, tick_id, previous_tick_id, tick_time, last_event_id)
    values (%s, %s, %s, %s, %s, %s, %s)
    on conflict (queue, consumer) do update
        set (batch_id, tick_id, previous_tick_id, tick_time, last_event_id, saved_at) = (excluded.batch_id,
            excluded.tick_id, excluded.previous_tick_id, excluded.tick_time, excluded.last_event_id, now())
"""


class Stage(Enum):
    """What a worker is doing when it saves progress."""

    TOGETHER = 'together'  # many events are in flight
    ALONE = 'alone'  # it is about to relay the next event with no other in flight
    STOPPED = 'stopped'  # it leaves because it was asked to


@dataclass(frozen=True, slots=True)
class Dead:
    """An event that is given up, as Reader gave it, after so many attempts; the reason's code and text."""

    row: Row
    attempts: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Opening:
    """How a batch was found. Every event up to `last_event_id` is judged; None: nothing is known.

    `attempts`: processes that opened it since it last got on, this one included; 0 where that is not counted.
    `alone`: the last of them relayed the first event behind alone, and did not tell how that ended.
    """

    last_event_id: int | None = None
    attempts: int = 0
    alone: bool = False


class Keeper:
    """The records of one consumer of one queue."""

    def __init__(self, session: Session, queue: str, consumer: str) -> None:
        self._session = session
        self._place = (queue, consumer)
        self._counts = False  # whether openings are counted here; `available` finds out

    def available(self) -> bool:
        """Whether this database has what it takes, and we may write it."""
        version = mikkoo_schema_version(self._session)
        self._counts = version is not None and version >= ISOLATING
        if version is None or version < FIRST_VERSION:
            return False
        [(may,)] = self._session.fetch(MAY_KEEP)
        return bool(may)

    def bury(self, batch: Batch, dead: Sequence[Dead], is_large: Iterable[bool]) -> None:
        """Keep events as dead letters. What is large, or lacks its texts, is copied within the server."""
        unique = {one.row[:2]: (one, large) for one, large in zip(dead, is_large, strict=True)}
        small = []
        for one, large in unique.values():  # twice in one batch after a crash that repeated it
            if large:
                self._bury_copy(batch, one)
            else:
                small.append(one)
        for start in range(0, len(small), AT_ONCE):
            rows = [
                (*one.row[:3], one.attempts, *one.row[4 : COLUMNS - 1], one.code, one.reason)
                for one in small[start : start + AT_ONCE]
            ]
            columns = map(list, zip(*rows, strict=True))
            self._session.execute(BURY, (*self._place, *self._place, *columns), waits='dead letters')
        self.recovered([one.row[0] for one in dead])

    def count_dead(self) -> int:
        """How many dead letters there are, up to COUNTED."""
        [(count,)] = self._session.fetch(COUNT, (*self._place, COUNTED), waits='dead letters')
        return int(count)

    def failed_first(self, rows: Sequence[Row]) -> None:
        """Note when events that will be retried failed first."""
        if rows:
            ids, times = [row[0] for row in rows], [row[1] for row in rows]
            self._session.execute(FAILED_FIRST, (*self._place, ids, times), waits='failing events')

    def recovered(self, event_ids: Sequence[int]) -> None:
        """Forget when these failed first: they were delivered, or are dead letters."""
        if event_ids:
            self._session.execute(RECOVERED, (list(event_ids), *self._place), waits='failing events')

    def open(self, batch: Batch, again: bool) -> Opening:
        """What was last saved of exactly this batch; counted, unless this process opens it `again`.

        All that tells a batch has to agree: when the extension was created anew, another may have its number.
        """
        if self._counts:
            args = (*self._place, *_identity(batch), 0 if again else 1)
            [(last, attempts, alone, _)] = self._session.fetch(OPEN, args, waits='progress')
            return Opening(last, attempts, alone)
        row = self._session.one(PROGRESS, self._place, waits='progress')
        return Opening(row[4]) if row is not None and row[:4] == _identity(batch) else Opening()

    def save(self, batch: Batch, last_event_id: int | None, stage: Stage) -> None:
        """Every event of the batch up to this one is judged; None: nothing is known of any."""
        args = (*self._place, *_identity(batch), last_event_id)
        if self._counts:
            attempts = 0 if stage is Stage.STOPPED else 1
            self._session.execute(SAVE, (*args, attempts, stage is Stage.ALONE), waits='progress')
        elif last_event_id is not None:
            self._session.execute(SAVE_UNCOUNTED, args, waits='progress')

    def bury_next(
        self, batch: Batch, after: int | None, ends: int, code: str, reason: str
    ) -> tuple[int, int] | None:
        """Keep the first event behind `after` as a dead letter, unread; its id and attempts.

        `ends`: how many of those attempts ended a process. None: there is no event behind.
        """
        after = FIRST_ID if after is None else after
        statement = self._copying(batch, which='>', attempts='coalesce(ev_retry, 0) + %s')
        args = (*self._place, ends, code, reason, *self._place, after)
        row = self._session.one(statement, args, waits='dead letters')
        if row is None:
            return None
        self.recovered([row[0]])
        return row[0], row[1]

    def _bury_copy(self, batch: Batch, one: Dead) -> None:
        args = (*self._place, one.attempts, one.code, one.reason, *self._place, one.row[0])
        self._session.execute(self._copying(batch, which='=', attempts='%s'), args, waits='dead letters')

    def _copying(self, batch: Batch, **parts: str) -> str:
        """BURY_COPY for a batch."""
        [(sql,)] = self._session.fetch(BATCH_SQL, (batch.id,), waits='batch_event_sql')
        return BURY_COPY.format(
            columns=COLUMN_NAMES,
            again=AGAIN,
            first_failed=FIRST_FAILED.format(id='e.ev_id', time='e.ev_time'),
            batch=sql.replace('%', '%%'),
            **parts,
        )


def _identity(batch: Batch) -> tuple[int, int, int, datetime]:
    return batch.id, batch.tick_id, batch.previous_tick_id, batch.tick_time
