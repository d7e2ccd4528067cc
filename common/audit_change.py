"""Audit records as people change them: their events sent again, or the records deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from operator import add

from mikkoo.common.postgres import Session

AT_ONCE = 10_000  # rows deleted in one transaction

RECORDED = 'select distinct message_id::text from mikkoo.audit where message_id = any(%s::uuid[])'
AGO = "select statement_timestamp() - %s * interval '1 second', statement_timestamp()"
STORED = f"""
    {RECORDED} union select message_id::text from mikkoo.audit_difference where message_id = any(%s::uuid[])
"""
RESEND = """
    select id, number from unnest(%s::text[]) with ordinality as given (id, place),
        mikkoo.resend_audited(id::uuid) as number
    order by place
"""
# What is deleted of each kind: the table, and the condition.
KINDS = {
    'received': ('audit', 'received_at < %s'),
    'outstanding': ('audit', 'received_at is null and published_at < %s'),
    'differences': ('audit_difference', 'seen_at < %s'),
    'tallies': ('audit_tally', "least(hour + interval '1 hour', %s) <= %s"),
}
OF_IDS = ' and message_id = any(%s::uuid[])'
COUNT = 'select count(*) from mikkoo.{table} where {where}'
# Its condition holds for the row as it is when it goes, whoever settles it meanwhile.
DELETE = """
    delete from mikkoo.{table} where {where}
        and ctid = any(array(select ctid from mikkoo.{table} where {where} limit %s))
"""


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many of which kind. `tallies`: rows of counts, of an hour each."""

    received: int = 0
    outstanding: int = 0
    differences: int = 0
    tallies: int = 0

    @property
    def total(self) -> int:
        return sum(astuple(self))

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class Selection:
    """What is to go: of these kinds, what is older than `before`, and only of these ids where they are given.

    `looked`: when this was chosen; of the hour of a count no more than that has passed.
    """

    kinds: tuple[str, ...]
    before: datetime
    looked: datetime
    ids: tuple[str, ...] | None = None

    def conditions(self) -> Iterator[tuple[str, str, str, list[object]]]:
        """Each kind, its table, the SQL condition and its arguments."""
        for kind in self.kinds:
            table, where = KINDS[kind]
            args: list[object] = [self.looked, self.before] if kind == 'tallies' else [self.before]
            if self.ids is None:
                yield kind, table, where, args
            else:
                yield kind, table, where + OF_IDS, [*args, list(self.ids)]


def recorded(session: Session, ids: Sequence[str]) -> set[str]:
    """Those message_ids that have a record."""
    return {found for (found,) in session.fetch(RECORDED, (list(ids),))}


def stored(session: Session, ids: Sequence[str]) -> set[str]:
    """Those message_ids that have a record, or a difference whose record is gone."""
    return {found for (found,) in session.fetch(STORED, (list(ids), list(ids)))}


def resend(session: Session, ids: Sequence[str]) -> list[tuple[str, int]]:
    """Insert the events of these records again, all or none; (message_id, new event id) of each.

    One whose record is gone is left out. Raises DatabaseError.
    """
    return [(found, number) for found, number in session.fetch(RESEND, (list(ids),))]


def select(
    session: Session, kinds: tuple[str, ...], before: datetime | float | None, ids: tuple[str, ...] | None
) -> Selection:
    """`before`: a time, or seconds ago by the server's clock; None: now."""
    [(ago, now)] = session.fetch(AGO, (before if isinstance(before, float) else 0.0,))
    return Selection(kinds, before if isinstance(before, datetime) else ago, now, ids)


def count(session: Session, chosen: Selection) -> Pruned:
    """What `prune` would delete now."""
    counts = {}
    for kind, table, where, args in chosen.conditions():
        [(number,)] = session.fetch(COUNT.format(table=table, where=where), args)
        counts[kind] = int(number)
    return Pruned(**counts)


def prune(session: Session, chosen: Selection) -> Iterator[Pruned]:
    """Delete, some thousands in a transaction; what each has deleted. Raises DatabaseError."""
    for kind, table, where, args in chosen.conditions():
        number = 1
        while number:
            _, number = session.run(DELETE.format(table=table, where=where), [*args, *args, AT_ONCE])
            yield Pruned(**{kind: number})
