"""Reading a PgQ batch in slices: a transaction that lasts only while the batch is read.

The cursor is `pgq.batch_event_sql`'s query, as in pgq.get_batch_cursor, within one of ours: it leaves out
what is too large, and tells with each row how much the next ones weigh, so that no slice is over its budget,
whatever the mix of sizes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mikkoo.common.errors import DatabaseError, Fenced
from mikkoo.common.postgres import Backend, Session

LARGEST_VALUE = 128 * 1024 * 1024  # bytes; RabbitMQ's default max_message_size
ROW_WEIGHT = 300  # bytes that a row weighs besides its texts
NEAR, FAR = 20, 500  # rows in a slice, where the budget allows so many; else one

BATCH_SQL = 'select pgq.batch_event_sql(%s)'
TEXTS = ('ev_type', 'ev_data', 'ev_extra1', 'ev_extra2', 'ev_extra3', 'ev_extra4')
FIRST_ID = -(2**63)  # no event has a lower id than this
UNREADABLE = '22'  # SQLSTATE class "data exception"
BARE = """
    select ev_id, case when ev_time between '1970-01-01' and '9999-12-01' then ev_time else '1970-01-01' end,
        ev_txid, ev_retry, null, null, null, null, null, null, %s::text
    from ({batch}) as batch where ev_id > %s order by ev_id limit 1
"""
COLUMNS = 11  # of a Row; two more are the weights of what follows
CURSOR = """
    declare {name} no scroll cursor for
    select *, sum({weight}) over (order by ev_id rows between 1 following and {near} following)::int8,
              sum({weight}) over (order by ev_id rows between 1 following and {far} following)::int8
    from (
        select ev_id, ev_time, ev_txid, ev_retry, {texts}, case when {largest} > {limit} then {largest} end
        from ({batch}) as batch where ev_id > {after}
    ) as row
    order by ev_id
"""

Observe = Callable[[str, float], None]
Row = tuple[Any, ...]
"""The ten columns of pgq.get_batch_events, in its order (worker.event.Event's), and an eleventh: None; or the
length of the largest text in bytes, where texts were over the limit and so come as None; or why, where the
values cannot be given (bytes that are no text, a time past the year 9999) and all texts come as None."""


@dataclass(frozen=True, slots=True)
class Batch:
    """An open batch: the events between two ticks. Times are aware."""

    id: int
    tick_id: int
    previous_tick_id: int
    tick_time: datetime
    previous_tick_time: datetime


def unobserved(call: str, seconds: float) -> None:
    """Observe nothing."""


@contextmanager
def timed(observe: Observe, call: str) -> Iterator[None]:
    """Tell `observe` how many seconds a call took, failed or not."""
    start = time.monotonic()
    try:
        yield
    finally:
        observe(call, time.monotonic() - start)


class Reader:
    """Reads batches over a session of its own, one at a time.

    `largest_value`: bytes; an event with a larger text is delivered without that text, and marked.
    """

    def __init__(
        self, session: Session, observe: Observe = unobserved, largest_value: int = LARGEST_VALUE
    ) -> None:
        self._session = session
        self._observe = observe
        self._largest_value = largest_value
        self._opened = 0
        self._batch: Batch | None = None
        self._last: int | None = None
        self._singly = 0  # rows to be read one by one, since one of them is unreadable
        self._reading = False
        self._cursor = ''
        # Of the next NEAR rows, and of the next FAR; None: no row follows.
        self._weights: tuple[int | None, int | None] = (None, None)

    @property
    def reading(self) -> bool:
        """Whether a batch is open to be read, to its end or not; False after `pause`."""
        return self._reading

    @property
    def backend(self) -> Backend | None:
        """As Session.backend."""
        return self._session.backend

    def open(self, batch: Batch, after: int | None = None) -> None:
        """Start reading, behind event `after` if given. Raises Fenced if the batch is not open any more."""
        self.pause()
        self._session.begin('read only')
        try:
            with timed(self._observe, 'open_batch'):
                [(sql,)] = self._session.fetch(BATCH_SQL, (batch.id,), waits='batch_event_sql')
                self._opened += 1
                self._cursor = f'mikkoo_{self._opened}'
                self._session.execute(self._declaration(sql, after), waits='declare')
        except DatabaseError as error:
            self.pause()
            if 'batch not found' in str(error):
                raise Fenced(f'batch {batch.id} is not open: another process finished it') from error
            raise
        self._batch, self._last = batch, after
        self._weights = (sys.maxsize, sys.maxsize)  # unknown: one row will tell
        self._reading = True

    def fetch(self, byte_budget: int) -> list[Row]:
        """The next slice, of at most about `byte_budget` bytes but at least one event; [] at the end.

        RuntimeError after `pause`: the rest of a batch that is not being read must not look like its end.
        """
        if not self._reading:
            raise RuntimeError('no batch is being read')
        near, far = self._weights
        if near is None or far is None:
            return []
        count = FAR if far <= byte_budget else NEAR if near <= byte_budget else 1
        if self._singly:
            self._singly -= 1
            count = 1
        try:
            return self._fetch(count)
        except DatabaseError as error:
            if not error.sqlstate.startswith(UNREADABLE) or self._batch is None:
                raise
            if count == 1:
                return self._fetch_bare(self._batch, str(error))
            self._singly = count
            self.open(self._batch, self._last)
            return self.fetch(byte_budget)

    def _fetch(self, count: int) -> list[Row]:
        with timed(self._observe, 'fetch'):
            rows = self._session.fetch(f'fetch forward {count} from {self._cursor}', waits='fetch')
        self._weights = rows[-1][COLUMNS:] if rows else (None, None)
        if rows:
            self._last = rows[-1][0]
        return [row[:COLUMNS] for row in rows]

    def _fetch_bare(self, batch: Batch, reason: str) -> list[Row]:
        """The next row, which is unreadable, without its values; reading goes on behind it."""
        after = FIRST_ID if self._last is None else self._last
        self.open(batch, after)
        [(sql,)] = self._session.fetch(BATCH_SQL, (batch.id,), waits='batch_event_sql')
        bare = BARE.format(batch=sql.replace('%', '%%'))
        rows = self._session.fetch(bare, (reason, after), waits='fetch')
        self.open(batch, rows[-1][0])
        return rows

    def pause(self) -> None:
        """End the transaction; reading goes on by `open(batch, after=the last event's id)`. Never raises."""
        self._weights = (None, None)
        self._reading = False
        self._session.rollback()

    def close(self) -> None:
        """End the transaction and the session. Never raises."""
        self.pause()
        self._session.close()

    def _declaration(self, batch_sql: str, after: int | None) -> str:
        limit = self._largest_value
        return CURSOR.format(
            name=self._cursor,
            texts=', '.join(
                f'case when octet_length({text}) <= {limit:d} then {text} end as {text}' for text in TEXTS
            ),
            largest='greatest(' + ', '.join(f'octet_length({text})' for text in TEXTS) + ')',
            weight=f'least({ROW_WEIGHT}::int8'
            + ''.join(f' + coalesce(octet_length({text}), 0)' for text in TEXTS)
            + ', 2000000000)::int4',  # a sum of int8 would be numeric, and slow
            near=NEAR,
            far=FAR,
            limit=f'{limit:d}',
            batch=batch_sql,
            after=f'{FIRST_ID if after is None else after:d}',
        )
