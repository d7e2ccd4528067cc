"""Deduplication by message_id: PostgreSQL, in the callback's transaction; a local file."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mikkoo.common.errors import DatabaseError
from mikkoo.connector import INBOX_SQL, ConfigurationError, ConnectorError, MQConnector
from tests.conftest import Database
from tests.integration.connector.conftest import PATIENCE, Stage
from tests.integration.connector.test_consuming import Collector, nothing
from tests.servers.proxy import Proxy
from tests.servers.waiting import until


class Shop:
    """A service whose callback writes what it got into a table, and then does what a test asks for."""

    def __init__(self, stage: Stage, database: Database, url: str = '', **given: Any) -> None:
        self.stage, self.database = stage, database
        database.execute('create table if not exists effect (body text)')
        self.service: MQConnector = stage.service(postgres_url=url or database.url)
        self.calls = Collector()
        self.errors = Collector()
        self.then: Callable[..., object] = nothing
        self.service.register_consumer(
            'a', None, 'q', self.handle, self.errors, **{'deduplicate': 'postgres', **given}
        )

    def handle(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        with self.service.transaction() as cursor:
            cursor.execute('insert into effect values (%s)', (body.decode(),))
            assert cursor.rowcount == 1
        self.calls(channel, method, properties, body)
        self.then(channel, method, properties, body)

    def start(self) -> None:
        assert self.service.run_consumers(timeout=PATIENCE)

    def effects(self) -> list[str]:
        return [str(body) for (body,) in self.database.execute('select body from effect order by body')]

    def inbox(self) -> int:
        [(count,)] = self.database.execute('select count(*) from mikkoo.inbox')
        return int(str(count))


def test_a_message_that_was_handled_is_dropped(stage: Stage, database: Database) -> None:
    shop = Shop(stage, database)
    for body, number in ((b'a', '1'), (b'a', '1'), (b'b', '2'), (b'a', '1')):
        stage.fill('q', body, message_id=number, correlation_id='one for all')
    stage.fill('q', b'c')
    stage.fill('q', b'c')  # without message_id: nothing to go by
    shop.start()
    stage.settled('q')
    assert shop.effects() == ['a', 'b', 'c', 'c']
    assert shop.calls.bodies == [b'a', b'b', b'c', b'c']
    assert shop.service.consumers['a'].counted['duplicates'] == 2
    assert database.execute('select consumer, message_id from mikkoo.inbox order by 2') == [
        ('test.a', '1'), ('test.a', '2'),
    ]  # fmt: skip


def test_a_failure_undoes_everything_and_is_tried_again(stage: Stage, database: Database) -> None:
    shop = Shop(stage, database)

    def then(*given: Any) -> None:
        if len(shop.calls.calls) < 3:
            given[0].basic_ack(given[1].delivery_tag)  # waits for the commit, which never comes
            raise RuntimeError('not yet')

    shop.then = then
    stage.fill('q', b'a', message_id='1')
    shop.start()
    stage.settled('q')
    assert len(shop.calls.calls) == 3
    assert (shop.effects(), shop.inbox()) == (['a'], 1)


def test_poison_leaves_nothing_in_the_database(stage: Stage, database: Database) -> None:
    shop = Shop(stage, database, max_attempts=2)

    def then(*given: Any) -> None:
        raise RuntimeError('never')

    shop.then = then
    stage.fill('q', b'a', message_id='1')
    shop.start()
    assert [body for _, _, body in stage.take('q.dead', 1)] == [b'a']
    assert (shop.effects(), shop.inbox()) == ([], 0)


def test_what_the_callback_settles_is_sent_after_the_commit(stage: Stage, database: Database) -> None:
    shop = Shop(stage, database, auto_ack=False)

    def then(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if body == b'refused' and not method.redelivered:
            channel.basic_nack(method.delivery_tag)
        else:
            channel.basic_ack(method.delivery_tag)
            assert (shop.effects(), shop.inbox()) == (before, len(set(before)))

    before: list[str] = []
    shop.then = then
    stage.fill('q', b'a', message_id='1')
    shop.start()
    stage.settled('q')
    assert shop.effects() == ['a']
    before = ['a']
    stage.fill('q', b'refused', message_id='2')
    until(lambda: shop.calls.bodies == [b'a', b'refused', b'refused'], PATIENCE, 'it comes again')
    stage.settled('q')
    assert (shop.effects(), shop.inbox()) == (['a', 'refused'], 2)


def test_a_block_that_fails_is_undone_alone(stage: Stage, database: Database) -> None:
    shop = Shop(stage, database)
    found: list[object] = []

    def then(*given: Any) -> None:
        with pytest.raises(DatabaseError) as caught:
            with shop.service.transaction() as cursor:
                cursor.execute('insert into effect values (%s)', ('undone',))
                cursor.execute('select 1 / 0')
        assert caught.value.sqlstate == '22012'
        with pytest.raises(KeyError), shop.service.transaction() as cursor:
            cursor.execute('insert into effect values (%s)', ('undone too',))
            raise KeyError
        with shop.service.transaction() as cursor:
            cursor.executemany('insert into effect values (%s)', [('x',), ('y',)])
            cursor.execute('select body from effect order by 1')
            found.append((cursor.fetchone(), list(cursor), cursor.fetchall()))

    shop.then = then
    stage.fill('q', b'a', message_id='1')
    shop.start()
    stage.settled('q')
    assert shop.effects() == ['a', 'x', 'y']
    assert found == [(('a',), [('x',), ('y',)], [])]


def test_two_instances_never_handle_one_message_together(stage: Stage, database: Database) -> None:
    """The first is in its callback when its link breaks: the second waits for the end of its transaction."""
    shops = [Shop(stage, database), Shop(stage, database)]
    inside, go = threading.Event(), threading.Event()

    def then(*given: Any) -> None:
        inside.set()
        assert go.wait(PATIENCE)

    shops[0].then = then
    stage.fill('q', b'a', message_id='1')
    shops[0].start()
    assert inside.wait(PATIENCE)
    shops[1].start()
    stage.rabbitmq.ctl('close_all_connections', '--vhost', stage.vhost, 'test')

    def waits() -> bool:
        waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        return database.execute(waiting) == [(1,)]

    until(waits, PATIENCE, 'somebody else waits for the transaction')
    go.set()
    stage.settled('q')
    assert shops[0].effects() == ['a']
    assert len(shops[0].calls.calls) + len(shops[1].calls.calls) == 1


def test_an_outage_of_the_database_is_sat_out(
    stage: Stage, database: Database, proxy_factory: Callable[[str, int], Proxy]
) -> None:
    server = database.server
    proxy = proxy_factory('127.0.0.1', server.port)
    shop = Shop(stage, database, url=database.url.replace(f':{server.port}/', f':{proxy.port}/'))
    cut = threading.Event()

    def then(*given: Any) -> None:
        if not cut.is_set():
            cut.set()
            proxy.refuse()
            proxy.cut()
            with shop.service.transaction() as cursor:
                cursor.execute('select 1')

    shop.then = then
    stage.fill('q', b'a', b'b', message_id=None)
    stage.fill('q', b'c', message_id='1')
    shop.start()
    until(lambda: not shop.service.check_health(), PATIENCE, 'health says that it waits')
    assert 'mikkoo' not in shop.service.consumers['a'].waits_for or shop.effects() == []
    proxy.accept()
    stage.settled('q')
    assert shop.effects() == ['a', 'b', 'c']
    assert shop.errors.calls == [], 'nobody failed'
    assert shop.service.check_health()
    proxy.refuse()
    proxy.cut()
    stage.fill('q', b'd', message_id='2')
    until(lambda: not shop.service.check_health(), PATIENCE, 'out again')
    started = time.monotonic()
    shop.service.stop()
    assert time.monotonic() - started < 3 * 1.0
    assert [body for _, _, body in stage.take('q', 1)] == [b'd']


def test_a_lost_session_that_the_callback_hides_is_no_commit(stage: Stage, database: Database) -> None:
    shop = Shop(stage, database)

    def then(*given: Any) -> None:
        if len(shop.calls.calls) == 1:
            database.execute(
                'select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s',
                ('mikkoo test.a',),
            )
            with pytest.raises(DatabaseError), shop.service.transaction() as cursor:
                cursor.execute('select 1')

    shop.then = then
    stage.fill('q', b'a', message_id='1')
    shop.start()
    stage.settled('q')
    assert len(shop.calls.calls) == 2
    assert (shop.effects(), shop.inbox()) == (['a'], 1)


def test_a_stop_finishes_the_message_in_hand_with_its_transaction(stage: Stage, database: Database) -> None:
    shop = Shop(stage, database)
    inside = threading.Event()

    def then(*given: Any) -> None:
        inside.set()
        until(lambda: shop.service.consumers['a'].is_stopping, PATIENCE, 'asked to stop')
        with shop.service.transaction() as cursor:
            cursor.execute("insert into effect values ('late')")

    shop.then = then
    stage.fill('q', b'a', message_id='1')
    shop.start()
    assert inside.wait(PATIENCE)
    shop.service.stop()
    assert (shop.effects(), shop.inbox()) == (['a', 'late'], 1)
    stage.settled('q')


def test_a_service_has_the_settings_of_its_role(stage: Stage, database: Database) -> None:
    """Not the search_path of the relay's sessions."""
    shop = Shop(stage, database)
    seen: list[Any] = []

    def then(*given: Any) -> None:
        with shop.service.transaction() as cursor:
            cursor.execute("select current_setting('search_path'), 'effect'::regclass::text")
            seen.append(cursor.fetchone())

    shop.then = then
    stage.fill('q', b'a', message_id='1')
    shop.start()
    stage.settled('q')
    assert seen == [('"$user", public', 'effect')]


def test_pruned_after_keep(stage: Stage, database: Database) -> None:
    database.execute(
        "insert into mikkoo.inbox values ('test.a', 'old', now() - interval '2 hours'),"
        " ('test.a', 'young', now() - interval '30 minutes'), ('other', 'old', now() - interval '1 year')"
    )
    shop = Shop(stage, database, keep=3600.0)
    stage.fill('q', b'a', message_id='1')
    shop.start()
    stage.settled('q')
    kept = database.execute('select consumer, message_id from mikkoo.inbox order by 1, 2')
    assert kept == [('other', 'old'), ('test.a', '1'), ('test.a', 'young')]


def test_a_role_with_the_documented_rights(stage: Stage, database: Database) -> None:
    text = (Path(__file__).parents[3] / 'docs' / 'connector.md').read_text()
    [grants] = re.findall(r'`(GRANT .*? TO warehouse;)`', text)
    role = f'warehouse_{database.name}'
    database.execute(f'create role {role} login')
    database.execute(grants.replace('warehouse', role))
    shop = Shop(stage, database, database.server.url(database.name, role), keep=3600.0)
    database.execute(f'grant insert on effect to {role}')
    database.execute("insert into mikkoo.inbox values ('test.a', 'old', now() - interval '2 hours')")
    stage.fill('q', b'a', message_id='1')
    stage.fill('q', b'a', message_id='1')
    shop.start()
    stage.settled('q')
    assert (shop.effects(), shop.inbox()) == (['a'], 1)


def test_a_database_without_the_table_says_what_to_do(stage: Stage, database: Database) -> None:
    database.execute('drop table mikkoo.inbox')
    shop = Shop(stage, database)
    stage.fill('q', b'a', message_id='1')
    shop.start()
    until(lambda: 'INBOX_SQL' in shop.service.consumers['a'].waits_for, PATIENCE, 'it says so')
    assert not shop.service.check_health()
    database.execute(INBOX_SQL)
    database.execute(INBOX_SQL)
    stage.settled('q')
    assert shop.effects() == ['a']


def test_what_deduplication_needs(stage: Stage) -> None:
    service = stage.service()
    with pytest.raises(ConfigurationError, match='postgres_url: is missing'):
        service.register_consumer('a', None, 'q', nothing, deduplicate='postgres')
    with pytest.raises(ValueError, match="'redis'"):
        service.register_consumer('a', None, 'q', nothing, deduplicate='redis')
    with pytest.raises(ConnectorError, match='for callbacks'), service.transaction():
        pass
    errors = Collector()

    def handle(*given: Any) -> None:
        with service.transaction():
            pass

    service.register_consumer('a', None, 'q', handle, errors, max_attempts=1)
    stage.fill('q', b'a')
    assert service.run_consumers(timeout=PATIENCE)
    errors.wait(1)
    assert isinstance(errors.calls[0][1], ConnectorError)


def test_sqlite_remembers_across_restarts_and_prunes(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / 'state' / 'inbox.sqlite'
    got = Collector()
    for round_ in range(2):
        service = stage.service(inbox_file=str(file))
        service.register_consumer('a', None, 'q', got, deduplicate='sqlite', keep=3600.0)
        if round_:
            with sqlite3.connect(file) as connection:
                connection.execute("insert into inbox values ('test.a', 'old', ?)", (time.time() - 7200,))
            connection.close()
        stage.fill('q', b'a', message_id='1')
        stage.fill('q', b'b', message_id=f'{round_ + 2}')
        assert service.run_consumers(timeout=PATIENCE)
        stage.settled('q')
        service.stop()
    assert got.bodies == [b'a', b'b', b'b']
    connection = sqlite3.connect(file)
    assert connection.execute('select message_id from inbox order by 1').fetchall() == [
        ('1',),
        ('2',),
        ('3',),
    ]
    connection.close()


def test_sqlite_a_failure_is_not_remembered_and_a_bad_file_is_sat_out(stage: Stage, tmp_path: Path) -> None:
    folder = tmp_path / 'no folder'
    folder.write_text('a file')
    service, got, errors = stage.service(inbox_file=str(folder / 'inbox')), Collector(), Collector()

    def handle(*given: Any) -> None:
        got(*given)
        if len(got.calls) == 1:
            raise RuntimeError('once')

    service.register_consumer('a', None, 'q', handle, errors, deduplicate='sqlite')
    stage.fill('q', b'a', message_id='1')
    assert service.run_consumers(timeout=PATIENCE)
    until(lambda: 'inbox' in service.consumers['a'].waits_for, PATIENCE, 'it says why it waits')
    assert got.calls == []
    folder.unlink()
    stage.settled('q')
    assert got.bodies == [b'a', b'a']
    assert len(errors.calls) == 1
