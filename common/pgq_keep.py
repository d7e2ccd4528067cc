"""What mikkoo.sql keeps for the relay: dead letters, when an event failed first, how far a batch has got.

Every writing call runs within the caller's transaction, the one that settles: both commit, or neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from mikkoo.common.pgq_facts import mikkoo_schema_version
from mikkoo.common.pgq_reader import BATCH_SQL, COLUMNS, Batch, Row
from mikkoo.common.postgres import Session

FIRST_VERSION = 2  # of mikkoo.sql that keeps these
AT_ONCE = 100  # events in one statement

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
    select %s, %s, ev_id, ev_time, ev_txid, %s, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4,
        %s, %s, {first_failed}
    from ({batch}) as e where ev_id = %s order by ev_txid desc limit 1
    {again}
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
SAVE = """
    insert into mikkoo.batch_progress as p
        (queue, consumer, batch_id, tick_id, previous_tick_id, tick_time, last_event_id)
    values (%s, %s, %s, %s, %s, %s, %s)
    on conflict (queue, consumer) do update
        set (batch_id, tick_id, previous_tick_id, tick_time, last_event_id, saved_at) = (excluded.batch_id,
            excluded.tick_id, excluded.previous_tick_id, excluded.tick_time, excluded.last_event_id, now())
"""
PROGRESS = """
    select batch_id, tick_id, previous_tick_id, tick_time, last_event_id from mikkoo.batch_progress
    where (queue, consumer) = (%s, %s)
"""
FORGET = 'delete from mikkoo.batch_progress where (queue, consumer) = (%s, %s)'


@dataclass(frozen=True, slots=True)
class Dead:
    """An event that is given up, as Reader gave it, after so many attempts; the reason's code and text."""

    row: Row
    attempts: int
    code: str
    reason: str


class Keeper:
    """The records of one consumer of one queue."""

    def __init__(self, session: Session, queue: str, consumer: str) -> None:
        self._session = session
        self._place = (queue, consumer)
        self._saved = True  # whether there may be progress to forget

    def available(self) -> bool:
        """Whether this database has what it takes, and we may write it."""
        version = mikkoo_schema_version(self._session)
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

    def failed_first(self, rows: Sequence[Row]) -> None:
        """Note when events that will be retried failed first."""
        if rows:
            ids, times = [row[0] for row in rows], [row[1] for row in rows]
            self._session.execute(FAILED_FIRST, (*self._place, ids, times), waits='failing events')

    def recovered(self, event_ids: Sequence[int]) -> None:
        """Forget when these failed first: they were delivered, or are dead letters."""
        if event_ids:
            self._session.execute(RECOVERED, (list(event_ids), *self._place), waits='failing events')

    def save(self, batch: Batch, last_event_id: int) -> None:
        """Every event of the batch up to this one is judged."""
        self._saved = True
        self._session.execute(SAVE, (*self._place, *_identity(batch), last_event_id), waits='progress')

    def progress(self, batch: Batch) -> int | None:
        """What was last saved of exactly this batch.

        All that tells a batch has to agree: when the extension was created anew, another may have its number.
        """
        row = self._session.one(PROGRESS, self._place, waits='progress')
        self._saved = row is not None
        return int(row[4]) if row is not None and row[:4] == _identity(batch) else None

    def forget(self) -> None:
        """The batch is finished."""
        if self._saved:
            self._session.execute(FORGET, self._place, waits='progress')

    def _bury_copy(self, batch: Batch, one: Dead) -> None:
        [(sql,)] = self._session.fetch(BATCH_SQL, (batch.id,), waits='batch_event_sql')
        statement = BURY_COPY.format(
            columns=COLUMN_NAMES,
            again=AGAIN,
            first_failed=FIRST_FAILED.format(id='e.ev_id', time='e.ev_time'),
            batch=sql.replace('%', '%%'),
        )
        args = (*self._place, one.attempts, one.code, one.reason, *self._place, one.row[0])
        self._session.execute(statement, args, waits='dead letters')


def _identity(batch: Batch) -> tuple[int, int, int, datetime]:
    return batch.id, batch.tick_id, batch.previous_tick_id, batch.tick_time
