"""What the audit of one database has come to: counted by queue and exchange, and what is late or differs.

Auditors write it (`audit_settle`). A report is read within one transaction, so that its numbers fit together
while events are recorded and settled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from mikkoo.common.errors import DatabaseError
from mikkoo.common.pgq_facts import mikkoo_schema_version
from mikkoo.common.postgres import Session

FIRST_VERSION = 5  # of mikkoo.sql that has all of it
GRACE = 60.0  # seconds, where no auditor gives another
NO_PRIVILEGE = '42501'  # SQLSTATE insufficient_privilege
RECENT = 50_000  # records of either kind that are looked at for the routes in use
ROUTES = 1000  # of those in use, the most used

# Where databases are told apart: the url may be written in many ways.
DATABASE = """
    select pg_postmaster_start_time()::text, oid::text from pg_database where datname = current_database()
"""
USER = 'select quote_ident(current_user)'
MAY_READ = """
    select has_table_privilege('mikkoo.audit', 'SELECT')
        and has_table_privilege('mikkoo.audit_tally', 'SELECT')
        and has_table_privilege('mikkoo.audit_difference', 'SELECT')
"""
ONE_VIEW = 'set transaction isolation level repeatable read read only'
COUNTED_UNTIL = "hour + interval '1 hour'"  # of a tally
AGO = "select clock_timestamp() - %s * interval '1 second'"
TALLY = """
    select queue, exchange, array_agg(distinct auditor), sum(received)::int8, sum(duplicates)::int8,
        sum(expired)::int8, sum(latency_total), max(latency_max)
    from mikkoo.audit_tally where {where} and queue <> '' group by 1, 2
"""
STRANGERS = """
    select coalesce(sum(unknown), 0)::int8, coalesce(sum(unidentified), 0)::int8
    from mikkoo.audit_tally where {where}
"""
WAITING = """
    from (
        select *, coalesce(exchange, '') as place,
            extract(epoch from statement_timestamp() - published_at) as age
        from mikkoo.audit where received_at is null
    ) as a left join unnest(%s::text[], %s::float8[]) as g (exchange, grace) on g.exchange = a.place
    where {where}
"""
LATE = 'a.age > coalesce(g.grace, %s)'
OUTSTANDING = f'select a.queue, a.place, count(*), count(*) filter (where {LATE}) {WAITING} group by 1, 2'
COLUMNS = """
    select message_id::text, a.queue, place, routing_key, to_json(published_at) #>> '{{}}', age::float8
"""
OLDEST = f'{COLUMNS} {WAITING} order by published_at limit 1'
LATE_ONES = f'{COLUMNS} {WAITING} and {LATE} order by published_at limit %s'
# The exchange as recorded, where the record is still there.
DIFFERING = """
    from (
        select d.*, case when r.message_id is null then d.exchange else coalesce(r.exchange, '') end as place
        from mikkoo.audit_difference as d left join lateral (
            select message_id, exchange from mikkoo.audit as a where a.message_id = d.message_id
            order by published_at desc limit 1
        ) as r on true
    ) as d where {where}
"""
DIFFERENCES = f'select queue, place, count(distinct message_id) {DIFFERING} group by 1, 2'
DIFFERENT_ONES = f"""
    select message_id::text, queue, place, auditor, to_json(seen_at) #>> '{{{{}}}}', fields
    {DIFFERING} order by seen_at, message_id limit %s
"""
# Bounded, as there may be many millions; the newest, by the indexes of either kind.
IN_USE = """
    select queue, coalesce(exchange, ''), routing_key, count(*) from (
        (select queue, exchange, routing_key from mikkoo.audit
         where received_at is null and published_at > now() - %s * interval '1 second'
         order by published_at desc limit %s)
        union all
        (select queue, exchange, routing_key from mikkoo.audit
         where received_at > now() - %s * interval '1 second' order by received_at desc limit %s)
    ) as recent group by 1, 2, 3 order by 4 desc, 1, 2, 3 limit %s
"""


Rows = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Group:
    """The audit of a queue and an exchange ('' is the default one). `latency_total`, `latency_max`: seconds.

    `late` are among the outstanding, `differing` messages among the received.
    """

    queue: str
    exchange: str
    auditors: tuple[str, ...] = ()  # who has counted here
    received: int = 0
    outstanding: int = 0
    late: int = 0
    differing: int = 0
    duplicate: int = 0
    expired: int = 0
    latency_total: float = 0.0
    latency_max: float | None = None

    @property
    def recorded(self) -> int:
        """Received records may have been deleted, so they are added up."""
        return self.received + self.outstanding + self.expired

    @property
    def latency_mean(self) -> float | None:
        return self.latency_total / self.received if self.received else None

    @property
    def clean(self) -> bool:
        return not (self.late or self.differing or self.expired)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A record whose message has not arrived. `published_at`: ISO 8601 in UTC; `age`: seconds."""

    message_id: str
    queue: str
    exchange: str
    routing_key: str
    published_at: str
    age: float


@dataclass(frozen=True, slots=True)
class Differing:
    """A message that arrived otherwise than recorded; `fields` tells in what."""

    message_id: str
    queue: str
    exchange: str
    auditor: str
    seen_at: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The audit of one database. `late`, `differing`: the oldest of them, as many as were asked for."""

    groups: tuple[Group, ...] = ()
    unknown: int = 0
    unidentified: int = 0
    oldest: Waiting | None = None
    late: tuple[Waiting, ...] = ()
    differing: tuple[Differing, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """What recent records are published to, and how many of those that were looked at."""

    queue: str
    exchange: str
    routing_key: str
    count: int


@dataclass(frozen=True, slots=True)
class Scope:
    """What a report is about. `since`: a time, or seconds ago. Graces in seconds, `graces` by exchange."""

    queue: str | None = None
    exchange: str | None = None
    since: datetime | float | None = None
    graces: Mapping[str, float] = field(default_factory=dict)
    grace: float = GRACE

    def where(self, exchange: str, time: str) -> tuple[str, list[object]]:
        """The SQL condition and its arguments, for the names of these two columns."""
        parts: list[str] = ['true']
        args: list[object] = []
        for sql, value in (
            ('queue = %s', self.queue), (f'{exchange} = %s', self.exchange), (f'{time} >= %s', self.since),
        ):  # fmt: skip
            if value is not None:
                parts.append(sql)
                args.append(value)
        return ' and '.join(parts), args


class Audits:
    """The audit of one database, to be read. Every call raises DatabaseError."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.where = session.where

    def identity(self) -> tuple[str, str]:
        """The same for two sessions with one database, however their urls are written."""
        [(server, database)] = self._session.fetch(DATABASE)
        return server, database

    def require(self) -> None:
        """Raise DatabaseError where mikkoo.sql, or the right to read the audit, is missing."""
        try:
            version = mikkoo_schema_version(self._session)
            if version is not None and version >= FIRST_VERSION:
                if self._session.fetch(MAY_READ) == [(True,)]:
                    return
                raise DatabaseError(f'{self.where}: this user may not read the audit', NO_PRIVILEGE)
        except DatabaseError as error:
            if error.sqlstate != NO_PRIVILEGE:
                raise
            [(user,)] = self._session.fetch(USER)
            raise DatabaseError(f'{error}: GRANT mikkoo_auditor TO {user};', error.sqlstate) from error
        found = 'has no mikkoo.sql' if version is None else f'has version {version} of mikkoo.sql'
        raise DatabaseError(
            f'{self.where}: the database {found}, the audit needs version {FIRST_VERSION}: '
            'mikkood sql | psql DATABASE'
        )

    def report(self, scope: Scope, most: int | None) -> Report:
        """`most`: how many late and differing ones are named; None: all."""
        with self._session.transaction():
            self._session.execute(ONE_VIEW)
            if isinstance(scope.since, float):
                [(since,)] = self._session.fetch(AGO, (scope.since,))
                scope = replace(scope, since=since)
            return self._report(scope, most)

    def routes(self, seconds: float) -> list[Route]:
        """What was published to lately, the most used first; of very many records the newest count."""
        rows = self._session.fetch(IN_USE, (seconds, RECENT, seconds, RECENT, ROUTES))
        return [Route(*row) for row in rows]

    def _report(self, scope: Scope, most: int | None) -> Report:
        graces = [list(scope.graces), list(scope.graces.values())]
        waiting, waiting_args = scope.where('place', 'published_at')
        differing, differing_args = scope.where('place', 'seen_at')
        counted, counted_args = scope.where('exchange', COUNTED_UNTIL)
        strangers, strangers_args = Scope(since=scope.since).where('exchange', COUNTED_UNTIL)
        fetch = self._session.fetch
        groups = _merged(
            fetch(TALLY.format(where=counted), counted_args),
            fetch(OUTSTANDING.format(where=waiting), [scope.grace, *graces, *waiting_args]),
            fetch(DIFFERENCES.format(where=differing), differing_args),
        )
        [(unknown, unidentified)] = fetch(STRANGERS.format(where=strangers), strangers_args)
        oldest = fetch(OLDEST.format(where=waiting), [*graces, *waiting_args])
        late = fetch(LATE_ONES.format(where=waiting), [*graces, *waiting_args, scope.grace, most])
        different = fetch(DIFFERENT_ONES.format(where=differing), [*differing_args, most])
        return Report(
            groups, unknown, unidentified,
            next((Waiting(*row) for row in oldest), None),
            tuple(Waiting(*row) for row in late),
            tuple(Differing(*tupled(row)) for row in different),
        )  # fmt: skip


def _merged(tally: Rows, outstanding: Rows, differing: Rows) -> tuple[Group, ...]:
    """The groups of all three, by queue and exchange."""
    groups: dict[tuple[str, str], Group] = {}

    def at(queue: str, exchange: str) -> Group:
        return groups.get((queue, exchange), Group(queue, exchange))

    for queue, exchange, auditors, received, duplicate, expired, total, longest in tally:
        groups[queue, exchange] = replace(
            at(queue, exchange), auditors=tuple(auditors), received=received, duplicate=duplicate,
            expired=expired, latency_total=total, latency_max=longest if received else None,
        )  # fmt: skip
    for queue, exchange, count, late in outstanding:
        groups[queue, exchange] = replace(at(queue, exchange), outstanding=count, late=late)
    for queue, exchange, count in differing:
        groups[queue, exchange] = replace(at(queue, exchange), differing=count)
    return tuple(groups[place] for place in sorted(groups))


def tupled(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row whose arrays can be part of a frozen record."""
    return tuple(tuple(value) if isinstance(value, list) else value for value in row)
