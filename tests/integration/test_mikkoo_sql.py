"""mikkoo.sql: what it installs, who may do what, and the holes of its predecessor, each closed.

Long, because it is one file's contract; the sections follow that file's.
"""

from __future__ import annotations

import json
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psycopg2
import pytest

from mikkoo.common import pgq
from mikkoo.common.pgq import Consumer, Reader, Retry
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from tests.conftest import Database
from tests.servers.postgres import SCHEMA_FILE, PostgresServer
from tests.servers.waiting import until

Execute = Callable[..., list[tuple[Any, ...]]]
SHAREDIR = 'select setting from pg_config() where name = %s'
INSERT = 'select mikkoo.insert_event(%s, %s, %s, %s, %s)'
INSERT_ALL = 'select mikkoo.insert_event(%s, %s, %s, %s, %s, %s, %s)'
AUDITED = 'select mikkoo.insert_audited_event(%s, %s, %s, %s, %s)'
AUDITED_ALL = 'select mikkoo.insert_audited_event(%s, %s, %s, %s, %s, %s, %s)'
NEW_RECORD = 'select * from mikkoo.new_audit_record(%s, %s, %s, %s, %s, %s, %s, %s, %s)'
BURY = """
    insert into mikkoo.dead_letter (queue, consumer, event_id, event_time, event_txid, attempts, reason_code,
        reason, first_failed_at)
    values (%s, %s, %s, '2026-11-22 10:00:00+00', 7, 1, 'returned', 'no route', now())
"""
DELETE_RECORD = 'select mikkoo.delete_audit_record(%s)'

# The shape of what Mikkoo 1 to 3 installed: its names, types, constraints and attributes.
OLD_SCHEMA = """
    create schema mikkoo;
    create table mikkoo.audit (
        message_id uuid not null, event_id bigint not null, queue text not null, exchange text not null,
        routing_key text not null, payload text not null, content_type text, properties text, headers text,
        published_at timestamp with time zone not null default current_timestamp);
    create unique index audit_message_id on mikkoo.audit (message_id);
    create function mikkoo.delete_audit_record(in_message_id uuid) returns boolean
        language plpgsql security definer strict as 'begin return false; end';
    create function mikkoo.new_audit_record(in_message_id uuid, in_event_id bigint, in_queue text,
        in_exchange text, in_routing_key text, in_payload text, in_content_type text, in_properties text,
        in_headers text) returns mikkoo.audit
        language sql security definer strict as 'select null::mikkoo.audit';
    create function mikkoo.insert_audited_event(in_queue text, in_exchange text, in_routing_key text,
        in_payload text, in_content_type text) returns bigint
        language plpgsql security definer strict as 'begin return 0; end';
    create function mikkoo.insert_event(in_queue text, in_exchange text, in_routing_key text, in_payload text,
        in_content_type text) returns bigint
        language plpgsql security definer strict as 'begin return 0; end';
    create function mikkoo.insert_event(in_queue text, in_exchange text, in_routing_key text, in_payload text,
        in_content_type text, in_properties text, in_headers text) returns bigint
        language sql security definer strict as 'select 0::bigint';
    insert into mikkoo.audit (message_id, event_id, queue, exchange, routing_key, payload, published_at)
        values ('6b1f5b0e-9f3f-4f0c-8d8e-0d6f4b1a2c3d', 42, 'q', 'e', 'k', 'p',
            '2017-02-23 06:17:14.471682+00');
"""


@pytest.fixture
def as_user() -> Iterator[Callable[[str], Execute]]:
    """`as_user(url)`: runs statements on one connection of that user, each its own transaction."""
    opened: list[Any] = []

    def connect(url: str) -> Execute:
        connection = psycopg2.connect(url)
        connection.autocommit = True
        opened.append(connection)

        def execute(sql: str, *args: object) -> list[tuple[Any, ...]]:
            with connection.cursor() as cursor:
                cursor.execute(sql, args or None)
                return cursor.fetchall() if cursor.description else []

        return execute

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def admin(database: Database, as_user: Callable[[str], Execute]) -> Execute:
    execute = as_user(database.url)
    execute("select pgq.create_queue('q')")
    return execute


@pytest.fixture
def produce(database: Database, admin: Execute, as_user: Callable[[str], Execute]) -> Execute:
    return as_user(database.producer_url)


@pytest.fixture
def make_database(postgres: PostgresServer, make_role: object) -> Iterator[Callable[..., Database]]:
    """Databases in another state than `database`; dropped before the roles that may own them."""
    made: list[Database] = []

    def make(**options: bool) -> Database:
        made.append(Database(postgres, f'made_{uuid.uuid4().hex[:8]}'))
        postgres.create_database(made[-1].name, **options)
        return made[-1]

    yield make
    for database in made:
        postgres.drop_database(database.name)


@pytest.fixture
def make_role(postgres: PostgresServer) -> Iterator[Callable[[str], str]]:
    made: list[str] = []

    def make(options: str = '') -> str:
        made.append(f'role_{uuid.uuid4().hex[:8]}')
        postgres.execute(f'create role {made[-1]} login {options}')
        return made[-1]

    yield make
    for role in made:
        for (name,) in postgres.execute('select datname from pg_database where datallowconn'):
            postgres.execute(f'drop owned by {role} cascade', dbname=cast(str, name))
        postgres.execute(f'drop role {role}')


def psql(
    database: Database, file: Path, user: str = 'postgres', *options: str
) -> subprocess.CompletedProcess[str]:
    """As people run it: without ON_ERROR_STOP."""
    program = database.server._bin / 'psql'
    url = database.server.url(database.name, user)
    return subprocess.run(
        [str(program), '-Xq', *options, '-d', url, '-f', str(file)], capture_output=True, text=True
    )


def install(database: Database, user: str = 'postgres', *options: str) -> str:
    """Run mikkoo.sql and return what psql said."""
    return psql(database, SCHEMA_FILE, user, *options).stderr


def stored(admin: Execute) -> dict[str, Any]:
    """The event that was inserted last."""
    columns = 'ev_id', 'ev_type', 'ev_data', 'ev_extra1', 'ev_extra2', 'ev_extra3', 'ev_extra4'
    [row] = admin(f'select {", ".join(columns)} from pgq.event_template order by ev_id desc limit 1')
    return dict(zip(columns, row, strict=True))


def count_of(admin: Execute, table: str) -> int:
    return int(admin(f'select count(*) from {table}')[0][0])


# The API


def test_five_arguments(admin: Execute, produce: Execute) -> None:
    [(event_id,)] = produce(INSERT, 'q', 'ex', 'key', 'body', 'text/plain')
    event = stored(admin)
    assert event['ev_id'] == event_id
    assert [event[name] for name in ('ev_type', 'ev_data', 'ev_extra1', 'ev_extra2')] == [
        'key',
        'body',
        'ex',
        'text/plain',
    ]
    properties = json.loads(event['ev_extra3'])
    assert list(properties) == ['message_id']
    assert uuid.UUID(properties['message_id']).version == 4
    assert json.loads(event['ev_extra4']) == {'pgq_queue': 'q'}
    produce(INSERT, 'q', 'ex', 'key', 'body', 'text/plain')
    assert json.loads(stored(admin)['ev_extra3']) != properties
    assert count_of(admin, 'mikkoo.audit') == 0


def test_seven_arguments_are_stored_as_given(admin: Execute, produce: Execute) -> None:
    [(event_id,)] = produce(INSERT_ALL, 'q', 'ex', 'key', 'body', 'text/plain', '{"a" : 1}', 'no JSON')
    assert stored(admin) == {
        'ev_id': event_id,
        'ev_type': 'key',
        'ev_data': 'body',
        'ev_extra1': 'ex',
        'ev_extra2': 'text/plain',
        'ev_extra3': '{"a" : 1}',
        'ev_extra4': 'no JSON',
    }


def audit(admin: Execute) -> dict[str, Any]:
    [(row,)] = admin('select to_jsonb(a) from mikkoo.audit a')
    return cast(dict[str, Any], row)


def test_an_audited_event(admin: Execute, produce: Execute) -> None:
    [(event_id,)] = produce(AUDITED, 'q', 'ex', 'key', 'body', 'text/plain')
    event, record = stored(admin), audit(admin)
    assert json.loads(event['ev_extra3']) == {'message_id': record['message_id']}
    assert json.loads(event['ev_extra4']) == {'pgq_queue': 'q'}
    published = record.pop('published_at')
    assert published is not None
    assert record == {
        'message_id': record['message_id'],
        'event_id': event_id,
        'queue': 'q',
        'exchange': 'ex',
        'routing_key': 'key',
        'payload': 'body',
        'content_type': 'text/plain',
        'properties': event['ev_extra3'],
        'headers': event['ev_extra4'],
        'received_at': None,
    }


@pytest.mark.parametrize('given', [None, '', '{"type": "t"}', '{"type": "t", "message_id": null}'])
def test_an_audited_event_gets_a_message_id(admin: Execute, produce: Execute, given: str | None) -> None:
    produce(AUDITED_ALL, 'q', 'ex', 'key', 'body', 'text/plain', given, '{"h": 1}')
    event, record = stored(admin), audit(admin)
    expected = {**json.loads(given or '{}'), 'message_id': record['message_id']}
    assert json.loads(event['ev_extra3']) == json.loads(record['properties']) == expected
    assert event['ev_extra4'] == record['headers'] == '{"h": 1}'


def test_an_audited_event_keeps_its_message_id(admin: Execute, produce: Execute) -> None:
    given = '{"message_id" : "6B1F5B0E-9F3F-4F0C-8D8E-0D6F4B1A2C3D"}'
    produce(AUDITED_ALL, 'q', 'ex', 'key', 'body', 'text/plain', given, None)
    assert stored(admin)['ev_extra3'] == audit(admin)['properties'] == given
    assert audit(admin)['message_id'] == '6b1f5b0e-9f3f-4f0c-8d8e-0d6f4b1a2c3d'


@pytest.mark.parametrize(
    ('properties', 'error'),
    [
        ('[]', 'no JSON object but array'),
        ('{"message_id": "mine"}', 'no UUID: mine'),
        ('{', 'invalid input syntax for type json'),
    ],
)
def test_an_audited_event_that_could_not_be_matched_is_refused(
    admin: Execute, produce: Execute, properties: str, error: str
) -> None:
    with pytest.raises(psycopg2.DataError, match=error):
        produce(AUDITED_ALL, 'q', 'ex', 'key', 'body', 'text/plain', properties, None)
    assert count_of(admin, 'mikkoo.audit') == count_of(admin, 'pgq.event_template') == 0


def test_audit_records_made_and_deleted(admin: Execute, produce: Execute) -> None:
    number = str(uuid.uuid4())
    [record] = produce(NEW_RECORD, number, 7, 'q', 'ex', 'key', 'body', None, None, None)
    assert record[:9] == (number, 7, 'q', 'ex', 'key', 'body', None, None, None)
    assert admin(DELETE_RECORD, number) == [(True,)]
    assert admin(DELETE_RECORD, number) == [(False,)]
    assert admin(DELETE_RECORD, None) == [(False,)]
    assert count_of(admin, 'mikkoo.audit') == 0
    for missing in range(5):
        if missing == 3:
            continue  # the exchange may be NULL
        args = [number, 7, 'q', 'ex', 'key', 'body', None, None, None]
        args[missing] = None
        with pytest.raises(psycopg2.errors.NotNullViolation):
            produce(NEW_RECORD, *args)


def test_names_and_types_are_those_of_mikkoo_3(admin: Execute) -> None:
    five = 'in_queue text, in_exchange text, in_routing_key text, in_payload text, in_content_type text'
    seven = f'{five}, in_properties text, in_headers text'
    located = (
        'TABLE(consumer text, event_time timestamp with time zone, txid bigint, attempt integer,'
        ' due timestamp with time zone)'
    )
    found = admin(
        'select proname::text, pg_get_function_arguments(oid), pg_get_function_result(oid) from pg_proc'
        " where pronamespace = 'mikkoo'::regnamespace and prorettype <> 'trigger'::regtype"
    )
    assert sorted(found) == sorted(
        [
            ('insert_event', five, 'bigint'),
            ('insert_event', seven, 'bigint'),
            ('insert_audited_event', five, 'bigint'),
            ('insert_audited_event', seven, 'bigint'),
            ('new_audit_record', f'in_message_id uuid, in_event_id bigint, {seven}', 'mikkoo.audit'),
            ('delete_audit_record', 'in_message_id uuid', 'boolean'),
            ('resend_audited', 'in_message_id uuid', 'SETOF bigint'),
            ('locate_event', 'in_queue text, in_event_id bigint', located),
            ('move_retries', '', 'integer'),
        ]
    )


def test_moving_retries(database: Database, admin: Execute, as_user: Callable[[str], Execute]) -> None:
    relay = as_user(database.relay_url)
    admin("select pgq.set_queue_config('q', 'ticker_max_lag', '0')")
    relay("select pgq.register_consumer('q', 'mikkoo')")
    admin("select count(pgq.insert_event('q', 'k', 'b')) from generate_series(1, 25)")
    admin("select pgq.ticker('q')")
    [(batch,)] = relay("select pgq.next_batch('q', 'mikkoo')")
    relay('select pgq.batch_retry(%s, 0)', batch)
    relay('select pgq.finish_batch(%s)', batch)
    assert relay('select mikkoo.move_retries()') == [(25,)]
    assert relay('select mikkoo.move_retries()') == [(0,)]


def test_a_tick_notifies_with_the_queues_name(database: Database, admin: Execute) -> None:
    long = 'q' * 8000  # more than a notification holds
    names = ['q', "it's", '']
    for name in [*names, long]:
        admin('select pgq.create_queue(%s)', name)
        admin("select pgq.set_queue_config(%s, 'ticker_idle_period', '0')", name)
        admin("select pgq.set_queue_config(%s, 'ticker_max_lag', '0')", name)
    listener = database.connect()
    try:
        with listener.cursor() as cursor:
            cursor.execute('listen mikkoo_tick')
            for name in [long, *names]:
                assert admin('select pgq.ticker(%s)', name) != [(None,)]

            def arrived() -> bool:
                cursor.execute('select 1')
                return len(listener.notifies) == len(names)

            until(arrived, 10, 'the ticks are announced')
            assert [(notice.channel, notice.payload) for notice in listener.notifies] == [
                ('mikkoo_tick', name) for name in names
            ]
    finally:
        listener.close()


def test_everything_has_a_comment(admin: Execute) -> None:
    functions = (
        "select oid::regprocedure::text from pg_proc where pronamespace = 'mikkoo'::regnamespace"
        " and obj_description(oid, 'pg_proc') is null"
    )
    tables = (
        "select oid::regclass::text from pg_class where relkind = 'r'"
        " and relnamespace = 'mikkoo'::regnamespace"
        " and obj_description(oid, 'pg_class') is null"
    )
    columns = (
        'select attrelid::regclass::text, attname::text from pg_attribute join pg_class c on c.oid = attrelid'
        " where relnamespace = 'mikkoo'::regnamespace and relkind = 'r' and attnum > 0 and not attisdropped"
        ' and col_description(attrelid, attnum) is null'
    )
    assert admin(functions) == admin(tables) == admin(columns) == []
    assert admin("select obj_description('mikkoo'::regnamespace, 'pg_namespace') is not null") == [(True,)]
    constraints = (
        'select conrelid::regclass::text, conname::text from pg_constraint'
        " where connamespace = 'mikkoo'::regnamespace and obj_description(oid, 'pg_constraint') is null"
        " and contype in ('p', 'u', 'f', 'c') and (contype <> 'p' or cardinality(conkey) > 1)"
    )
    assert admin(constraints) == []
    triggers = (
        "select obj_description(oid, 'pg_trigger') is not null from pg_trigger where tgname = 'mikkoo_tick'"
    )
    assert admin(triggers) == [(True,)]
    roles = (
        "select shobj_description(oid, 'pg_authid') is not null from pg_roles"
        " where rolname in ('mikkoo_relay', 'mikkoo_producer', 'mikkoo_auditor')"
    )
    assert admin(roles) == [(True,)] * 3


# The holes of the original


@pytest.mark.parametrize('sql', [INSERT, INSERT_ALL, AUDITED, AUDITED_ALL])
def test_a_null_is_never_a_silent_loss(admin: Execute, produce: Execute, sql: str) -> None:
    nothing = [None, None] if sql.count('%s') == 7 else []
    [(event_id,)] = produce(sql, 'q', None, 'key', None, None, *nothing)
    event = stored(admin)
    assert event['ev_id'] == event_id
    assert [event[name] for name in ('ev_data', 'ev_extra1', 'ev_extra2')] == [None, None, None]
    if sql is INSERT_ALL:
        assert (event['ev_extra3'], event['ev_extra4']) == (None, None)
    if sql in (AUDITED, AUDITED_ALL):
        record = audit(admin)
        assert (record['payload'], record['exchange'], record['content_type']) == (None, None, None)


@pytest.mark.parametrize('sql', [INSERT, INSERT_ALL, AUDITED, AUDITED_ALL])
@pytest.mark.parametrize(
    ('queue', 'key', 'error'),
    [
        (None, 'key', 'in_queue is NULL'),
        ('q', None, 'in_routing_key is NULL'),
        ('nope', 'key', 'no queue "nope"'),
    ],
)
def test_without_queue_or_routing_key_it_raises(
    admin: Execute, produce: Execute, sql: str, queue: str | None, key: str | None, error: str
) -> None:
    nothing = [None, None] if sql.count('%s') == 7 else []
    with pytest.raises(psycopg2.Error, match=error):
        produce(sql, queue, 'ex', key, 'body', None, *nothing)
    assert count_of(admin, 'pgq.event_template') == count_of(admin, 'mikkoo.audit') == 0


@pytest.mark.parametrize('sql', [INSERT, AUDITED])
@pytest.mark.parametrize('queue', ['q"x\\y', 'a", "injected": "1', "it's", 'ä\n'])
def test_no_queue_name_breaks_or_injects_a_header(
    admin: Execute, produce: Execute, sql: str, queue: str
) -> None:
    admin('select pgq.create_queue(%s)', queue)
    produce(sql, queue, 'ex', 'key', 'body', None)
    assert json.loads(stored(admin)['ev_extra4']) == {'pgq_queue': queue}


def test_a_callers_search_path_is_not_used(
    database: Database, admin: Execute, produce: Execute, make_role: Callable[..., str]
) -> None:
    user = f'producer_{database.name}'
    admin(f'create schema trap authorization {user}')
    for kind, result in (('text', "''"), ('jsonb', "'{}'")):
        produce(
            f'create function trap.spring(a {kind}, b {kind}) returns {kind} language plpgsql as $$'
            f" begin raise exception 'sprung as %', current_user; return {result}; end $$"
        )
        produce(f'create operator trap.|| (leftarg = {kind}, rightarg = {kind}, function = trap.spring)')
    produce(
        'create function trap.gen_random_uuid() returns uuid language plpgsql as'
        " $$ begin raise exception 'sprung'; end $$"
    )
    produce('create temp table queue (queue_name text)')
    produce('set search_path = trap, pg_temp, pg_catalog')
    with pytest.raises(psycopg2.Error, match='sprung'):
        produce("select 'a'::text || 'b'::text")
    for sql in (INSERT, AUDITED):
        produce(sql, 'q', 'ex', 'key', 'body', 'text/plain')
    for sql in (INSERT_ALL, AUDITED_ALL):
        produce(sql, 'q', 'ex', 'key', 'body', 'text/plain', None, None)
    assert count_of(admin, 'pgq.event_template') == 4


def test_every_function_has_a_fixed_search_path(admin: Execute) -> None:
    found = admin(
        "select distinct proconfig from pg_proc where pronamespace = 'mikkoo'::regnamespace",
    )
    assert found == [(['search_path=pg_catalog, pg_temp'],)]


SIGNATURES = "select oid::regprocedure::text from pg_proc where pronamespace = 'mikkoo'::regnamespace"


def callable_by(admin: Execute, role: str) -> set[str]:
    return {name for (name,) in admin(f"{SIGNATURES} and has_function_privilege('{role}', oid, 'EXECUTE')")}


def test_public_may_call_nothing(
    database: Database, admin: Execute, make_role: Callable[..., str], as_user: Callable[[str], Execute]
) -> None:
    role = make_role()
    assert callable_by(admin, role) == set()
    admin(f'grant usage on schema mikkoo to {role}')
    anybody = as_user(database.server.url(database.name, role))
    for sql, *args in (
        (INSERT, 'q', 'ex', 'key', 'body', None),
        (AUDITED, 'q', 'ex', 'key', 'body', None),
        (DELETE_RECORD, str(uuid.uuid4())),
        ('select * from mikkoo.audit',),
        ('select mikkoo.move_retries()',),
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            anybody(sql, *args)


def test_a_producer_may_insert_and_nothing_else(admin: Execute, produce: Execute) -> None:
    names = {name.partition('(')[0] for name in callable_by(admin, 'mikkoo_producer')}
    assert names == {'mikkoo.insert_event', 'mikkoo.insert_audited_event', 'mikkoo.new_audit_record'}
    for sql in (
        "select pgq.insert_event('q', 'k', 'b')",
        "select pgq.register_consumer('q', 'mikkoo')",
        'select * from mikkoo.audit',
        'delete from mikkoo.audit',
        'select * from pgq.event_template',
        'create table mikkoo.mine ()',
        f"select mikkoo.delete_audit_record('{uuid.uuid4()}')",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            produce(sql)


def test_a_relay_may_consume_and_nothing_else(
    database: Database, admin: Execute, as_user: Callable[[str], Execute]
) -> None:
    assert callable_by(admin, 'mikkoo_relay') == {'mikkoo.move_retries()'}
    relay = as_user(database.relay_url)
    assert relay('select max(version) from mikkoo.schema_version') == [(pgq.SCHEMA_VERSION,)]
    for sql in (
        "select mikkoo.insert_event('q', 'e', 'k', 'b', null)",
        "select pgq.insert_event('q', 'k', 'b')",
        "select pgq.ticker('q')",
        "select pgq.create_queue('r')",
        "select pgq.drop_queue('q')",
        'select * from mikkoo.audit',
        'delete from pgq.event_template',
        'delete from pgq.retry_queue',
        'insert into mikkoo.schema_version (version) values (99)',
        'create table mikkoo.mine ()',
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            relay(sql)


KEEPING = {
    'mikkoo.dead_letter': {'SELECT', 'INSERT', 'UPDATE', 'DELETE'},
    'mikkoo.failing_event': {'SELECT', 'INSERT', 'DELETE'},
    'mikkoo.batch_progress': {'SELECT', 'INSERT', 'UPDATE', 'DELETE'},
}


COUNTING = {
    'mikkoo.audit': {'SELECT', 'DELETE'},  # and UPDATE of one column
    'mikkoo.audit_tally': {'SELECT', 'INSERT', 'UPDATE', 'DELETE'},
    'mikkoo.audit_difference': {'SELECT', 'INSERT', 'DELETE'},
}


@pytest.mark.parametrize('table', KEEPING)
def test_only_a_relay_may_use_what_is_kept_for_it(
    database: Database, admin: Execute, produce: Execute, make_role: Callable[..., str], table: str
) -> None:
    held = (
        'select array_agg(name order by name)'
        " from unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) as name"
        ' where has_table_privilege(%s, %s, name)'
    )
    for role, expected in (
        ('mikkoo_relay', sorted(KEEPING[table])),
        ('mikkoo_producer', None),
        (make_role(), None),
    ):
        assert admin(held, role, table) == [(expected,)]
    for sql in (f'select * from {table}', f'delete from {table}'):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            produce(sql)


@pytest.mark.parametrize('table', COUNTING)
def test_only_an_auditor_may_use_what_it_counts(
    admin: Execute, make_role: Callable[..., str], table: str
) -> None:
    held = (
        'select array_agg(name order by name)'
        " from unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) as name"
        ' where has_table_privilege(%s, %s, name)'
    )
    assert admin(held, 'mikkoo_auditor', table) == [(sorted(COUNTING[table]),)]
    for role in ('mikkoo_relay', 'mikkoo_producer', make_role()):
        assert admin(held, role, table) == [(None,)]


def test_a_record_is_held_by_one_index_beside_the_key(admin: Execute, produce: Execute) -> None:
    conditions = (
        'select indexrelid::regclass::text, pg_get_expr(indpred, indrelid) from pg_index'
        " where indrelid = 'mikkoo.audit'::regclass and not indisprimary order by 1"
    )
    assert admin(conditions) == [
        ('mikkoo.audit_outstanding', '(received_at IS NULL)'),
        ('mikkoo.audit_received', '(received_at IS NOT NULL)'),
    ]


def test_a_relay_buries_and_digs_up(
    database: Database, admin: Execute, as_user: Callable[[str], Execute]
) -> None:
    """The number of a dead letter needs no right to a sequence."""
    relay = as_user(database.relay_url)
    relay(BURY, 'q', 'mikkoo', 1)
    relay(BURY, 'q', 'mikkoo', 2)
    assert relay('select id from mikkoo.dead_letter order by id') == [(1,), (2,)]
    assert relay('delete from mikkoo.dead_letter where id = 1 returning event_id') == [(1,)]


def test_an_event_is_one_dead_letter(admin: Execute) -> None:
    admin(BURY, 'q', 'mikkoo', 1)
    admin(BURY, 'q', 'other', 1)
    with pytest.raises(psycopg2.errors.UniqueViolation, match='dead_letter_event'):
        admin(BURY, 'q', 'mikkoo', 1)


def test_it_needs_no_extension_for_uuids(admin: Execute, produce: Execute) -> None:
    assert admin("select extname::text from pg_extension where extname = 'uuid-ossp'") == []
    produce(AUDITED, 'q', 'ex', 'key', 'body', None)
    assert audit(admin)['message_id']


# Installing


def objects(database: Database) -> list[tuple[object, ...]]:
    """Everything that mikkoo.sql makes, with rights and definitions."""
    return database.execute(
        "select 'f', oid::text, pg_get_functiondef(oid), proacl::text from pg_proc"
        " where pronamespace = 'mikkoo'::regnamespace union all"
        " select 'c', oid::text, relname::text, relacl::text from pg_class"
        " where relnamespace = 'mikkoo'::regnamespace union all"
        " select 't', oid::text, tgname, tgenabled::text from pg_trigger"
        " where tgname = 'mikkoo_tick' union all"
        " select 'n', oid::text, nspname::text, nspacl::text from pg_namespace"
        " where nspname = 'mikkoo' union all"
        " select 'v', version::text, applied_at::text, '' from mikkoo.schema_version order by 1, 2"
    )


def test_the_version_is_the_one_that_mikkoo_expects(database: Database) -> None:
    assert database.execute('select max(version) from mikkoo.schema_version') == [(pgq.SCHEMA_VERSION,)]


def test_running_it_again_changes_nothing(database: Database) -> None:
    before = objects(database)
    assert install(database) == ''
    assert objects(database) == before


def test_running_it_again_mends(database: Database) -> None:
    before = objects(database)
    database.execute(
        'drop trigger mikkoo_tick on pgq.tick;'
        'drop function mikkoo.move_retries();'
        'grant all on all functions in schema mikkoo to public;'
        'grant all on schema mikkoo to public;'
        'grant all on mikkoo.audit to public'
    )
    assert install(database) == ''
    mended = objects(database)
    assert [row[0] for row in mended] == [row[0] for row in before]
    assert not any(acl.startswith('{=') or ',=' in acl for *_, acl in mended if isinstance(acl, str))


def test_it_runs_within_a_transaction_of_others(database: Database) -> None:
    connection = psycopg2.connect(database.url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("set search_path = 'public'")
            cursor.execute(SCHEMA_FILE.read_text())
            cursor.execute('show search_path')
            assert cursor.fetchone() == ('public',)
            cursor.execute('show client_min_messages')
            assert cursor.fetchone() == ('notice',)
            assert connection.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS
        assert connection.notices == []
    finally:
        connection.close()


def test_two_runs_at_once(make_database: Callable[..., Database]) -> None:
    database = make_database(mikkoo=False)
    said: list[str] = []
    threads = [threading.Thread(target=lambda: said.append(install(database))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ['', '', '']
    versions = [(version,) for version in range(1, pgq.SCHEMA_VERSION + 1)]
    assert database.execute('select version from mikkoo.schema_version order by 1') == versions


BEFORE_5 = """
    drop table mikkoo.audit_tally, mikkoo.audit_difference;
    drop index mikkoo.audit_outstanding, mikkoo.audit_received;
    create index audit_published_at on mikkoo.audit (published_at);
"""
TO_VERSION = {
    1: f"""{BEFORE_5} drop table mikkoo.dead_letter, mikkoo.failing_event, mikkoo.batch_progress;
        delete from mikkoo.schema_version where version > 1""",
    2: f"""{BEFORE_5} drop table mikkoo.batch_progress;
        create table mikkoo.batch_progress (
            queue text not null, consumer text not null, batch_id bigint not null, tick_id bigint not null,
            previous_tick_id bigint not null, tick_time timestamptz not null, last_event_id bigint not null,
            saved_at timestamptz not null default now(),
            constraint batch_progress_pkey primary key (queue, consumer));
        insert into mikkoo.batch_progress values ('q', 'mikkoo', 1, 2, 1, '2026-11-22 10:00:00+00', 7);
        delete from mikkoo.schema_version where version > 2""",
    4: f"""{BEFORE_5} delete from mikkoo.schema_version where version > 4""",
}


@pytest.mark.parametrize('version', TO_VERSION)
def test_it_upgrades_older_versions(make_database: Callable[..., Database], version: int) -> None:
    """1 has no tables that keep things, 2 counts no openings, 4 no arrivals; what was recorded stays."""
    database, fresh = make_database(), make_database()
    database.execute(TO_VERSION[version])
    number = str(uuid.uuid4())
    database.execute(NEW_RECORD, (number, 7, 'q', 'ex', 'key', 'body', None, None, None))
    kept = 'select a::text from mikkoo.audit a union all select v::text from mikkoo.schema_version v'
    before = database.execute(kept)
    assert install(database) == ''
    after = database.execute(kept)
    assert after[: len(before)] == before
    assert len(after) == len(before) + pgq.SCHEMA_VERSION - version
    assert definitions(database) == definitions(fresh)
    database.execute(BURY, ('q', 'mikkoo', 1))
    again = definitions(database)
    assert install(database) == ''
    assert definitions(database) == again
    assert database.execute('select count(*) from mikkoo.dead_letter') == [(1,)]
    progress = 'select batch_id, last_event_id, attempts, alone from mikkoo.batch_progress'
    assert database.execute(progress) == ([(1, 7, 0, False)] if version == 2 else [])


def definitions(database: Database) -> list[tuple[object, ...]]:
    """Tables with their columns, rights, constraints, indexes and comments."""
    return database.execute(
        """
        select relname::text, attname::text, atttypid::regtype::text, attnotnull::text, attidentity::text,
            pg_get_expr(adbin, adrelid), relacl::text, col_description(c.oid, attnum)
        from pg_class c join pg_attribute on attrelid = c.oid and attnum > 0
            left join pg_attrdef on adrelid = c.oid and adnum = attnum
        where relnamespace = 'mikkoo'::regnamespace and relkind = 'r'
        union all
        select conname::text, pg_get_constraintdef(oid), obj_description(oid), null, null, null, null, null
        from pg_constraint where connamespace = 'mikkoo'::regnamespace
        union all
        select pg_get_indexdef(indexrelid), obj_description(indexrelid), null, null, null, null, null, null
        from pg_index join pg_class c on c.oid = indrelid where relnamespace = 'mikkoo'::regnamespace
        order by 1, 2
        """
    )


def test_it_upgrades_the_schema_of_mikkoo_3(
    make_database: Callable[..., Database], make_role: Callable[..., str], as_user: Callable[[str], Execute]
) -> None:
    database = make_database(mikkoo=False)
    database.execute(OLD_SCHEMA)
    role = make_role()
    database.execute(f'grant usage on schema mikkoo to {role}')
    said = install(database)
    assert f'may no longer call its functions: {role}' in said
    assert f'GRANT mikkoo_producer TO {role};' in said
    kept = (
        'select to_jsonb(a) - $$published_at$$, extract(epoch from published_at)::float8 from mikkoo.audit a'
    )
    assert database.execute(kept) == [
        (
            {
                'message_id': '6b1f5b0e-9f3f-4f0c-8d8e-0d6f4b1a2c3d',
                'event_id': 42,
                'queue': 'q',
                'exchange': 'e',
                'routing_key': 'k',
                'payload': 'p',
                'content_type': None,
                'properties': None,
                'headers': None,
                'received_at': None,
            },
            1487830634.471682,
        )
    ]
    fresh = make_database()
    shape = (
        'select attname::text, atttypid::regtype::text, attnotnull from pg_attribute'
        " where attrelid = 'mikkoo.audit'::regclass and attnum > 0 order by attnum"
    )
    assert database.execute(shape) == fresh.execute(shape)
    indexes = (
        'select pg_get_indexdef(indexrelid) from pg_index'
        " where indrelid = 'mikkoo.audit'::regclass order by 1"
    )
    assert database.execute(indexes) == fresh.execute(indexes)
    functions = (
        "select pg_get_functiondef(oid) from pg_proc where pronamespace = 'mikkoo'::regnamespace order by 1"
    )
    assert database.execute(functions) == fresh.execute(functions)

    database.execute("select pgq.create_queue('q')")
    producer = as_user(database.server.url(database.name, role))
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        producer(INSERT, 'q', 'ex', 'key', 'body', None)
    database.execute(f'grant mikkoo_producer to {role}')
    producer(INSERT, 'q', 'ex', 'key', 'body', None)
    assert install(database) == ''


def test_a_failure_leaves_nothing_half_done(make_database: Callable[..., Database]) -> None:
    database = make_database(mikkoo=False)
    database.execute(OLD_SCHEMA)
    # what somebody else has built upon it; the last step but one of the upgrade then fails
    database.execute('create table mikkoo.child (m uuid references mikkoo.audit (message_id))')
    before = database.execute(
        "select oid, proname, prosrc from pg_proc where pronamespace = 'mikkoo'::regnamespace"
    )
    assert 'other objects depend on it' in install(database)
    after = database.execute(
        "select oid, proname, prosrc from pg_proc where pronamespace = 'mikkoo'::regnamespace"
    )
    assert after == before
    assert database.execute("select to_regclass('mikkoo.schema_version')") == [(None,)]
    assert database.execute('select count(*) from mikkoo.audit') == [(1,)]
    database.execute('drop table mikkoo.child')
    assert install(database) == ''


def test_without_pgq(make_database: Callable[..., Database]) -> None:
    database = make_database(pgq=False, mikkoo=False)
    said = install(database)
    assert 'PgQ is not installed in database' in said
    assert 'CREATE EXTENSION pgq' in said
    assert said.count('ERROR') == 1
    assert database.execute("select to_regnamespace('mikkoo')") == [(None,)]


def test_a_newer_schema_is_left_alone(database: Database) -> None:
    database.execute('insert into mikkoo.schema_version (version) values (99)')
    before = objects(database)
    assert 'has version 99 of schema mikkoo, this file makes version' in install(database)
    assert objects(database) == before


def test_an_ordinary_user_is_told_what_is_missing(
    make_database: Callable[..., Database], make_role: Callable[..., str]
) -> None:
    database, user = make_database(mikkoo=False), make_role()
    database.execute(f'alter database {database.name} owner to {user}')
    said = install(database, user)
    assert f'user "{user}" may not administer PgQ' in said
    assert f'GRANT pgq_admin TO {user};' in said
    assert database.execute("select to_regnamespace('mikkoo')") == [(None,)]


def test_an_administrator_of_pgq_installs_all_but_the_trigger(
    make_database: Callable[..., Database],
    make_role: Callable[..., str],
    as_user: Callable[[str], Execute],
) -> None:
    database, owner, producer = make_database(mikkoo=False), make_role('in role pgq_admin'), make_role()
    database.execute(f'alter database {database.name} owner to {owner}')
    database.execute("select pgq.create_queue('q')")
    said = install(database, owner)
    assert 'no trigger on pgq.tick' in said
    assert 'ERROR' not in said
    assert database.execute("select nspowner::regrole::text from pg_namespace where nspname = 'mikkoo'") == [
        (owner,)
    ]
    database.execute(f'grant mikkoo_producer to {producer}')
    as_user(database.server.url(database.name, producer))(AUDITED, 'q', 'ex', 'key', 'body', None)
    assert database.execute('select count(*) from pgq.event_template') == [(1,)]
    assert as_user(database.server.url(database.name, owner))('select mikkoo.move_retries()') == [(0,)]
    assert f'schema mikkoo belongs to "{owner}"' in install(database)


def test_a_planted_schema_is_not_taken_over(
    make_database: Callable[..., Database], make_role: Callable[..., str]
) -> None:
    database, mallory = make_database(mikkoo=False), make_role()
    database.execute(f'create schema mikkoo authorization {mallory}')
    assert f'schema mikkoo belongs to "{mallory}", not to "postgres"' in install(database)
    assert database.execute("select count(*) from pg_proc where pronamespace = 'mikkoo'::regnamespace") == [
        (0,)
    ]


def test_a_planted_function_gets_our_owner(database: Database, make_role: Callable[..., str]) -> None:
    mallory = make_role()
    database.execute(f'alter function mikkoo.notify_tick() owner to {mallory}')
    assert install(database) == ''
    owners = (
        "select distinct proowner::regrole::text from pg_proc where pronamespace = 'mikkoo'::regnamespace"
    )
    assert database.execute(owners) == [('postgres',)]


def test_roles_that_cannot_be_created() -> None:
    """On a server of its own: roles belong to the whole cluster."""
    with PostgresServer() as server:
        database = Database(server, 'fresh')
        server.create_database('fresh', mikkoo=False)
        server.execute(
            'create role owner login; grant pgq_admin to owner; alter database fresh owner to owner'
        )
        said = install(database, 'owner')
        assert 'role "mikkoo_producer" does not exist, and user "owner" may not create it' in said
        assert (
            'CREATE ROLE mikkoo_auditor; CREATE ROLE mikkoo_relay; GRANT pgq_reader TO mikkoo_relay;' in said
        )
        assert server.execute("select 1 from pg_roles where rolname like 'mikkoo%'") == []
        server.execute('create role mikkoo_producer; create role mikkoo_auditor; create role mikkoo_relay')
        assert 'may not make mikkoo_relay a member of pgq_reader' in install(database, 'owner')
        server.execute('grant pgq_reader to mikkoo_relay')
        assert 'ERROR' not in install(database, 'owner')
        assert database.execute('select max(version) from mikkoo.schema_version') == [(pgq.SCHEMA_VERSION,)]

        plain_pgq(server, 'plain', 'creator')
        assert install(Database(server, 'plain'), 'creator') == ''


def plain_pgq(server: PostgresServer, name: str, owner: str) -> Database:
    """A database with pgq_pl_only.sql, installed by its owner, who is no superuser but may create roles."""
    database = Database(server, name)
    server.create_database(name, pgq=False, mikkoo=False)
    server.execute(f'create role {owner} login createrole; alter database {name} owner to {owner}')
    [(folder,)] = database.execute(SHAREDIR, ('SHAREDIR',))
    done = psql(database, Path(str(folder)) / 'contrib' / 'pgq_pl_only.sql', owner, '-v', 'ON_ERROR_STOP=1')
    assert done.returncode == 0, done.stderr
    return database


def test_on_pgq_without_c_functions(
    postgres: PostgresServer, make_role: Callable[..., str], as_user: Callable[[str], Execute]
) -> None:
    name, owner = f'plain_{uuid.uuid4().hex[:8]}', f'owner_{uuid.uuid4().hex[:8]}'
    relay, producer = make_role(), make_role()
    pulse = Pulse()
    try:
        database = plain_pgq(postgres, name, owner)
        assert install(database, owner) == ''
        assert install(database, owner) == ''
        execute = as_user(postgres.url(name, owner))
        execute("select pgq.create_queue('q')")
        for key in ('ticker_max_lag', 'ticker_idle_period'):
            execute("select pgq.set_queue_config('q', %s, '0')", key)
        execute(f'grant mikkoo_relay to {relay}; grant mikkoo_producer to {producer}')
        sessions = [
            Session.connect(postgres.url(name, relay), pulse, application_name='mikkoo worker q')
            for _ in range(2)
        ]
        assert pgq.pgq_version(sessions[0]) == pgq.PL_ONLY
        assert pgq.missing_privileges(sessions[0], 'q') == []
        consumer, reader = Consumer(sessions[0], 'q', 'mikkoo'), Reader(sessions[1])
        assert consumer.own()
        consumer.register()
        assert consumer.listen()
        produce = as_user(postgres.url(name, producer))
        produce(INSERT, 'q', 'ex', 'key', 'body', None)
        with pytest.raises(psycopg2.Error, match='no queue "nope"'):
            produce(INSERT, 'nope', 'ex', 'key', 'body', None)
        for count in (None, 1):
            execute("select pgq.ticker('q')")
            until(consumer.ticked, 10, 'the tick is announced')
            batch = consumer.next_batch()
            assert batch is not None
            reader.open(batch)
            [row] = reader.fetch(1)
            assert (row[3], row[5]) == (count, 'body')
            reader.pause()
            consumer.settle(batch, [Retry(row, 0.0)])
            assert consumer.move_retries() == 1
    finally:
        pulse.close()
        postgres.drop_database(name)
        postgres.execute(f'drop role {owner}')
