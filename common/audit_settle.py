"""The audit's records as an auditor changes them: settled, counted, pruned, in mikkoo.sql's tables.

Texts that arrived are compared as bytes: what no database encoding holds, a NUL for instance, is a difference
and no error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Literal

from mikkoo.common.postgres import Session

FIRST_VERSION = 5  # of mikkoo.sql with an auditor's tables
PRUNED_AT_ONCE = 10_000  # rows in one transaction
COUNTED_NAME = 255  # characters of a name that is counted: a record made by hand may hold any text
LOCK = 0x6D696B61  # 'mika', the first key of the advisory lock; the second is of the auditor's name

OWN = 'select pg_try_advisory_lock(%s, hashtext(%s))'
# Whatever the statistics say of a table that is filled and emptied all day: by the key, row by row.
PLAN = 'set enable_hashjoin = off; set enable_mergejoin = off; set enable_seqscan = off'
ENCODING = "select current_setting('server_encoding') = 'UTF8'"

# One arrival settles one record of its message_id, the oldest outstanding. `judged`: whether the content type
# is as recorded, where that took a look into the properties; NULL: not looked at yet, so in doubt it waits.
FOUND = """
    with arrived as (
        select * from unnest(
            %s::int[], %s::uuid[], %s::bytea[], %s::bytea[], %s::bytea[], %s::bytea[], %s::float8[],
            %s::bool[]
        ) as a (n, message_id, exchange, routing_key, content_type, body_sha256, age, judged)
    ), matched as (
        select distinct on (a.n) a.n, a.judged, clock_timestamp() - a.age * interval '1 second' as seen_at,
            r.message_id, r.published_at, r.received_at, r.queue, coalesce(r.exchange, '') as exchange,
            r.content_type, r.properties, array_remove(array[
                case when convert_to(coalesce(r.exchange, ''), 'UTF8') <> a.exchange then 'exchange' end,
                case when convert_to(r.routing_key, 'UTF8') <> a.routing_key then 'routing_key' end,
                case when not coalesce(
                    a.judged, convert_to(coalesce(r.content_type, ''), 'UTF8') = a.content_type
                ) then 'content_type' end,
                case when sha256(convert_to(coalesce(r.payload, ''), 'UTF8')) <> a.body_sha256 then 'body' end
            ], null) as fields
        from arrived as a join mikkoo.audit as r on r.message_id = a.message_id
        order by a.n, r.received_at is not null, r.published_at
    ), found as (
        select *, judged is null and properties ~ '(content_type|\\\\)' as doubtful from matched
    ),
"""
MARKED = """
    marked as (
        update mikkoo.audit as r set received_at = f.seen_at from found as f
        where r.message_id = f.message_id and r.published_at = f.published_at and r.received_at is null
            and f.received_at is null and f.doubtful is not true {condition}
        returning f.n
    )
"""
DELETED = """
    deleted as (
        delete from mikkoo.audit as r using found as f
        where r.message_id = f.message_id and r.published_at = f.published_at and r.received_at is null
            and f.received_at is null and f.doubtful is not true and f.fields = '{}'
        returning f.n
    ),
"""
FINDINGS = """
    select f.n, f.queue, f.exchange, f.fields, coalesce(f.doubtful, false), s.n is not null,
        extract(epoch from f.seen_at - f.published_at)::float8,
        case when f.doubtful then f.content_type end, case when f.doubtful then f.properties end
    from found as f left join ({settled}) as s on s.n = f.n
"""
SETTLE = {
    'delete': FOUND
    + DELETED
    + MARKED.format(condition="and f.fields <> '{}'")
    + FINDINGS.format(settled='select n from deleted union all select n from marked'),
    'mark': FOUND + MARKED.format(condition='') + FINDINGS.format(settled='select n from marked'),
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
    returning queue, exchange, message_id::text
"""
PRUNE = """
    delete from mikkoo.{table} where ctid = any(array(
        select ctid from mikkoo.{table}
        where {column} < clock_timestamp() - %s * interval '1 second' {own} limit %s))
"""
# Each auditor's differences and counts are kept for as long as it is told to: they are what tells of a loss.
# Of an hour, when it was over.
PRUNED = (
    ('audit', 'received_at', ''),
    ('audit_difference', 'seen_at', 'and auditor = %s'),
    ('audit_tally', "hour + interval '1 hour'", 'and auditor = %s'),
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message as it arrived. `at`: monotonic seconds."""

    message_id: str  # a UUID in its usual form
    exchange: str
    routing_key: str
    content_type: str
    body_sha256: bytes
    body_size: int
    at: float


@dataclass(frozen=True, slots=True)
class Finding:
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

    def add(self, other: Tally) -> None:
        longest = max(self.latency_max, other.latency_max)
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        self.latency_max = longest


Tallies = dict[tuple[str, str], Tally]  # by queue and exchange


class Records:
    """The records of one database, for one auditor. Raises DatabaseError, DatabaseLost, Stopping."""

    def __init__(self, session: Session, auditor: str) -> None:
        self.session = session
        self._auditor = auditor
        session.execute(PLAN)
        [(self._unicode,)] = session.fetch(ENCODING)

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
            list(range(len(arrivals))),
            [arrival.message_id for arrival in arrivals],
            [_bytes(arrival.exchange) for arrival in arrivals],
            [_bytes(arrival.routing_key) for arrival in arrivals],
            [_bytes(arrival.content_type) for arrival in arrivals],
            [arrival.body_sha256 for arrival in arrivals],
            [now - arrival.at for arrival in arrivals],
            list(judged) or [None] * len(arrivals),
        )
        rows = self.session.fetch(SETTLE[action], columns, waits='settling')
        return [Finding(*row) for row in rows]

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
            counted: Tallies = {}  # names that are one when they are cut or escaped are one row
            for key, tally in tallies.items():
                queue, exchange = (self.storable(name)[:COUNTED_NAME] for name in key)
                counted.setdefault((queue, exchange), Tally()).add(tally)
            keys = list(counted)
            columns = zip(*(astuple(tally) for tally in counted.values()), strict=True)
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
            rows = self.session.fetch(EXPIRE, (list(exchanges), keep, PRUNED_AT_ONCE), waits='expiring')
            tallies: Tallies = {}
            for queue, exchange, _ in rows:
                tallies.setdefault((queue, exchange), Tally()).expired += 1
            self.count(tallies)
        return [(queue, exchange, message_id) for queue, exchange, message_id in rows]

    def prune(self, keep: float) -> int:
        """Delete received records, this auditor's differences and counts, older than `keep`; how many."""
        deleted = 0
        for table, column, own in PRUNED:
            sql = PRUNE.format(table=table, column=column, own=own)
            args = (keep, *([self._auditor] if own else []), PRUNED_AT_ONCE)
            while True:
                count = self.session.run(sql, args)[1]
                deleted += count
                if count < PRUNED_AT_ONCE:
                    break
        return deleted

    def storable(self, text: str) -> str:
        """A text that arrived, for a column: what the database cannot hold is written as an escape."""
        text = text.replace('\0', '\\x00')
        encoding = 'utf-8' if self._unicode else 'ascii'
        return text.encode(encoding, 'backslashreplace').decode(encoding)


def _bytes(text: str) -> bytes:
    return text.encode('utf-8', 'surrogatepass')
