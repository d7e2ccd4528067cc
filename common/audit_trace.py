"""What is stored of one audited event: record, receipt, differences, dead letters, and where PgQ has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from mikkoo.common.audit_report import tupled
from mikkoo.common.postgres import Session

RECORDS = """
    select event_id, queue, coalesce(exchange, ''), routing_key, content_type, properties, headers, payload,
        to_json(published_at) #>> '{}', to_json(received_at) #>> '{}',
        extract(epoch from coalesce(received_at, clock_timestamp()) - published_at)::float8
    from mikkoo.audit where message_id = %s::uuid order by published_at
"""
DIFFERENCES = """
    select auditor, to_json(seen_at) #>> '{}', exchange, routing_key, content_type,
        encode(body_sha256, 'hex'), body_size, fields
    from mikkoo.audit_difference where message_id = %s::uuid order by seen_at
"""
# An event that was recorded has its message_id in the properties, but for one that producers recorded by
# new_audit_record.
DEAD_LETTERS = """
    select id, queue, consumer, event_id, attempts, reason_code, reason, to_json(dead_at) #>> '{}'
    from mikkoo.dead_letter
    where (queue, event_id) in (select * from unnest(%s::text[], %s::int8[]))
        or position(%s in lower(properties)) > 0
    order by id
"""
LOCATED = """
    select consumer, to_json(event_time) #>> '{}', txid, attempt, to_json(due) #>> '{}'
    from mikkoo.locate_event(%s, %s)
"""
TICKS = """
    select max(tick_id) filter (where not txid_visible_in_snapshot(%s, tick_snapshot)),
        min(tick_id) filter (where txid_visible_in_snapshot(%s, tick_snapshot))
    from pgq.tick join pgq.queue on queue_id = tick_queue where queue_name = %s
"""
READERS = """
    select co_name, case when txid_visible_in_snapshot(%s, done.tick_snapshot) then 'passed'
        when sub_batch is not null and txid_visible_in_snapshot(%s, open.tick_snapshot) then 'in its batch'
        else 'to come' end, sub_batch
    from pgq.queue join pgq.subscription on sub_queue = queue_id join pgq.consumer on co_id = sub_consumer
        left join pgq.tick as done on (done.tick_queue, done.tick_id) = (queue_id, sub_last_tick)
        left join pgq.tick as open on (open.tick_queue, open.tick_id) = (queue_id, sub_next_tick)
    where queue_name = %s and co_name = coalesce(%s, co_name) order by 1
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A row of mikkoo.audit; '' is the default exchange. Times are ISO 8601 in UTC.

    `age`: seconds from publication to receipt, or until now where `received_at` is None.
    """

    event_id: int
    queue: str
    exchange: str
    routing_key: str
    content_type: str | None
    properties: str | None
    headers: str | None
    payload: str | None
    published_at: str
    received_at: str | None
    age: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of mikkoo.audit_difference: what arrived, and in which `fields` it is not as recorded."""

    auditor: str
    seen_at: str
    exchange: str
    routing_key: str
    content_type: str | None
    body_sha256: str
    body_size: int
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Buried:
    """A dead letter of the event."""

    id: int
    queue: str
    consumer: str
    event_id: int
    attempts: int
    reason_code: str
    reason: str
    dead_at: str


@dataclass(frozen=True, slots=True)
class Retry:
    """A row of PgQ's retry queue."""

    queue: str
    event_id: int
    consumer: str | None
    attempt: int
    due: str


@dataclass(frozen=True, slots=True)
class Reader:
    """How far a consumer is: 'passed', 'in its batch' (`batch`) or 'to come'."""

    consumer: str
    state: str
    batch: int | None


@dataclass(frozen=True, slots=True)
class Copy:
    """An event in PgQ's tables. `consumer`: whom alone it is for, being a retry; None: all.

    The batch that holds it is behind tick `after` and up to tick `until`. None: PgQ has that tick no more
    (`after`), or there is none yet (`until`).
    """

    queue: str
    event_id: int
    consumer: str | None
    event_time: str
    txid: int
    attempt: int
    after: int | None
    until: int | None
    readers: tuple[Reader, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """All of one message_id in one database."""

    records: tuple[Record, ...] = ()
    differences: tuple[Difference, ...] = ()
    dead_letters: tuple[Buried, ...] = ()
    retries: tuple[Retry, ...] = ()
    copies: tuple[Copy, ...] = ()

    @property
    def found(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


def trace(session: Session, message_id: str) -> Trace:
    """Look everywhere. `message_id`: a UUID in its usual form. Raises DatabaseError."""
    records = tuple(Record(*row) for row in session.fetch(RECORDS, (message_id,)))
    known = list(dict.fromkeys((record.queue, record.event_id) for record in records))
    args = ([queue for queue, _ in known], [number for _, number in known], message_id)
    buried = tuple(Buried(*row) for row in session.fetch(DEAD_LETTERS, args))
    known = list(dict.fromkeys([*known, *((letter.queue, letter.event_id) for letter in buried)]))
    differences = tuple(Difference(*tupled(row)) for row in session.fetch(DIFFERENCES, (message_id,)))
    return Trace(records, differences, buried, *_located(session, known))


def _located(
    session: Session, known: Sequence[tuple[str, int]]
) -> tuple[tuple[Retry, ...], tuple[Copy, ...]]:
    retries, copies = [], []
    for queue, number in known:
        for consumer, time, txid, attempt, due in session.fetch(LOCATED, (queue, number)):
            if txid is None:
                retries.append(Retry(queue, number, consumer, attempt, due))
            else:
                place = (queue, number, consumer, time, txid, attempt)
                copies.append(Copy(*place, *_ticks(session, queue, txid), _readers(session, *place)))
    return tuple(retries), tuple(copies)


def _ticks(session: Session, queue: str, txid: int) -> tuple[int | None, int | None]:
    [(after, until)] = session.fetch(TICKS, (txid, txid, queue))
    return after, until


def _readers(
    session: Session, queue: str, number: int, consumer: str | None, time: str, txid: int, attempt: int
) -> tuple[Reader, ...]:
    rows = session.fetch(READERS, (txid, txid, queue, consumer))
    return tuple(
        Reader(name, state, batch if state == 'in its batch' else None) for name, state, batch in rows
    )
