"""The audit's records as an auditor changes them: settled, counted, pruned, in mikkoo.sql's tables.

Texts that arrived are compared as bytes: what no database encoding holds, a NUL for instance, is a difference
and no error. So are records of a database of SQL_ASCII, which may be no text either.

No auditor sees the default exchange, so none settles or removes its records: they stay, and the report calls
them late, until `mikkood audit prune`. They are a mistake that shall be seen, not one that goes away by age.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from typing import Literal, NamedTuple

from mikkoo.common.audit_sql import (
    COUNT,
    ENCODING,
    EXPIRE,
    NOTE,
    OUTSTANDING,
    OWN,
    PLAN,
    PRUNE,
    PRUNED,
    SETTLE,
)
from mikkoo.common.postgres import Session

FIRST_VERSION = 5  # of mikkoo.sql with an auditor's tables
PRUNED_AT_ONCE = 10_000  # rows in one transaction
COUNTED_NAME = 255  # characters of a name that is counted: a record made by hand may hold any text
LOCK = 0x6D696B61  # 'mika', the first key of the advisory lock; the second is of the auditor's name

NO_ENCODING = 'SQL_ASCII'  # what a database has whose texts are any bytes
CACHED = 1024  # texts whose literals are kept: exchanges, routing keys and content types are few


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
            args = (list(exchanges), keep, PRUNED_AT_ONCE)
            rows = self.session.fetch(self._as_bytes(EXPIRE), args, waits='expiring')
            gone = [(_text(queue), _text(exchange), message_id) for queue, exchange, message_id in rows]
            tallies: Tallies = {}
            for queue, exchange, _ in gone:
                tallies.setdefault((queue, exchange), Tally()).expired += 1
            self.count(tallies)
        return gone

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
