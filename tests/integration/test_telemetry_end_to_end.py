"""What the whole product tells of itself: statsd and Sentry on real sockets, and no password anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mikkoo.common.errors import Exit
from tests.conftest import Database
from tests.integration.product import ARRIVAL, SAVE, Product
from tests.servers.sentry import SentryServer
from tests.servers.statsd import StatsdServer
from tests.servers.waiting import until

GOOD, BAD = 300, 3
INSERT = """
    select count(mikkoo.insert_event(%s, '', %s, format('{"n": %%s}', n), null, %s, null))
    from generate_series(1, %s) as n
"""
MARK = 'Zebra9Secret'  # a part of every password here
REFUSED = ('refused', 'conninfo', 'nowhere')  # workers that PostgreSQL does not let in


@pytest.fixture
def statsd() -> Iterator[StatsdServer]:
    with StatsdServer() as server:
        yield server


@pytest.fixture
def sentry() -> Iterator[SentryServer]:
    with SentryServer() as server:
        yield server


def to(statsd: StatsdServer, prefix: str) -> dict[str, Any]:
    return {'enabled': True, 'host': '127.0.0.1', 'port': statsd.port, 'prefix': prefix}


def insert(product: Product, queue: str, key: str, count: int, properties: str | None = None) -> None:
    product.sql(INSERT, queue, key, properties, count)


def at_least(server: StatsdServer, name: str, number: float) -> None:
    """Until statsd has been told of so many. Sums of sampled timings are rounded."""
    until(
        lambda: round(server.total(name)) >= number,
        ARRIVAL,
        lambda: f'{number} {name}, not {server.total(name)}',
    )


def counted(server: StatsdServer, name: str, number: float) -> None:
    """Until statsd has been told of so many: the sum, and no more."""
    at_least(server, name, number)
    assert round(server.total(name), 3) == number, name


def pair(product: Product) -> None:
    """Two workers that relay."""
    for queue in ('alpha', 'beta'):
        product.create_queue(queue)
        product.arrivals(queue)
        product.worker(queue, max_failures=1)
    product.run()


def test_what_was_relayed_is_told_to_statsd_and_sentry(
    product: Product, statsd: StatsdServer, sentry: SentryServer
) -> None:
    product.application |= {'statsd': to(statsd, 'shop.mikkoo'), 'sentry_dsn': sentry.dsn}
    pair(product)
    for _ in range(3):
        insert(product, 'alpha', 'alpha', GOOD // 3)
    insert(product, 'alpha', 'alpha', BAD, '{"priority": 300}')
    insert(product, 'beta', 'beta', GOOD)
    product.until_settled()

    alpha = 'shop.mikkoo.worker.alpha'
    for name, number in {'processed': GOOD, 'failed': BAD, 'dead': BAD, 'amqp.connected': 1}.items():
        counted(statsd, f'{alpha}.{name}', number)
    counted(statsd, 'shop.mikkoo.worker.beta.processed', GOOD)
    assert statsd.named('shop.mikkoo.worker.beta.failed') == []
    until(lambda: last(statsd, f'{alpha}.pending_events') == 0, ARRIVAL, 'nothing is pending')
    until(lambda: last(statsd, 'shop.mikkoo.supervisor.children.running') == 2, ARRIVAL, 'two run')

    numbers = product.children()['alpha']['numbers']
    assert (numbers['processed'], numbers['failed'], numbers['dead']) == (GOOD, BAD, BAD)
    assert numbers['batches'] > 0
    calls = {
        name.removesuffix('.count') for name in numbers if name.startswith('pgq.') and name.endswith('.count')
    }
    assert calls >= {'pgq.next_batch', 'pgq.finish_batch'}, calls
    for name in ('batches', *calls):  # they go on with each tick
        at_least(statsd, f'{alpha}.{name}', numbers.get(f'{name}.count', numbers.get(name, 0)))

    until(lambda: sentry.events, ARRIVAL, 'the dead letters are reported')
    [event] = [event for event in sentry.events if 'dead letters' in event['message']]
    assert event['tags'] == {'process': 'worker', 'worker': 'alpha', 'queue': 'alpha'}
    assert 'ev_extra3.priority: is 300' in event['contexts']['mikkoo']['reason']
    assert product('stop').returncode == Exit.OK
    counted(statsd, f'{alpha}.processed', GOOD)
    assert (event['contexts']['mikkoo']['count'], sentry.events[1:]) == (BAD, []), 'one report, with a count'
    assert (statsd.mistakes, sentry.mistakes) == ([], [])


def last(server: StatsdServer, name: str) -> float | None:
    samples = server.named(name)
    return samples[-1].value if samples else None


def test_a_live_edit_moves_metrics_and_reports_and_restarts_nobody(
    product: Product, statsd: StatsdServer, sentry: SentryServer
) -> None:
    """From off to on, and on to other servers."""
    pair(product)
    pids = product.pids()
    insert(product, 'alpha', 'alpha', GOOD)
    product.until_settled()

    product.application |= {'statsd': to(statsd, 'one'), 'sentry_dsn': sentry.dsn}
    product.save()
    until(lambda: statsd.named('one.supervisor.children.running'), SAVE, 'statsd is told')
    until(lambda: statsd.named('one.worker.alpha.in_flight'), ARRIVAL, 'the worker tells, too')
    insert(product, 'alpha', 'alpha', 2 * GOOD)
    insert(product, 'alpha', 'nowhere', 1)
    product.until_settled()
    counted(statsd, 'one.worker.alpha.processed', 2 * GOOD)  # not what was relayed before
    until(lambda: sentry.events, ARRIVAL, 'the unroutable event is reported')
    assert 'returned' in sentry.events[0]['message']

    with StatsdServer() as other, SentryServer() as elsewhere:
        product.application |= {'statsd': to(other, 'two'), 'sentry_dsn': elsewhere.dsn}
        product.save()
        until(lambda: other.named('two.supervisor.children.running'), SAVE, 'the other statsd is told')
        until(lambda: other.named('two.worker.alpha.in_flight'), ARRIVAL, 'the worker tells, too')
        told = len(statsd.packets)
        insert(product, 'alpha', 'alpha', 3 * GOOD)
        insert(product, 'alpha', 'alpha', 1, 'no JSON')
        product.until_settled()
        counted(other, 'two.worker.alpha.processed', 3 * GOOD)
        until(lambda: elsewhere.events, ARRIVAL, 'the event is reported there')
        assert 'untranslatable' in elsewhere.events[0]['message']
        assert (len(statsd.packets), len(sentry.events)) == (told, 1)
        assert other.mistakes == elsewhere.mistakes == []
    assert product.pids() == pids


@contextmanager
def asked_for_a_password(database: Database, role: str) -> Iterator[None]:
    """A role that this server lets in by its password only; others it trusts."""
    file = database.server.data / 'pg_hba.conf'
    before = file.read_text()
    database.execute(f"create role {role} login password 'another'")
    file.write_text(f'host all {role} 127.0.0.1/32 scram-sha-256\n{before}')
    database.execute('select pg_reload_conf()')
    try:
        yield
    finally:
        file.write_text(before)
        database.execute('select pg_reload_conf()')
        database.execute(f'drop role {role}')


def use_passwords(product: Product, role: str) -> None:
    """A worker that is let in, and four whom a server refuses or that find none."""
    secret = f'{MARK}%40%2Fx'
    where = product.database.relay_url.partition('://')[2]
    user, _, address = where.partition('@')
    for name in ('good', 'refused', 'conninfo', 'broker', 'nowhere'):
        product.create_queue(name)
        product.worker(name, max_failures=1, postgres_url=f'postgresql://{user}:{secret}@{address}')
    product.arrivals('good')
    server = product.database.server
    product.workers['refused']['postgres_url'] = f'postgresql://{role}:{secret}@{address}'
    product.workers['conninfo']['postgres_url'] = (
        f"host=127.0.0.1 port={server.port} user={role} password='{MARK} x' dbname={product.database.name}"
    )
    product.workers['nowhere']['postgres_url'] = f'postgresql://{user}:{secret}@127.0.0.1:1/none'
    product.workers['broker']['rabbitmq'] |= {'username': 'guest', 'password': f'{MARK}/x'}
    product.rabbitmq.ctl('add_user', role, f'{MARK}:y')
    product.rabbitmq.ctl('set_permissions', '-p', product.vhost, role, '.*', '.*', '.*')
    product.workers['good']['rabbitmq'] |= {'username': role, 'password': f'{MARK}:y'}


def test_no_password_is_told_to_anybody(product: Product, statsd: StatsdServer, sentry: SentryServer) -> None:
    """Not where servers let us in, and not where they refuse; not even of a file with mistakes."""
    role = f'locked_{product.database.name}'
    product.application |= {
        'statsd': to(statsd, 'mikkoo'),
        'sentry_dsn': sentry.dsn.replace('publickey', f'publickey{MARK}:{MARK}'),
    }
    use_passwords(product, role)
    said: dict[str, str] = {}
    with asked_for_a_password(product.database, role):
        product.save()
        product.foreground()
        product.until_running('good')
        until(lambda: paused(product) == 4, ARRIVAL, lambda: f'four are refused: {product.children()}')
        insert(product, 'good', 'good', 1, 'no JSON')
        until(lambda: sentry.events, ARRIVAL, 'the event is reported')
        for command in (
            'status',
            'status --json',
            'check',
            'check --json',
            'check --connect',
            'check --connect --json',
            'dead-letters list',
            *(f'{debug} dead-letters list --worker {name}' for debug in ('', '--debug') for name in REFUSED),
            *(f'{debug} unregister {name} --yes' for debug in ('', '--debug') for name in REFUSED),
        ):
            done = product(*command.split())
            said[command] = done.stdout + done.stderr
        said |= {f'process {pid}': whole_title(pid) for pid in product.processes()}
        said['list_connections'] = product.rabbitmq.ctl('list_connections', 'client_properties')
        good = product.text()
        product.path.write_text(good.replace('"confirm_window"', '').replace('"password"', '"pasword"'))
        said['reload'] = (refused := product('reload')).stderr
        assert refused.returncode == Exit.CONFIG
        product.path.write_text(good.replace('postgresql://', 'postgresq://'))
        said['reload of a wrong URL'] = (refused := product('reload')).stderr
        assert refused.returncode == Exit.CONFIG
        said['status of mistakes'] = product('status', '--json').stdout
        assert product('stop').returncode == Exit.OK
    product.rabbitmq.ctl('delete_user', role)
    said['log'] = product.logged()
    said['statsd'] = repr(statsd.packets)
    said['sentry'] = json.dumps(sentry.events)
    assert all(said.values()), said
    assert 'password authentication failed' in said['log'], 'PostgreSQL has refused'
    assert 'ACCESS_REFUSED' in said['log'], 'RabbitMQ has refused'
    shown = {what: [line for line in text.splitlines() if MARK in line] for what, text in said.items()}
    assert not any(shown.values()), {what: lines for what, lines in shown.items() if lines}


def paused(product: Product) -> int:
    return sum(child['state'] == 'PAUSED' for child in product.children().values())


def whole_title(pid: int) -> str:
    """The process's command line and name."""
    folder = Path(f'/proc/{pid}')
    return (folder / 'cmdline').read_bytes().decode().replace('\0', ' ') + (folder / 'comm').read_text()
