"""The audit's records as an auditor changes them: settled, counted, pruned, in mikkoo.sql's tables.

Texts that arrived are compared as bytes: what no database encoding holds, a NUL for instance, is a difference
and no error. So are records of a database of SQL_ASCII, which may be no text either.

No auditor sees the default exchange, so none settles or removes its records: they stay, and the report calls
them late, until `mikkood audit prune`. They are a mistake that shall be seen, not one that goes away by age.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from mikkoo.common.postgres import Session

FIRST_VERSION = 5  # of mikkoo.sql with an auditor's tables
PRUNED_AT_ONCE = 10_000  # rows in one transaction
LOCK = 0x6D696B61  # 'mika', the first key of the advisory lock; the second is of the auditor's name

OWN = 'select pg_try_advisory_lock(%s, hashtext(%s))'
PLAN = 'set enable_seqscan = off'  # the statistics may be of when the table was empty
ENCODING = "select current_setting('server_encoding')"
NO_ENCODING = 'SQL_ASCII'  # what a database has whose texts are any bytes
CACHED = 1024  # texts whose literals are kept: exchanges, routing keys and content types are few

# One arrival settles one record of its message_id, the oldest outstanding. `judged`: whether the content type
# is as recorded, where that took a look into the properties; NULL: not looked at yet, so in doubt it waits.
# Records are found by "lateral ... limit" and changed by an array of ctid, so that no plan does it otherwise
# than row by row: by statistics of when the table was empty it would read all of it for every message. As
# "received_at is null" would lead to the index of all that is outstanding, it is said by coalesce there.
FOUND = """
    with arrived as (
        select * from unnest(
            %s::uuid[], %s::bytea[], %s::bytea[], %s::bytea[], %s::bytea[], %s::float8[], %s::bool[]
        ) with ordinality as a (message_id, exchange, routing_key, content_type, body_sha256, age, judged, n)
    ), matched as (
        select a.n, a.judged, clock_timestamp() - a.age * interval '1 second' as seen_at, r.place,
            r.message_id, r.published_at, r.received_at, r.queue, r.exchange, r.content_type, r.properties,
            array_remove(array[
                case when convert_to(r.exchange, 'UTF8') <> a.exchange then 'exchange' end,
                case when convert_to(r.routing_key, 'UTF8') <> a.routing_key then 'routing_key' end,
                case when not coalesce(
                    a.judged, convert_to(coalesce(r.content_type, ''), 'UTF8') = a.content_type
                ) then 'content_type' end,
                case when sha256(convert_to(coalesce(r.payload, ''), 'UTF8')) <> a.body_sha256 then 'body' end
            ], null) as fields
        from arrived as a cross join lateral (
            select ctid as place, message_id, published_at, received_at, queue,
                coalesce(exchange, '') as exchange, routing_key, payload, content_type, properties
            from mikkoo.audit where message_id = a.message_id
            order by received_at is not null, published_at limit 1
        ) as r
    ), found as (
        select *, judged is null and properties ~ '(content_type|\\\\)' as doubtful from matched
    ),
"""
MARKED = """
    marked as (
        update mikkoo.audit as r set received_at = f.seen_at from found as f
        where r.ctid = f.place and coalesce(r.received_at, 'infinity') = 'infinity' and r.ctid = any(array(
            select place from found where received_at is null and doubtful is not true {condition}))
        returning r.message_id
    )
"""
DELETED = """
    deleted as (
        delete from mikkoo.audit where coalesce(received_at, 'infinity') = 'infinity' and ctid = any(array(
            select place from found where received_at is null and doubtful is not true and fields = '{}'))
        returning message_id
    ),
"""
FINDINGS = """
    select f.n - 1, convert_to(f.queue, 'UTF8'), convert_to(f.exchange, 'UTF8'), f.fields,
        coalesce(f.doubtful, false), s.message_id is not null,
        extract(epoch from f.seen_at - f.published_at)::float8,
        case when f.doubtful then convert_to(f.content_type, 'UTF8') end,
        case when f.doubtful then convert_to(f.properties, 'UTF8') end
    from found as f left join ({settled}) as s on s.message_id = f.message_id
"""
SETTLE = {
    'delete': FOUND
    + DELETED
    + MARKED.format(condition="and fields <> '{}'")
    + FINDINGS.format(settled='select message_id from deleted union all select message_id from marked'),
    'mark': FOUND + MARKED.format(condition='') + FINDINGS.format(settled='select message_id from marked'),
}
NOTE = """
    insert into mikkoo.audit_difference (message_id, auditor, queue, fields, exchange, routing_key,
        content_type, body_sha256, body_size)
    values (%s, %s, %s, %s, %s, %s, %s, %s, %s)
    on conflict do nothing returning 1
"""
COUNT = """
    insert into mikkoo.audit_tally as t (auditor, queue, exchange, hour, received, duplicates, differing,
        expired, unknown, unidentified, latency_total, latency_max)
    select %s, n.queue, n.exchange, date_trunc('hour', now()), n.received, n.duplicates, n.differing,
        n.expired, n.unknown, n.unidentified, n.latency_total, n.latency_max
    from unnest(
        %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
        %s::bigint[], %s::float8[], %s::float8[]
    ) as n (queue, exchange, received, duplicates, differing, expired, unknown, unidentified, latency_total,
        latency_max)
    order by n.queue, n.exchange
    on conflict (auditor, queue, exchange, hour) do update set
        received = t.received + excluded.received,
        duplicates = t.duplicates + excluded.duplicates,
        differing = t.differing + excluded.differing,
        expired = t.expired + excluded.expired,
        unknown = t.unknown + excluded.unknown,
        unidentified = t.unidentified + excluded.unidentified,
        latency_total = t.latency_total + excluded.latency_total,
        latency_max = greatest(t.latency_max, excluded.latency_max)
"""
OUTSTANDING = """
    select count(*), count(*) filter (where published_at < clock_timestamp() - %s * interval '1 second'),
        (select message_id::text from mikkoo.audit where received_at is null and exchange = any(%s)
         order by published_at limit 1)
    from mikkoo.audit where received_at is null and exchange = any(%s)
"""
EXPIRE = """
    delete from mikkoo.audit where ctid = any(array(
        select ctid from mikkoo.audit
        where received_at is null and exchange = any(%s)
            and published_at < clock_timestamp() - %s * interval '1 second'
        order by published_at limit %s for update skip locked))
    returning convert_to(queue, 'UTF8'), convert_to(exchange, 'UTF8'), message_id::text
"""
PRUNE = """
    delete from mikkoo.{table} where ctid = any(array(
        select ctid from mikkoo.{table} where {column} < clock_timestamp() - %s * interval '1 second'
        limit %s))
"""
# Of an hour, when it was over
PRUNED = (
    ('audit', 'received_at'),
    ('audit_difference', 'seen_at'),
    ('audit_tally', "hour + interval '1 hour'"),
)


class Arrival(NamedTuple):
    """A message as it arrived. `at`: monotonic seconds."""

    message_id: str  # a UUID in its usual form
    exchange: str
    routing_key: str
    content_type: str
    body_sha256: bytes
    body_size: int
    at: float


class Finding(NamedTuple):
    """What an arrival is to the record that was found for it; `n`: its place among the arrivals asked about.

    `settled`: the record was outstanding and is settled now; else the message came again. `doubtful`: nothing
    was done yet, as `content_type` and `properties` have to be looked at first. `latency` in seconds.
    """

    n: int
    queue: str
    exchange: str
    fields: list[str]
    doubtful: bool
    settled: bool
    latency: float
    content_type: str | None
    properties: str | None


@dataclass(slots=True)
class Tally:
    """What is added to the counts of a queue and an exchange."""

    received: int = 0
    duplicates: int = 0
    differing: int = 0
    expired: int = 0
    unknown: int = 0
    unidentified: int = 0
    latency_total: float = 0.0
    latency_max: float = 0.0


Tallies = dict[tuple[str, str], Tally]  # by queue and exchange


class Records:
    """The records of one database, for one auditor. Raises DatabaseError, DatabaseLost, Stopping."""

    def __init__(self, session: Session, auditor: str) -> None:
        self.session = session
        self._auditor = auditor
        session.execute(PLAN)
        [(self._encoding,)] = session.fetch(ENCODING)

    def own(self) -> bool:
        """Whether no other process is this auditor; for as long as the session lives."""
        [(owned,)] = self.session.fetch(OWN, (LOCK, self._auditor))
        return bool(owned)

    def settle(
        self,
        arrivals: Sequence[Arrival],
        action: Literal['delete', 'mark'],
        now: float,
        judged: Sequence[bool | None] = (),
    ) -> list[Finding]:
        """Settle the records of these messages; one finding for each message that has a record.

        No message_id twice. A record that differs is marked, never deleted. `now`: monotonic seconds.
        """
        columns = (
            _array(arrival.message_id for arrival in arrivals),
            _array(_bytea_of(arrival.exchange) for arrival in arrivals),
            _array(_bytea_of(arrival.routing_key) for arrival in arrivals),
            _array(_bytea_of(arrival.content_type) for arrival in arrivals),
            _array(_bytea(arrival.body_sha256) for arrival in arrivals),
            _array(str(now - arrival.at) for arrival in arrivals),
            _array('NULL' if one is None else str(one) for one in judged or [None] * len(arrivals)),
        )
        rows = self.session.fetch(self._as_bytes(SETTLE[action]), columns, waits='settling')
        return [
            Finding(
                n, _text(queue), _text(exchange), fields, doubtful, settled, latency,
                _text_or_none(content_type), _text_or_none(properties),
            )
            for n, queue, exchange, fields, doubtful, settled, latency, content_type, properties in rows
        ]  # fmt: skip

    def note(self, arrival: Arrival, queue: str, fields: Sequence[str]) -> bool:
        """Keep how a message differs; False: it is kept already."""
        return bool(self.session.fetch(NOTE, (
            arrival.message_id, self._auditor, queue, list(fields), self.storable(arrival.exchange),
            self.storable(arrival.routing_key), self.storable(arrival.content_type) or None,
            arrival.body_sha256, arrival.body_size,
        )))  # fmt: skip

    def count(self, tallies: Tallies) -> None:
        """Add to the counts of the hour."""
        if tallies:
            keys = [(queue, self.storable(exchange)) for queue, exchange in tallies]
            columns = zip(*(astuple(tally) for tally in tallies.values()), strict=True)
            self.session.execute(
                COUNT,
                (
                    self._auditor,
                    *([key[part] for key in keys] for part in (0, 1)),
                    *(list(column) for column in columns),
                ),
                waits='counting',
            )

    def outstanding(self, exchanges: Sequence[str], grace: float) -> tuple[int, int, str | None]:
        """Of these exchanges: records without their message, those older than `grace`; the oldest's id."""
        [row] = self.session.fetch(
            OUTSTANDING, (grace, list(exchanges), list(exchanges)), waits='counting what is outstanding'
        )
        return row[0], row[1], row[2]

    def expire(self, exchanges: Sequence[str], keep: float) -> list[tuple[str, str, str]]:
        """Delete outstanding records of these exchanges that are older than `keep`, the oldest first.

        Their (queue, exchange, message_id); at most PRUNED_AT_ONCE, counted as expired.
        """
        with self.session.transaction():
            args = (list(exchanges), keep, PRUNED_AT_ONCE)
            rows = self.session.fetch(self._as_bytes(EXPIRE), args, waits='expiring')
            gone = [(_text(queue), _text(exchange), message_id) for queue, exchange, message_id in rows]
            tallies: Tallies = {}
            for queue, exchange, _ in gone:
                tallies.setdefault((queue, exchange), Tally()).expired += 1
            self.count(tallies)
        return gone

    def prune(self, keep: float) -> int:
        """Delete received records, differences and counts that are older than `keep`; how many."""
        deleted = 0
        for table, column in PRUNED:
            while True:
                sql = PRUNE.format(table=table, column=column)
                count = self.session.run(sql, (keep, PRUNED_AT_ONCE))[1]
                deleted += count
                if count < PRUNED_AT_ONCE:
                    break
        return deleted

    def storable(self, text: str) -> str:
        """A text that arrived, for a column: what the database cannot hold is written as an escape."""
        text = text.replace('\0', '\\x00')
        encoding = 'utf-8' if self._encoding in ('UTF8', NO_ENCODING) else 'ascii'
        return text.encode(encoding, 'backslashreplace').decode(encoding)

    def _as_bytes(self, sql: str) -> str:
        """The statement for this database: without an encoding its texts are bytes already."""
        return sql.replace("'UTF8'", f"'{NO_ENCODING}'") if self._encoding == NO_ENCODING else sql


def _array(items: Iterable[str]) -> str:
    """The literal of an array: one constant for PostgreSQL to read, not one for each element."""
    return f'{{{",".join(items)}}}'


def _bytea(data: bytes) -> str:
    return f'"\\\\x{data.hex()}"'


@lru_cache(CACHED)
def _bytea_of(text: str) -> str:
    return _bytea(text.encode('utf-8', 'surrogatepass'))


@lru_cache(CACHED)
def _decoded(data: bytes) -> str:
    return data.decode(errors='backslashreplace')


def _text(data: memoryview) -> str:
    """A text of a record; bytes that are no UTF-8 are written as escapes."""
    return _decoded(data.tobytes())


def _text_or_none(data: memoryview | None) -> str | None:
    return None if data is None else _text(data)
