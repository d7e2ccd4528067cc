"""All that mikkood does, with the least rights in both servers, and what these do not allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from mikkoo.common.errors import Exit
from tests.conftest import Database
from tests.integration.product import ARRIVAL, Product, bodies
from tests.servers.waiting import until

GOOD = 100
REFUSED = 'permission denied'
WRITES = """
    select c.oid::regclass::text, string_agg(p, ',' order by p)
    from pg_class as c, unnest('{INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) as p
    where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relnamespace <> 'pg_catalog'::regnamespace
        and has_table_privilege('mikkoo_relay', c.oid, p)
    group by 1
"""
READS = """
    select distinct n.nspname::text from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname not in ('pg_catalog', 'information_schema')
        and has_table_privilege('mikkoo_relay', c.oid, 'SELECT')
"""
UNREADABLE = "select not has_table_privilege('mikkoo_relay', 'mikkoo.audit', 'SELECT')"
MAKES = """
    select nspname::text from pg_namespace where has_schema_privilege('mikkoo_relay', oid, 'CREATE')
    union select sequencename::text from pg_sequences
        where has_sequence_privilege(
            'mikkoo_relay', format('%I.%I', schemaname, sequencename), 'USAGE,UPDATE')
"""
OWNS = """
    select rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls or rolcanlogin
        or exists (select from pg_shdepend where refobjid = r.oid and deptype = 'o')
    from pg_roles as r where rolname = 'mikkoo_relay'
"""
MEMBERSHIPS = """
    select rolname::text from pg_roles
    where pg_has_role('mikkoo_relay', oid, 'MEMBER') and rolname <> 'mikkoo_relay' order by 1
"""
KEEPING = {
    'mikkoo.dead_letter': 'DELETE,INSERT,UPDATE',
    'mikkoo.failing_event': 'DELETE,INSERT',
    'mikkoo.batch_progress': 'DELETE,INSERT,UPDATE',
}


@pytest.fixture
def locked_down(database: Database) -> None:
    """Nothing is everybody's: no temporary tables, nothing in `public`."""
    database.execute(f'revoke all on database {database.name} from public')
    database.execute('revoke all on schema public from public')
    database.execute(f'grant connect on database {database.name} to relay_{database.name}')


@pytest.fixture
def refusals(database: Database) -> Iterator[Callable[[], list[str]]]:
    """The lines in which the server has refused a statement since the test began."""
    log = database.server.log_file
    begin = log.stat().st_size

    def said() -> list[str]:
        with log.open('rb') as file:
            file.seek(begin)
            return [line for line in file.read().decode(errors='replace').splitlines() if REFUSED in line]

    yield said


@pytest.fixture
def publisher(product: Product) -> Iterator[str]:
    """A user of RabbitMQ, password `secret`, who may publish to one exchange, and no more."""
    name = f'relay_{product.database.name}'
    product.rabbitmq.ctl('add_user', name, 'secret')
    product.rabbitmq.ctl('set_permissions', '-p', product.vhost, name, '^$', '^shop$', '^$')
    yield name
    product.rabbitmq.ctl('delete_user', name)


@pytest.mark.usefixtures('locked_down')
def test_the_whole_life_of_a_relay(
    product: Product, publisher: str, refusals: Callable[[], list[str]]
) -> None:
    """Registering, relaying, retries, dead letters and what is done about them, check, unregister."""
    product.sql("select pgq.create_queue('alpha'), pgq.set_queue_config('alpha', 'ticker_max_lag', '0')")
    product.arrivals('alpha', 'shop', 'alpha')
    product.worker('alpha', max_failures=2)
    product.workers['alpha']['rabbitmq'] |= {'username': publisher, 'password': 'secret'}
    product.run()
    insert(product, 'alpha', GOOD)
    insert(product, 'nowhere', 3)
    insert(product, 'alpha', 1, 'no JSON')
    until(lambda: product.sql('select count(*) from mikkoo.dead_letter') == [(4,)], ARRIVAL, 'four are dead')
    assert users(product) == {f'relay_{product.database.name}'}

    ids = [
        str(number) for (number,) in product.sql('select id from mikkoo.dead_letter order by reason_code, id')
    ]
    product.arrivals('nowhere', 'shop', 'nowhere')
    for command in (
        'check --connect',
        'dead-letters list',
        f'dead-letters show {ids[0]}',
        f'dead-letters retry {ids[0]}',
        'dead-letters retry --reason returned --yes',
        'dead-letters discard --all --yes',
    ):
        done = product(*command.split())
        assert done.returncode == Exit.OK, (command, done)
    until(lambda: product.queued('nowhere') == 3, ARRIVAL, 'what was put back arrives')
    product.until_settled()
    assert len(bodies(product.take('alpha'))) == GOOD

    assert product('stop').returncode == Exit.OK
    done = product('unregister', 'alpha', '--yes')
    assert (done.returncode, done.stderr) == (Exit.OK, '')
    assert product.sql('select count(*) from pgq.subscription') == [(0,)]
    assert refusals() == [] and REFUSED not in product.logged()
    relay = product.database.connect(f'relay_{product.database.name}')
    with relay.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        cursor.execute('select * from mikkoo.audit')
    relay.close()
    assert len(refusals()) == 1, 'it would have been seen'


def insert(product: Product, key: str, count: int, properties: str | None = None) -> None:
    product.sql(
        """select count(mikkoo.insert_event('alpha', 'shop', %s, format('{"n": %%s}', n), null, %s, null))
           from generate_series(1, %s) as n""",
        key, properties, count,
    )  # fmt: skip


def users(product: Product) -> set[str]:
    rows = product.sql(
        "select distinct usename from pg_stat_activity where starts_with(application_name, 'mikkoo')"
    )
    return {name for (name,) in rows}


@pytest.mark.usefixtures('locked_down')
def test_the_role_has_these_rights_and_no_others(database: Database) -> None:
    database.execute('create table public.orders (id int)')
    assert dict(database.execute(WRITES)) == KEEPING
    assert {name for (name,) in database.execute(READS)} == {'mikkoo', 'pgq'}
    assert database.execute(UNREADABLE) == [(True,)]
    assert database.execute(MAKES) == []
    assert database.execute(OWNS) == [(False,)]
    assert database.execute(MEMBERSHIPS) == [('pgq_reader',)]


@pytest.mark.usefixtures('locked_down')
@pytest.mark.parametrize(
    'statement',
    [
        "select mikkoo.insert_event('q', 'e', 'k', 'b', null)",
        "select pgq.insert_event('q', 'k', 'b')",
        "select pgq.insert_event_raw('q', 1, now(), 1, 0, 'k', 'b', null, null, null, null)",
        'insert into pgq.event_template (ev_id, ev_time) values (1, now())',
        'select * from public.orders',
        'select * from mikkoo.audit',
        "select pgq.drop_queue('q')",
        "select pgq.set_queue_config('q', 'ticker_paused', 'true')",
        'drop table mikkoo.dead_letter',
        'truncate mikkoo.dead_letter',
        'drop schema mikkoo cascade',
        'alter table mikkoo.dead_letter add column x int',
        'create temporary table mine ()',
        'create table public.mine ()',
        'create schema mine',
        'create role mine',
        "copy mikkoo.dead_letter to program 'true'",
        "select pg_read_file('postgresql.conf')",
        'select * from pg_authid',
        'set role postgres',
    ],
)
def test_it_may_not(database: Database, statement: str) -> None:
    database.execute("select pgq.create_queue('q')")
    database.execute('create table public.orders (id int)')
    relay: Any = database.connect(f'relay_{database.name}')
    try:
        with relay.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(statement)
    finally:
        relay.close()
