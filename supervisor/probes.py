"""`mikkood check --connect`: tries what the configuration names, and says what to do about each failure.

Every group of probes is a generator, so that one is shown while the next is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TypeVar

from mikkoo.common import pgq, pgq_keep
from mikkoo.common.amqp import Link
from mikkoo.common.errors import BrokerError, BrokerRefused, DatabaseError
from mikkoo.common.pgq_facts import FUTURE_TICK, PL_ONLY, only_first_tick, raise_if_read_only
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import AuditorSettings, BrokerSettings, Settings, WorkerSettings
from mikkoo.supervisor import audit_probes
from mikkoo.supervisor.probe import CONNECT_TIMEOUT, NO_PRIVILEGE, STATEMENT_TIMEOUT, Probe, login_remedy

OLD_TICK = 120.0  # seconds; PgQ's default is a tick a minute even where nothing happens
NOT_ALLOWED = 530  # AMQP 0-9-1: connection.open, the virtual host

Child = WorkerSettings | AuditorSettings

T = TypeVar('T')
C = TypeVar('C', WorkerSettings, Child)


def run(settings: Settings) -> Iterator[Probe]:
    """Probe every database and every broker once, then workers and auditors. Needs no running mikkood."""
    with closing(Pulse()) as pulse:
        for url, workers in _grouped(settings.workers, lambda worker: worker.postgres_url):
            yield from database(url, workers, pulse)
        children: tuple[Child, ...] = (*settings.workers, *settings.auditors)
        for broker_settings, sharing in _grouped(children, lambda child: child.rabbitmq):
            yield from broker(broker_settings, sharing, pulse)
        yield from audit_probes.run(settings.auditors, pulse)


def database(url: str, workers: list[WorkerSettings], pulse: Pulse) -> Iterator[Probe]:
    """A database, and the queues that its workers read."""
    subject = f'database of {_names(workers)}'
    try:
        session = Session.connect(
            url, pulse, application_name='mikkood check', timeout=CONNECT_TIMEOUT,
            statement_timeout=STATEMENT_TIMEOUT,
        )  # fmt: skip
    except DatabaseError as error:
        yield Probe(subject, 'login', 'failed', str(error), login_remedy(error))
        return
    with closing(session):
        try:
            yield Probe(
                subject, 'login', 'ok', f'{session.where}, PostgreSQL {_release(session.server_version)}'
            )
            installed = _installed(subject, session)
            yield installed
            if installed.outcome == 'failed':
                return
            yield _schema(subject, session)
            yield from _writable(subject, session)
            for worker in workers:
                yield from _queue(worker, session)
        except DatabaseError as error:
            yield Probe(subject, 'questions', 'failed', str(error), 'see the words of the server')


def broker(settings: BrokerSettings, sharing: Iterable[Child], pulse: Pulse) -> Iterator[Probe]:
    """A broker: the login, TLS before it, and the virtual host."""
    subject = f'broker of {_names(sharing)}'
    host = f'vhost {settings.vhost!r}'
    try:
        link = Link.open(settings, pulse, properties={'purpose': 'mikkood check'}, timeout=CONNECT_TIMEOUT)
    except BrokerError as error:
        if isinstance(error, BrokerRefused) and error.code == NOT_ALLOWED:
            yield Probe(subject, 'login', 'ok', f'as {settings.username}')
            yield Probe(subject, 'vhost', 'failed', str(error), _vhost_remedy(settings))
        else:
            yield Probe(subject, 'login', 'failed', str(error), _broker_remedy(error, settings))
        return
    try:
        place = f'{link.node[0]}:{link.node[1]}'
        version = f'RabbitMQ {link.server_version}'
        yield Probe(subject, 'login', 'ok', f'{place}, {version}, as {settings.username}{_tls(settings)}')
        link.publisher_channel(confirm=True).close()
        yield Probe(subject, 'vhost', 'ok', f'{host}, with publisher confirms')
    except BrokerError as error:
        yield Probe(subject, 'vhost', 'failed', str(error), 'see the log of the broker')
    finally:
        link.close()


def _installed(subject: str, session: Session) -> Probe:
    version = pgq.pgq_version(session)
    if version is None:
        return Probe(subject, 'PgQ', 'failed', 'is not installed', 'CREATE EXTENSION pgq;')
    if version == PL_ONLY:
        return Probe(
            subject, 'PgQ', 'warn', 'pgq_pl_only: its pgq.version() is NULL, so pgqd ignores the database',
            "CREATE OR REPLACE FUNCTION pgq.version() RETURNS text LANGUAGE sql AS $$ SELECT '3.5'::text $$;",
        )  # fmt: skip
    return Probe(subject, 'PgQ', 'ok', version)


def _schema(subject: str, session: Session) -> Probe:
    try:
        version, ours = pgq.mikkoo_schema_version(session), pgq.SCHEMA_VERSION
    except DatabaseError as error:
        if error.sqlstate != NO_PRIVILEGE:
            raise
        return Probe(subject, 'mikkoo.sql', 'failed', 'is installed, but not for this user', 'see privileges')
    install = 'mikkood sql | psql DATABASE'
    if version is None:
        text = (
            'is not installed, or is of Mikkoo 3 or older: dead letters cannot be kept, ticks are polled for '
            'and retries wait for pgqd'
        )
        return Probe(subject, 'mikkoo.sql', 'warn', text, install)
    if version < ours:
        lost = ': events that end their worker are not set apart'
        if version < pgq_keep.FIRST_VERSION:
            lost = ': dead letters cannot be kept'
        text = f'version {version}, this mikkood brings {ours}{lost}'
        return Probe(subject, 'mikkoo.sql', 'warn', text, install)
    if version > ours:
        text = f'version {version}, newer than the {ours} of this mikkood'
        return Probe(subject, 'mikkoo.sql', 'warn', text, 'upgrade mikkood')
    return Probe(subject, 'mikkoo.sql', 'ok', f'version {version}')


def _writable(subject: str, session: Session) -> Iterator[Probe]:
    try:
        raise_if_read_only(session)
    except DatabaseError as error:
        yield Probe(
            subject, 'read only', 'failed', str(error),
            'postgres_url: name all servers, and target_session_attrs=read-write; or find who made it so',
        )  # fmt: skip


def _queue(worker: WorkerSettings, session: Session) -> Iterator[Probe]:
    subject = f'worker {worker.name}'
    exists = pgq.queue_exists(session, worker.queue)
    if exists:
        yield Probe(subject, 'queue', 'ok', worker.queue)
    elif worker.create_queue:
        yield Probe(subject, 'queue', 'ok', f'{worker.queue} is not there; the worker creates it')
    else:
        yield _no_queue(subject, worker.queue, pgq.nearest_queue(session, worker.queue))
    yield _privileges(subject, worker, session)
    if exists:
        ahead = pgq.ahead(session, worker.queue)
        age = pgq.last_tick_age(session, worker.queue)
        if ahead is not None:
            yield Probe(subject, 'ticking', 'failed', str(ahead), 'docs/operations.md: After a restore')
        elif age is not None and age < -FUTURE_TICK:
            yield _future_tick(subject, -age, worker.queue)
        else:
            yield _ticking(subject, age, first=only_first_tick(session, worker.queue))


def _no_queue(subject: str, queue: str, nearest: str | None) -> Probe:
    create = "SELECT pgq.create_queue('{}');".format(queue.replace("'", "''"))
    meant = f'did you mean {nearest!r}? Else: ' if nearest else ''
    return Probe(subject, 'queue', 'failed', f'PgQ has no queue {queue!r}', meant + create)


def _privileges(subject: str, worker: WorkerSettings, session: Session) -> Probe:
    missing = pgq.missing_privileges(session, worker.queue, create_queue=worker.create_queue)
    if not missing:
        return Probe(subject, 'privileges', 'ok', 'all that a relay needs')
    lacks, grants = zip(*(line.split(': ', 1) for line in missing), strict=True)
    return Probe(
        subject, 'privileges', 'failed', 'lacks ' + ', '.join(lacks), ' '.join(dict.fromkeys(grants))
    )


def _future_tick(subject: str, ahead: float, queue: str) -> Probe:
    force = "SELECT pgq.force_tick('{}');".format(queue.replace("'", "''"))
    text = f'the last tick is {ahead:.0f} s in the future, as the clock was set back: PgQ waits for that time'
    return Probe(subject, 'ticking', 'failed', text, f'{force} a worker that runs does it by itself')


def _ticking(subject: str, age: float | None, *, first: bool) -> Probe:
    if age is not None and age <= OLD_TICK and first:
        return Probe(
            subject, 'ticking', 'warn',
            f'only the first tick, made with the queue, {max(0.0, age):.0f} s old; is pgqd running?',
            'start pgqd for this database: see base_connstr and database_list in pgqd.ini',
        )  # fmt: skip
    if age is not None and age <= OLD_TICK:
        return Probe(subject, 'ticking', 'ok', f'the last tick is {max(0.0, age):.0f} s old')
    found = 'there has been no tick' if age is None else f'the last tick is {age:.0f} s old'
    return Probe(
        subject, 'ticking', 'failed', f'{found}: without ticks PgQ gives no events',
        'start pgqd for this database; see ticker_paused and ticker_idle_period in pgq.queue',
    )  # fmt: skip


def _broker_remedy(error: BrokerError, settings: BrokerSettings) -> str:
    if 'TLS' in str(error) or 'ssl_options' in str(error):
        return 'see ssl_options: ca_certs, and whether host is the name in the certificate'
    if isinstance(error, BrokerRefused):
        return f'see username and password; rabbitmqctl authenticate_user {settings.username}'
    return 'see that RabbitMQ runs, that host and port are right, and that a TLS port has ssl_options'


def _vhost_remedy(settings: BrokerSettings) -> str:
    return (
        f"rabbitmqctl add_vhost '{settings.vhost}', if there is none; "
        f"rabbitmqctl set_permissions -p '{settings.vhost}' {settings.username} '^$' '.*' '.*'"
    )


def _tls(settings: BrokerSettings) -> str:
    if settings.ssl_options is None:
        return ''
    return ', TLS' if settings.ssl_options.verify else ', TLS without verification'


def _release(version: int) -> str:
    """150018 is 15.18."""
    return f'{version // 10000}.{version % 10000}'


def _names(children: Iterable[Child]) -> str:
    return ', '.join(child.name for child in children)


def _grouped(children: Iterable[C], key: Callable[[C], T]) -> Iterable[tuple[T, list[C]]]:
    groups: dict[T, list[C]] = {}
    for child in children:
        groups.setdefault(key(child), []).append(child)
    return groups.items()
