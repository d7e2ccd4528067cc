"""An auditor as mikkood's child: started, edited, restarted, shown and retired as a worker is."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from mikkoo.common.errors import Exit
from tests.conftest import Database
from tests.integration.mikkood import alive
from tests.integration.product import ARRIVAL, SAVE, Product
from tests.servers.sentry import SentryServer
from tests.servers.statsd import StatsdServer
from tests.servers.waiting import until

COUNT = 200


@pytest.fixture
def statsd() -> Iterator[StatsdServer]:
    with StatsdServer() as server:
        yield server


@pytest.fixture
def sentry() -> Iterator[SentryServer]:
    with SentryServer() as server:
        yield server


@pytest.fixture
def audited(product: Product) -> Product:
    """A worker and an auditor, not started."""
    product.create_queue('alpha')
    product.arrivals('alpha', 'shop')
    product.worker('alpha')
    product.auditor('proof', 'shop', grace=0.5)
    return product


def insert(product: Product, count: int = COUNT) -> None:
    product.sql(
        """select count(mikkoo.insert_audited_event('alpha', 'shop', 'k', format('{"n": %%s}', n), null))
           from generate_series(1, %s) as n""",
        count,
    )


def received(product: Product) -> int:
    return int(product.sql('select coalesce(sum(received), 0) from mikkoo.audit_tally')[0][0])


def await_received(product: Product, count: int) -> None:
    until(lambda: received(product) == count, ARRIVAL, lambda: f'{count}, not {received(product)}')


def numbers(product: Product) -> dict[str, Any]:
    found: dict[str, Any] = product.children()['proof']['numbers']
    return found


def test_it_lives_as_a_worker_does(audited: Product) -> None:
    product = audited
    product.run()
    insert(product)
    await_received(product, COUNT)
    until(lambda: numbers(product).get('audit.outstanding') == 0, ARRIVAL, 'nothing is outstanding')
    before = product.pids()
    status = product('status')
    [row] = [line.split() for line in status.stdout.splitlines() if line.startswith('proof')]
    assert row[:4] == ['proof', 'mikkoo.audit.proof', 'RUNNING', str(before['proof'])]
    assert str(COUNT) in row
    assert 'AUDITOR' in status.stdout and 'OUTSTANDING' in status.stdout
    [shown] = [
        child
        for child in json.loads(product('status', '--json').stdout)['children']
        if child['name'] == 'proof'
    ]
    assert (shown['kind'], shown['queue'], shown['consumer']) == ('auditor', 'mikkoo.audit.proof', None)
    assert shown['numbers']['audit.received'] == COUNT

    os.kill(before['proof'], signal.SIGKILL)
    until(lambda: product.children()['proof']['restarts'] == 1, ARRIVAL, 'it is started again')
    product.until_running()
    assert product('restart', 'proof').returncode == Exit.OK
    until(lambda: product.children()['proof']['restarts'] == 2, ARRIVAL, 'it was restarted')
    product.until_running()
    insert(product)
    await_received(product, 2 * COUNT)
    assert product.pids()['alpha'] == before['alpha'], 'the worker was left alone'
    assert product('stop').returncode == Exit.OK
    assert not any(alive(pid) for pid in product.processes())


def test_an_edit_starts_changes_and_retires_it(audited: Product) -> None:
    product = audited
    settings = product.auditors.pop('proof')
    product.run()
    worker = product.pids()['alpha']
    product.auditors['proof'] = settings
    product.save()
    until(lambda: 'proof' in product.pids(), SAVE, 'it is started')
    product.until_running()
    before = product.pids()['proof']
    settings['action'] = 'mark'
    product.save()
    until(lambda: product.pids()['proof'] not in (None, before), ARRIVAL, 'it is restarted')
    product.until_running()
    insert(product)
    await_received(product, COUNT)
    assert product.sql('select count(*) from mikkoo.audit where received_at is not null') == [(COUNT,)]
    product.auditors.clear()
    product.save()
    until(lambda: 'proof' not in product.pids(), ARRIVAL, 'it is retired')
    assert product.pids() == {'alpha': worker}
    assert product.queued('mikkoo.audit.proof') == 0, 'its queue is left for it to come back to'


def test_statsd_and_sentry_hear_of_it(audited: Product, statsd: StatsdServer, sentry: SentryServer) -> None:
    product = audited
    told = {'enabled': True, 'host': '127.0.0.1', 'port': statsd.port}
    product.application |= {'statsd': told, 'sentry_dsn': sentry.dsn}
    product.run()
    insert(product)
    name = 'mikkoo.auditor.proof.audit'
    for metric in ('received', 'latency'):
        until(lambda m=metric: round(statsd.total(f'{name}.{m}')) == COUNT, ARRIVAL, f'all {metric}')  # type: ignore[misc]
    lost = '6b1f5b0e-9f3f-4f0c-8d8e-0d6f4b1a2c3d'
    product.sql("select mikkoo.new_audit_record(%s, 1, 'alpha', 'shop', 'k', 'b', null, null, null)", lost)
    until(lambda: len(sentry.events) == 1, ARRIVAL, 'lateness is reported')
    for metric in ('late', 'outstanding'):
        until(lambda m=metric: last(statsd, f'{name}.{m}') == 1, ARRIVAL, metric)  # type: ignore[misc]
    [event] = sentry.events
    assert event['message'] == 'auditor proof: records are late'
    assert event['tags']['process'] == 'auditor'
    assert event['contexts']['mikkoo'] == {'late': 1, 'oldest': lost}
    product.sql('select mikkoo.delete_audit_record(%s)', lost)
    until(lambda: len(sentry.events) == 2, ARRIVAL, 'its end is reported')
    assert sentry.events[1]['message'] == 'auditor proof: no record is late any more'
    until(lambda: last(statsd, f'{name}.late') == 0, ARRIVAL, 'nothing is late')
    assert product('stop').returncode == Exit.OK
    assert (len(sentry.events), statsd.mistakes, sentry.mistakes) == (2, [], [])


def last(server: StatsdServer, name: str) -> float | None:
    samples = server.named(name)
    return samples[-1].value if samples else None


MAY = """
    select c.oid::regclass::text, string_agg(p, ',' order by p)
    from pg_class as c, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) as p
    where c.relkind in ('r', 'p', 'v', 'm') and c.relnamespace = any('{mikkoo,public}'::regnamespace[])
        and has_table_privilege('mikkoo_auditor', c.oid, p)
    group by 1
"""


def test_the_role_settles_and_may_no_more(database: Database, make_auditor: Callable[[], Any]) -> None:
    database.execute('create table public.orders (id int)')
    assert dict(database.execute(MAY)) == {  # type: ignore[arg-type]
        'mikkoo.audit': 'DELETE,SELECT',
        'mikkoo.audit_tally': 'DELETE,INSERT,SELECT,UPDATE',
        'mikkoo.audit_difference': 'DELETE,INSERT,SELECT',
        'mikkoo.dead_letter': 'SELECT',
        'mikkoo.schema_version': 'SELECT',
    }
    for statement in (
        "update mikkoo.audit set payload = 'x'",
        "insert into mikkoo.audit (message_id, event_id, queue, routing_key) values (null, 1, 'q', 'k')",
        "select mikkoo.insert_audited_event('q', 'e', 'k', 'b', null)",
        "select pgq.create_queue('q')",
        'delete from mikkoo.dead_letter',
        'truncate mikkoo.audit',
        'create table public.mine ()',
        'create schema mine',
    ):
        cursor = make_auditor()
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(statement)


@pytest.fixture
def make_auditor(database: Database) -> Iterator[Callable[[], Any]]:
    """Cursors of a login that is a member of mikkoo_auditor, and may use nothing that is everybody's."""
    database.execute('revoke all on schema public from public')
    connection = database.connect(f'auditor_{database.name}')
    yield connection.cursor
    connection.close()
