"""`mikkood check --connect` for auditors: what they need, and audited routes that none of them sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from mikkoo.common.audit_report import FIRST_VERSION, Audits, Route
from mikkoo.common.errors import DatabaseError
from mikkoo.common.pgq_facts import lacking, mikkoo_schema_version, raise_if_read_only
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import AuditorSettings
from mikkoo.supervisor import audit_broker
from mikkoo.supervisor.audit_broker import Kinds
from mikkoo.supervisor.coverage import Sight, sight
from mikkoo.supervisor.probe import CONNECT_TIMEOUT, NO_PRIVILEGE, STATEMENT_TIMEOUT, Probe, login_remedy

LATELY = 7 * 86_400.0  # seconds; the records whose routes are looked at
NAMED = 10  # routes in one probe
# Of a table, or of a column of it
NEEDED = """
    select need from unnest(array['SELECT', 'DELETE']) as need
        where not has_table_privilege('mikkoo.audit', need)
    union all select 'UPDATE (received_at)'
        where not has_column_privilege('mikkoo.audit', 'received_at', 'UPDATE')
    union all select need || ' of ' || name
        from (values ('audit_tally', 'SELECT'), ('audit_tally', 'INSERT'), ('audit_tally', 'UPDATE'),
            ('audit_tally', 'DELETE'), ('audit_difference', 'SELECT'), ('audit_difference', 'INSERT'),
            ('audit_difference', 'DELETE'), ('dead_letter', 'SELECT')) as wanted (name, need)
        where not has_table_privilege('mikkoo.' || name, need)
"""
CALLED = ('mikkoo.resend_audited(uuid)', 'mikkoo.locate_event(text,bigint)')
USER = 'select quote_ident(current_user)'


def run(auditors: Sequence[AuditorSettings], pulse: Pulse) -> Iterator[Probe]:
    """Probe each auditor's broker, then the databases, whose routes are looked at by all their auditors."""
    kinds: Kinds = {}
    for auditor in auditors:
        yield from audit_broker.run(auditor, pulse, kinds)
    databases: dict[str, list[AuditorSettings]] = {}
    for auditor in auditors:
        databases.setdefault(auditor.postgres_url, []).append(auditor)
    for url, sharing in databases.items():
        yield from _database(url, sharing, pulse, kinds)


def _database(url: str, auditors: Sequence[AuditorSettings], pulse: Pulse, kinds: Kinds) -> Iterator[Probe]:
    subject = f'audit of {", ".join(auditor.name for auditor in auditors)}'
    try:
        session = Session.connect(
            url, pulse, application_name='mikkood check', timeout=CONNECT_TIMEOUT,
            statement_timeout=STATEMENT_TIMEOUT,
        )  # fmt: skip
    except DatabaseError as error:
        yield Probe(subject, 'login', 'failed', str(error), login_remedy(error))
        return
    with closing(session):
        yield Probe(subject, 'login', 'ok', session.where)
        try:
            raise_if_read_only(session)
            version = mikkoo_schema_version(session)
            if version is None or version < FIRST_VERSION:
                found = 'is not installed' if version is None else f'version {version}'
                text = f'{found}: an auditor needs version {FIRST_VERSION}'
                yield Probe(subject, 'mikkoo.sql', 'failed', text, 'mikkood sql | psql DATABASE')
                return
            yield Probe(subject, 'mikkoo.sql', 'ok', f'version {version}')
            lacks = [need for (need,) in session.fetch(NEEDED)] + lacking(session, *CALLED)
            if lacks:
                yield _lacking(subject, session, 'lacks ' + ', '.join(lacks))
                return
            yield Probe(subject, 'privileges', 'ok', 'all that an auditor needs')
            yield from routes(subject, Audits(session).routes(LATELY), auditors, kinds)
        except DatabaseError as error:
            if error.sqlstate == NO_PRIVILEGE:
                yield _lacking(subject, session, str(error))
            else:
                yield Probe(subject, 'questions', 'failed', str(error), 'see the words of the server')


def routes(
    subject: str, found: Sequence[Route], auditors: Sequence[AuditorSettings], kinds: Kinds
) -> Iterator[Probe]:
    """Which of the routes of recent records no auditor sees. A warning: their records will be late."""
    unseen: dict[str, list[Route]] = {}
    untold: dict[str, list[Route]] = {}
    for route in found:
        sights = {
            sight(route.exchange, kinds.get((one.rabbitmq, route.exchange)), route.routing_key, one.bindings)
            for one in auditors
        }
        if Sight.SEEN not in sights:
            group = untold if Sight.UNTOLD in sights else unseen
            group.setdefault(route.exchange, []).append(route)
    if not unseen and not untold:
        yield Probe(subject, 'routes', 'ok', f'{len(found)} in recent records, all seen')
    for exchange, missed in unseen.items():
        yield _unseen(subject, exchange, missed)
    for exchange, some in untold.items():
        yield Probe(
            subject, 'routes', 'warn',
            f'cannot tell of exchange {exchange!r} whether an auditor sees {_named(some)}',
            'it is no direct, fanout or topic exchange, or its type may not be asked for (configure)',
        )  # fmt: skip


def _unseen(subject: str, exchange: str, missed: Sequence[Route]) -> Probe:
    if not exchange:
        return Probe(
            subject, 'routes', 'warn',
            f'the default exchange cannot be tapped: no auditor sees {_named(missed)}',
            'publish to an exchange that the queues are bound to, or do not audit these events',
        )  # fmt: skip
    return Probe(
        subject, 'routes', 'warn', f'no auditor sees, of exchange {exchange!r}, {_named(missed)}',
        "add a binding to the auditor's bindings, or have these events not audited",
    )  # fmt: skip


def _named(found: Sequence[Route]) -> str:
    named = [f'{route.routing_key!r} (queue {route.queue}, {route.count:,})' for route in found[:NAMED]]
    more = len(found) - len(named)
    return ', '.join(named) + (f' and {more:,} more' if more else '')


def _lacking(subject: str, session: Session, text: str) -> Probe:
    [(user,)] = session.fetch(USER)
    return Probe(subject, 'privileges', 'failed', text, f'GRANT mikkoo_auditor TO {user};')
