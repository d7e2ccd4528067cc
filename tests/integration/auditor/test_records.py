"""The statements that settle records, in databases that make it hard."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from mikkoo.auditor.compare import Memory
from mikkoo.auditor.settling import Settling
from mikkoo.common.audit_settle import Arrival, Records
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from tests.conftest import Database
from tests.servers.postgres import SCHEMA_FILE, PostgresServer

MANY = 3000  # records made by one transaction
ASKED = 20
MAKE = """
    insert into mikkoo.audit (message_id, event_id, queue, exchange, routing_key, payload)
    select gen_random_uuid(), n, 'q', 'shop', 'k', 'body' from generate_series(1, %s) as n
    returning message_id::text
"""
INSERT = """
    insert into mikkoo.audit (message_id, event_id, properties, published_at, queue, exchange, routing_key,
        payload, content_type)
    values (%s, 1, %s, now() - interval '1 day', {}, {}, {}, {}, {})
"""
FETCHED = "select idx_tup_fetch from pg_stat_xact_all_tables where relid = 'mikkoo.audit'::regclass"
ACTIONS = pytest.mark.parametrize('action', ['delete', 'mark'])


@contextmanager
def records_of(url: str) -> Iterator[Records]:
    with closing(Pulse()) as pulse, closing(Session.connect(url, pulse, application_name='test')) as session:
        yield Records(session, 'proof')


def arrived(message_id: str, exchange: str = 'shop', key: str = 'k', body: bytes = b'body') -> Arrival:
    digest = hashlib.sha256(body).digest()
    return Arrival(message_id, exchange, key, '', digest, len(body), time.monotonic())


@ACTIONS
@pytest.mark.parametrize('last_looked_at', ['never', 'empty', 'settled'])
def test_a_record_is_found_by_its_key_whatever_the_statistics_say(
    database: Database, action: Any, last_looked_at: str
) -> None:
    """In a table that was filled at once: reading what is outstanding for each message takes minutes."""
    if last_looked_at == 'settled':
        database.execute(MAKE, (MANY,))
        database.execute('update mikkoo.audit set received_at = now()')
    if last_looked_at != 'never':
        database.execute('analyze mikkoo.audit')
        database.execute('delete from mikkoo.audit')
        database.execute('vacuum mikkoo.audit')
    made = [str(message_id) for (message_id,) in database.execute(MAKE, (MANY,))]
    with records_of(database.auditor_url) as records, records.session.transaction():
        found = records.settle([arrived(one) for one in made[:ASKED]], action, time.monotonic())
        [(fetched,)] = records.session.fetch(FETCHED)
    assert [finding.settled for finding in found] == [True] * ASKED
    assert fetched <= 3 * ASKED


def text(value: bytes) -> str:
    """The SQL of a text of these bytes."""
    return rf"convert_from('\x{value.hex()}', 'SQL_ASCII')"


LATIN = text(b'caf\xe9')


@pytest.fixture
def unencoded(postgres: PostgresServer) -> Iterator[Database]:
    """A database of SQL_ASCII, whose texts are any bytes."""
    made = Database(postgres, f'ascii_{uuid.uuid4().hex[:8]}')
    postgres.execute(
        f"create database {made.name} encoding 'SQL_ASCII' template template0 lc_collate 'C' lc_ctype 'C'"
    )
    try:
        made.execute('create extension pgq')
        postgres.run_file(SCHEMA_FILE, made.name)
        yield made
    finally:
        postgres.drop_database(made.name)


@ACTIONS
def test_records_that_are_no_text_hold_up_nobody(unencoded: Database, action: Any) -> None:
    """Bytes that are UTF-8 are compared as such; others differ from whatever arrives."""
    latin, utf8 = str(uuid.uuid4()), str(uuid.uuid4())
    properties = '{"content_type": null}'  # has to be looked at
    unencoded.execute(INSERT.format(*[LATIN] * 5), (latin, properties))
    exchange, key, body = (text(one.encode()) for one in ('café', 'clé', 'thé'))
    unencoded.execute(INSERT.format("'q'", exchange, key, body, 'null'), (utf8, properties))
    arrivals = [arrived(latin), arrived(utf8, 'café', 'clé', 'thé'.encode())]
    with records_of(unencoded.url) as records:
        outcome = Settling(records, action, Memory(10)).run(arrivals, ['å'], time.monotonic())
        fetch = records.session.fetch
        counted = fetch('select queue, exchange, received, differing from mikkoo.audit_tally order by 3, 1')
        noted = fetch('select message_id::text, fields from mikkoo.audit_difference')
        [(left,)] = fetch('select count(*) from mikkoo.audit where received_at is null')
    assert set(outcome.tallies) == {('caf\\xe9', 'caf\\xe9'), ('q', 'café'), ('', 'å')}
    assert counted == [('', 'å', 0, 0), ('caf\\xe9', 'caf\\xe9', 1, 1), ('q', 'café', 1, 0)]
    assert noted == [(latin, ['exchange', 'routing_key', 'content_type', 'body'])]
    assert left == 0


def test_a_record_that_is_no_text_expires(unencoded: Database) -> None:
    message_id = str(uuid.uuid4())
    unencoded.execute(INSERT.format(LATIN, "'shop'", LATIN, LATIN, LATIN), (message_id, None))
    with records_of(unencoded.url) as records:
        assert records.expire(['shop'], 60.0) == [('caf\\xe9', 'shop', message_id)]
    assert unencoded.execute('select queue, expired from mikkoo.audit_tally') == [('caf\\xe9', 1)]
