"""`mikkood audit`: whether all that was recorded has arrived, what is stored of one event, and mending it.

The databases of the auditors are asked, as their logins; where there is no auditor those of the workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime

from mikkoo.common import audit_change, audit_report, config
from mikkoo.common.audit_change import Pruned, Selection
from mikkoo.common.audit_report import Audits, Report, Scope
from mikkoo.common.audit_trace import trace
from mikkoo.common.errors import DatabaseError, Exit
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import AuditorSettings
from mikkoo.supervisor import audit_output, question
from mikkoo.supervisor.lifecycle import plural
from mikkoo.supervisor.places import configuration_path
from mikkoo.supervisor.refusal import Refusal

ALL = tuple(audit_change.KINDS)
OF_RECORDS = ('received', 'outstanding', 'differences')


@dataclass(frozen=True, slots=True)
class Database:
    """A database that is open, and the auditors of the configuration that settle its records."""

    session: Session
    auditors: tuple[AuditorSettings, ...]

    @property
    def where(self) -> str:
        return self.session.where

    def scope(self, queue: str | None, exchange: str | None, since: datetime | float | None) -> Scope:
        graces: dict[str, float] = {}
        for auditor in self.auditors:
            for name in auditor.exchanges:
                graces[name] = min(auditor.grace, graces.get(name, auditor.grace))
        longest = max((auditor.grace for auditor in self.auditors), default=audit_report.GRACE)
        return Scope(queue, exchange, since, graces, longest)


@contextmanager
def opened(configuration: str | None) -> Iterator[tuple[list[Database], list[str]]]:
    """Each database once, and why some could not be opened. Raises ConfigurationError, Refusal."""
    path = configuration_path(configuration)
    settings = config.load(path)
    urls: dict[str, list[AuditorSettings]] = {}
    for auditor in settings.auditors:
        urls.setdefault(auditor.postgres_url, []).append(auditor)
    if not urls:
        urls = {worker.postgres_url: [] for worker in settings.workers}
    if not urls:
        raise Refusal(f'{path} has neither an auditor nor a worker')
    with ExitStack() as stack:
        pulse = stack.enter_context(closing(Pulse()))
        found: dict[tuple[str, str], Database] = {}
        failures: list[str] = []
        for url, auditors in urls.items():
            try:
                session = Session.connect(url, pulse, application_name='mikkood audit')
                stack.enter_context(closing(session))
                audits = Audits(session)
                audits.require()
                known = found.setdefault(audits.identity(), Database(session, ()))
                found[audits.identity()] = Database(known.session, (*known.auditors, *auditors))
            except DatabaseError as error:
                failures.append(str(error))
        yield list(found.values()), failures


def require_all(failures: Sequence[str]) -> None:
    """Raise Refusal if a database could not be opened."""
    if failures:
        raise Refusal('\n'.join(failures), Exit.UNAVAILABLE)


def report(
    databases: Sequence[Database],
    failures: Sequence[str],
    scope: tuple[str | None, str | None, datetime | float | None],
    most: int | None,
    *,
    as_json: bool,
) -> int:
    """`scope`: queue, exchange, since. `most`: how many of each kind are named; None: all."""
    failed = list(failures)
    done: list[tuple[Database, Report]] = []
    for database in databases:
        try:
            done.append((database, Audits(database.session).report(database.scope(*scope), most)))
        except DatabaseError as error:
            failed.append(str(error))
    answer = audit_output.answer([(each.where, each.auditors, found) for each, found in done], failed, scope)
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        audit_output.report(answer)
    if not all(group.clean for _, found in done for group in found.groups):
        return Exit.FAILURE
    return Exit.UNAVAILABLE if failed else Exit.OK


def show(databases: Sequence[Database], message_id: str, *, as_json: bool) -> int:
    """Raises Refusal where nothing is stored of it anywhere, DatabaseError."""
    traces = [(database.where, trace(database.session, message_id)) for database in databases]
    found = [(where, one) for where, one in traces if one.found]
    if not found:
        raise Refusal(
            f'nothing is stored of {message_id} in {_places(databases)}: it was never recorded, or its '
            'transaction rolled back, or its record was deleted on arrival or by age'
        )
    if as_json:
        stored = [{'database': where, **asdict(one)} for where, one in found]
        print(json.dumps({'message_id': message_id, 'found': stored}, indent=2))
    else:
        for where, one in found:
            audit_output.trace(where, message_id, one)
    return Exit.OK


def resend(databases: Sequence[Database], ids: Sequence[str]) -> int:
    """Insert events again from their records. Raises Refusal where one has none; then nothing was done."""
    chosen = [(database, audit_change.recorded(database.session, ids)) for database in databases]
    _refuse_unrecorded(databases, ids, set().union(*(found for _, found in chosen)))
    gone = set(ids)
    for database, found in chosen:
        for message_id, number in audit_change.resend(database.session, [id for id in ids if id in found]):
            print(f'{database.where}: {message_id} is inserted again as event {number}')
            gone.discard(message_id)
    if gone:
        raise Refusal(f'not sent again, as their records went at this moment: {", ".join(sorted(gone))}')
    return Exit.OK


def prune(
    databases: Sequence[Database],
    kinds: tuple[str, ...],
    before: datetime | float | None,
    ids: tuple[str, ...] | None,
    *,
    ask: bool,
) -> int:
    """Delete what is older than `before`, or what is stored of some ids. Raises Refusal, DatabaseError."""
    chosen = [(database, audit_change.select(database.session, kinds, before, ids)) for database in databases]
    counts = [audit_change.count(database.session, selection) for database, selection in chosen]
    if ids is not None:
        _refuse_unrecorded(databases, ids, _stored(databases, ids))
    if not any(count.total for count in counts):
        print('nothing matches')
        return Exit.OK
    for (database, _), count in zip(chosen, counts, strict=True):
        print(f'{database.where}: {_phrase(count)}')
    if ask and sum(count.total for count in counts) > 1 and not question.agreed('Delete them?'):
        print('nothing was done')
        return Exit.FAILURE
    for database, selection in chosen:
        _prune(database, selection)
    return Exit.OK


def _prune(database: Database, selection: Selection) -> None:
    """What was done is said even where an error ends it."""
    gone = Pruned()
    try:
        for step in audit_change.prune(database.session, selection):
            gone += step
    finally:
        print(f'{database.where}: deleted {_phrase(gone)}')


def _stored(databases: Sequence[Database], ids: Sequence[str]) -> set[str]:
    return set().union(*(audit_change.stored(database.session, ids) for database in databases))


def _refuse_unrecorded(databases: Sequence[Database], ids: Sequence[str], found: set[str]) -> None:
    missing = [f'{one} has no record in {_places(databases)}' for one in ids if one not in found]
    if missing:
        raise Refusal('\n'.join([*missing, 'nothing was done']))


def _places(databases: Sequence[Database]) -> str:
    return ', '.join(database.where for database in databases)


def _phrase(count: Pruned) -> str:
    return (
        f'{count.received:,} received and {count.outstanding:,} outstanding '
        f'{plural("record", count.outstanding)}, '
        f'{count.differences:,} {plural("difference", count.differences)}, '
        f'{count.tallies:,} {plural("hour", count.tallies)} of counts'
    )
