"""Dead letters as people handle them: found, shown, put back through PgQ, or discarded.

The relay writes them (`pgq_keep`). Here one database is read and changed over a session of its own. Every
change is one statement: done whole or not at all, and of two at once one finds nothing left to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mikkoo.common.errors import DatabaseError
from mikkoo.common.pgq_facts import RETRYING, lacking, may_move_retries, mikkoo_schema_version
from mikkoo.common.pgq_keep import FIRST_VERSION
from mikkoo.common.postgres import Session

AT_ONCE = 1000  # dead letters in one transaction
MOVED_AT_MOST = 10_000  # by one call of mikkoo.move_retries
NO_PRIVILEGE = '42501'  # SQLSTATE insufficient_privilege
UNIQUE_VIOLATION = '23505'
UNREADABLE = '22'  # SQLSTATE class "data exception": bytes that are no text, in a database of SQL_ASCII

# Where databases are told apart: the url may be written in many ways.
DATABASE = """
    select pg_postmaster_start_time()::text, oid::text from pg_database where datname = current_database()
"""
USER = 'select quote_ident(current_user)'
# Times as text: Python has no year 10000 and no infinity.
SUMMARY = """
    id, {queue}, {consumer}, event_id, to_json(event_time) #>> '{{}}', event_txid, attempts,
    {exchange}, {routing_key}, {content_type}, reason_code, {reason},
    to_json(first_failed_at) #>> '{{}}', to_json(last_failed_at) #>> '{{}}', to_json(dead_at) #>> '{{}}',
    extract(epoch from clock_timestamp() - dead_at)::float8, octet_length(payload)
"""
WHOLE = SUMMARY + ', {payload}, {properties}, {headers}'
TEXTS = (
    'queue', 'consumer', 'exchange', 'routing_key', 'content_type', 'reason', 'payload', 'properties',
    'headers',
)  # fmt: skip
PLAIN, ESCAPED = '{}', "encode(convert_to({}, 'SQL_ASCII'), 'escape')"
COUNT = 'select count(*) from mikkoo.dead_letter where {where}'
LIST = 'select {columns} from mikkoo.dead_letter where {where} order by id desc limit %s'
IDS = 'select id from mikkoo.dead_letter where {where} order by id'
CONDITIONS = {
    'ids': 'id = any(%s)',
    'queue': 'queue = %s',
    'consumer': 'consumer = %s',
    'exchange': "coalesce(exchange, '') = %s",
    'routing_key': "coalesce(routing_key, '') = %s",
    'reason_code': 'reason_code = %s',
    'older_than': "dead_at < clock_timestamp() - %s * interval '1 second'",
    'newer_than': "dead_at > clock_timestamp() - %s * interval '1 second'",
}
# The consumers of these dead letters that are gone: the queue, the consumer, whether there is the queue.
UNREGISTERED = """
    select d.queue, d.consumer, q.queue_id is not null, count(*)
    from mikkoo.dead_letter d
        left join pgq.queue q on q.queue_name = d.queue
        left join pgq.consumer c on c.co_name = d.consumer
        left join pgq.subscription s on s.sub_queue = q.queue_id and s.sub_consumer = c.co_id
    where d.id = any(%s) and s.sub_id is null
    group by 1, 2, 3 order by 1, 2
"""
GONE = """
    with gone as (delete from mikkoo.dead_letter where id = any(%s) returning *),
    forgotten as (
        delete from mikkoo.failing_event as f using gone
        where (f.queue, f.consumer, f.event_id, f.event_time)
            = (gone.queue, gone.consumer, gone.event_id, gone.event_time)
    )
"""
DISCARD = f'{GONE} select count(*) from gone'
RETRY = f"""
    {GONE} select count(pgq.event_retry_raw(queue, consumer, now(), event_id, event_time, null::integer,
        routing_key, payload, exchange, content_type, properties, headers))
    from (select * from gone order by id) as letter
"""
MOVE_RETRIES = 'select mikkoo.move_retries()'


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row of mikkoo.dead_letter without its larger texts. Times are ISO 8601 in UTC.

    `age`: seconds since it was given up; `payload_bytes`: None for a payload that is NULL.
    """

    id: int
    queue: str
    consumer: str
    event_id: int
    event_time: str
    event_txid: int
    attempts: int
    exchange: str | None
    routing_key: str | None
    content_type: str | None
    reason_code: str
    reason: str
    first_failed_at: str
    last_failed_at: str
    dead_at: str
    age: float
    payload_bytes: int | None


@dataclass(frozen=True, slots=True)
class WholeDeadLetter(DeadLetter):
    """All of a row."""

    payload: str | None
    properties: str | None
    headers: str | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters: those for which everything given holds. '' is the default exchange.

    `older_than`, `newer_than`: seconds since they were given up.
    """

    ids: tuple[int, ...] | None = None
    queue: str | None = None
    consumer: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    reason_code: str | None = None
    older_than: float | None = None
    newer_than: float | None = None

    def where(self) -> tuple[str, list[object]]:
        """The SQL condition and its arguments."""
        given = {name: value for name in CONDITIONS if (value := getattr(self, name)) is not None}
        args = [list(value) if isinstance(value, tuple) else value for value in given.values()]
        return ' and '.join(['true', *(CONDITIONS[name] for name in given)]), args


@dataclass(frozen=True, slots=True)
class Done:
    """A step: how many went, and those whose event cannot, as one of its id is in the retry queue already."""

    count: int
    blocked: tuple[int, ...] = ()


class DeadLetters:
    """The dead letters of one database. Every call raises DatabaseError."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.where = session.where

    def identity(self) -> tuple[str, str]:
        """The same for two sessions with one database, however their urls are written."""
        [(server, database)] = self._session.fetch(DATABASE)
        return server, database

    def require(self) -> None:
        """Raise DatabaseError where mikkoo.sql, or the right to use it, is missing."""
        try:
            version = mikkoo_schema_version(self._session)
            if version is not None and version >= FIRST_VERSION:
                self._session.fetch(COUNT.format(where='false'))
                return
        except DatabaseError as error:
            if error.sqlstate != NO_PRIVILEGE:
                raise
            [(user,)] = self._session.fetch(USER)
            raise DatabaseError(f'{error}: GRANT mikkoo_relay TO {user};', error.sqlstate) from error
        found = 'has no mikkoo.sql' if version is None else f'has version {version} of mikkoo.sql'
        raise DatabaseError(
            f'{self.where}: the database {found}, dead letters need version {FIRST_VERSION}: '
            'mikkood sql | psql DATABASE'
        )

    def count(self, which: Filter) -> int:
        condition, args = which.where()
        [(number,)] = self._session.fetch(COUNT.format(where=condition), args)
        return int(number)

    def find(self, which: Filter, limit: int) -> list[DeadLetter]:
        """The newest first."""
        condition, args = which.where()
        return [DeadLetter(*row) for row in self._readable(SUMMARY, condition, [*args, limit])]

    def ids(self, which: Filter) -> list[int]:
        """The oldest first."""
        condition, args = which.where()
        return [number for (number,) in self._session.fetch(IDS.format(where=condition), args)]

    def whole(self, which: Filter) -> list[WholeDeadLetter]:
        condition, args = which.where()
        return [WholeDeadLetter(*row) for row in self._readable(WHOLE, condition, [*args, None])]

    def obstacles(self, ids: Sequence[int]) -> Iterator[str]:
        """Why these cannot be put back, each with what to do."""
        if lacking(self._session, RETRYING):
            yield (
                f'this user may not call pgq.event_retry_raw: GRANT EXECUTE ON FUNCTION {RETRYING} '
                'TO mikkoo_relay; or let the owner of the functions of PgQ run mikkoo.sql again'
            )
        for queue, consumer, exists, count in self._session.fetch(UNREGISTERED, (list(ids),)):
            unregistered = f'consumer "{consumer}" is not registered with queue "{queue}" any more'
            missing = f'there is no queue "{queue}" any more'
            yield f'{unregistered if exists else missing} (dead letters: {count})'

    def retry(self, ids: Sequence[int]) -> Iterator[Done]:
        """Put events back for their consumer only, as new ones of the old id and time, a transaction a step.

        The next ticks show them after `move_retries`.
        """
        for part in _parts(ids):
            yield from self._retry(part)

    def discard(self, ids: Sequence[int]) -> Iterator[Done]:
        """Remove dead letters for good, a transaction a step."""
        for part in _parts(ids):
            yield Done(self._change(DISCARD, part))

    def move_retries(self) -> int | None:
        """Put what is due back into its queue, as the relay and pgqd do as well. None: we may not."""
        if not may_move_retries(self._session):
            return None
        total = 0
        while True:
            [(moved,)] = self._session.fetch(MOVE_RETRIES, waits='move_retries')
            total += int(moved)
            if moved < MOVED_AT_MOST:
                return total

    def _retry(self, ids: Sequence[int]) -> Iterator[Done]:
        """By halves where one is blocked: the retry queue holds an event id once for each consumer."""
        try:
            done = Done(self._change(RETRY, ids))
        except DatabaseError as error:
            if error.sqlstate != UNIQUE_VIOLATION:
                raise
            if len(ids) == 1:
                yield Done(0, tuple(ids))
                return
            for half in ids[: len(ids) // 2], ids[len(ids) // 2 :]:
                yield from self._retry(half)
        else:
            yield done

    def _change(self, sql: str, ids: Sequence[int]) -> int:
        [(count,)] = self._session.fetch(sql, (list(ids),))
        return int(count)

    def _readable(self, columns: str, condition: str, args: Sequence[object]) -> list[tuple[Any, ...]]:
        """Rows, with backslash escapes in all texts where one of them is no text."""
        try:
            return self._list(columns, PLAIN, condition, args)
        except DatabaseError as error:
            if not error.sqlstate.startswith(UNREADABLE):
                raise
            return self._list(columns, ESCAPED, condition, args)

    def _list(self, columns: str, form: str, condition: str, args: Sequence[object]) -> list[tuple[Any, ...]]:
        selected = columns.format(**{name: form.format(name) for name in TEXTS})
        return self._session.fetch(LIST.format(columns=selected, where=condition), args)


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), AT_ONCE):
        yield ids[start : start + AT_ONCE]
