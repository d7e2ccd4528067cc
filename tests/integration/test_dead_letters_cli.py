"""`mikkood dead-letters` on real databases: what it finds, what it puts back for whom, what it refuses."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mikkoo.common.errors import Exit
from tests.integration.mikkood import Done
from tests.integration.readable import SCRIPT
from tests.servers.waiting import until

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.servers.postgres import PostgresServer

Row = tuple[Any, ...]
TIME = '2026-11-22 10:00:00.123456+00'
BURY = """
    insert into mikkoo.dead_letter (queue, consumer, event_id, event_time, event_txid, attempts, exchange,
        routing_key, payload, content_type, properties, headers, reason_code, reason, first_failed_at,
        dead_at)
    values (%(queue)s, %(consumer)s, %(event_id)s, %(event_time)s, 7, 3, %(exchange)s, %(routing_key)s,
        %(payload)s, 'text/plain', '{"type": "t"}', '{"h": 1}', %(reason_code)s, %(reason)s,
        now() - interval '1 hour', now() - %(age)s * interval '1 second')
    returning id
"""
GIVEN: dict[str, object] = {
    'queue': 'invoices', 'consumer': 'mikkoo', 'event_id': 42, 'event_time': TIME, 'exchange': 'ex',
    'routing_key': 'a.key', 'payload': 'body', 'reason_code': 'returned', 'reason': '312 NO_ROUTE', 'age': 0,
}  # fmt: skip
FAILING = "insert into mikkoo.failing_event values ('invoices', 'mikkoo', %s, %s, now())"


class Shop:
    """A database with a queue, consumers, and a configuration with one worker for it."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.path = folder / 'mikkoo.yml'
        self._event_ids = count(42)
        self.configure(invoices=('invoices', database.relay_url))
        self.execute("select pgq.create_queue('invoices')")
        for key in ('ticker_max_lag', 'ticker_idle_period'):
            self.execute("select pgq.set_queue_config('invoices', %s, '0')", (key,))
        for consumer in ('mikkoo', 'other'):
            self.execute("select pgq.register_consumer('invoices', %s)", (consumer,))

    def configure(self, **workers: tuple[str, str]) -> None:
        lines = [
            f'    {name}: {{queue: {queue}, postgres_url: "{url}"}}' for name, (queue, url) in workers.items()
        ]
        self.path.write_text('\n'.join(['Application:', '  workers:', *lines]) + '\n')

    def execute(self, sql: str, parameters: object = None) -> list[Row]:
        return self.database.execute(sql, parameters)

    def bury(self, **changes: object) -> int:
        """A dead letter as the relay writes it, of events 42, 43, ...; its id."""
        event_id = next(self._event_ids)
        [(number,)] = self.execute(BURY, {**GIVEN, 'event_id': event_id, **changes})
        return int(number)

    def command(self, *arguments: str) -> list[str]:
        return [str(SCRIPT), '-c', str(self.path), 'dead-letters', *arguments]

    def __call__(self, *arguments: str) -> Done:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )

    def done(self, *arguments: str) -> str:
        """What a command says that has to succeed."""
        done = self(*arguments)
        assert (done.returncode, done.stderr) == (Exit.OK, ''), done
        return done.stdout

    def refused(self, *arguments: str, code: Exit = Exit.FAILURE) -> str:
        """Why a command was refused, nothing else having changed."""
        before = self.ids()
        done = self(*arguments)
        assert done.returncode == code and 'bug' not in done.stderr, done
        assert self.ids() == before
        return done.stderr

    def listed(self, *arguments: str) -> list[int]:
        answer = json.loads(self.done('list', '--json', *arguments))
        return sorted(letter['id'] for letter in answer['dead_letters'])

    def ids(self) -> list[int]:
        return [int(row[0]) for row in self.execute('select id from mikkoo.dead_letter order by id')]

    def delivered(self, consumer: str) -> list[Row]:
        """What a consumer gets with the next tick, which is finished."""
        self.execute("select pgq.ticker('invoices')")
        [(batch,)] = self.execute("select pgq.next_batch('invoices', %s)", (consumer,))
        if batch is None:
            return []
        rows = self.execute('select * from pgq.get_batch_events(%s)', (batch,))
        self.execute('select pgq.finish_batch(%s)', (batch,))
        return rows


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Shop:
    return Shop(database, tmp_path)


# Looking


def test_nothing_to_list(shop: Shop) -> None:
    assert 'no dead letters' in shop.done('list')
    assert json.loads(shop.done('list', '--json')) == {'total': 0, 'dead_letters': []}


def test_a_list_for_people(shop: Shop) -> None:
    first, second = shop.bury(), shop.bury(exchange=None, reason='two\nlines\x1b[2J', age=7200)
    lines = shop.done('list').splitlines()
    assert lines[0].endswith(f'/{shop.database.name}')
    assert lines[1].split()[:3] == ['ID', 'QUEUE', 'EVENT']
    assert lines[2].split() == [
        str(second), 'invoices', '43', '-', 'a.key', '3', '2', 'h', '0', 'min', 'returned',
        'two\\nlines\\x1b[2J',
    ]  # fmt: skip
    assert lines[3].split()[0] == str(first)
    assert len(lines) == 4


def test_a_limit_says_how_many_more(shop: Shop) -> None:
    ids = [shop.bury() for _ in range(5)]
    assert shop.done('list', '--limit', '2').splitlines()[-1] == 'and 3 more'
    assert shop.listed('--limit', '2') == ids[3:]
    assert json.loads(shop.done('list', '--json', '--limit', '2'))['total'] == 5


def test_filters(shop: Shop) -> None:
    plain = shop.bury()
    queue = shop.bury(queue='orders')
    default = shop.bury(exchange=None)
    key = shop.bury(routing_key='%s')
    reason = shop.bury(reason_code='untranslatable')
    old = shop.bury(age=3600)
    everything = [plain, queue, default, key, reason, old]
    assert shop.listed() == everything
    assert shop.listed('--queue', 'orders') == [queue]
    assert shop.listed('--worker', 'invoices') == [plain, default, key, reason, old]
    assert shop.listed('--exchange', '') == [default]
    assert shop.listed('--routing-key', '%s') == [key]
    assert shop.listed('--reason', 'untranslatable') == [reason]
    assert shop.listed('--older-than', '30 min') == [old]
    assert shop.listed('--newer-than', '0.5h') == [plain, queue, default, key, reason]
    assert shop.listed('--newer-than', '2 h', '--older-than', '1800s') == [old]
    assert shop.listed('--queue', 'orders', '--reason', 'untranslatable') == []


def test_a_worker_means_its_consumer_too(shop: Shop) -> None:
    mine, _ = shop.bury(), shop.bury(consumer='other')
    assert shop.listed('--worker', 'invoices') == [mine]
    assert 'it has: invoices' in shop.refused('list', '--worker', 'nobody')


def test_all_of_one(shop: Shop) -> None:
    number = shop.bury(payload='first\nsecond\x07', routing_key=None)
    [(row,)] = shop.execute('select to_jsonb(d) from mikkoo.dead_letter d')
    shown = json.loads(shop.done('show', str(number), '--json'))
    assert shown.pop('database').endswith(f'/{shop.database.name}')
    assert shown.pop('age') >= 0
    assert shown.pop('payload_bytes') == 13
    for name in ('event_time', 'first_failed_at', 'last_failed_at', 'dead_at'):
        assert datetime.fromisoformat(shown.pop(name)) == datetime.fromisoformat(row.pop(name))
    assert shown == row
    text = shop.done('show', str(number))
    assert text.endswith('\n  payload\nfirst\nsecond\\x07\n')
    for name, value in row.items():
        if name not in ('id', 'payload'):
            assert f'\n  {name:16} {"NULL" if value is None else value}\n' in text
    assert 'event_time       2026-11-22T10:00:00.123456+00:00' in text


def test_one_that_is_not_there(shop: Shop) -> None:
    number = shop.bury()
    for command in ('show', 'retry', 'discard'):
        assert 'there is no dead letter 999' in shop.refused(command, '999')
    said = shop.refused('retry', str(number), '999', '--yes')
    assert 'there is no dead letter 999 in' in said and str(number) not in said.partition(' in ')[0]
    assert 'that matches' in shop.refused('discard', str(number), '--queue', 'orders')


def test_an_event_that_python_cannot_hold(shop: Shop) -> None:
    number = shop.bury(event_time='infinity')
    assert json.loads(shop.done('show', str(number), '--json'))['event_time'] == 'infinity'
    assert shop.listed() == [number]


def test_bytes_that_are_no_text(postgres: PostgresServer, tmp_path: Path) -> None:
    """In a database without an encoding; the event goes back as it was."""
    from tests.conftest import Database

    name = f'ascii_{os.getpid()}'
    postgres.execute(
        f"create database {name} template template0 encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'"
    )
    try:
        database = Database(postgres, name)
        database.execute('create extension pgq')
        database.execute((Path(__file__).parents[2] / 'mikkoo.sql').read_text().replace('%', '%%'), ())
        database.execute(f'create role relay_{name} login; grant mikkoo_relay to relay_{name}')
        shop = Shop(database, tmp_path)
        number = shop.bury()
        database.execute("update mikkoo.dead_letter set payload = convert_from('\\xff41', 'SQL_ASCII')")
        assert json.loads(shop.done('show', str(number), '--json'))['payload'] == '\\377A'
        shop.done('retry', str(number))
        database.execute("select pgq.ticker('invoices')")
        [(batch,)] = database.execute("select pgq.next_batch('invoices', 'mikkoo')")
        kept = "select convert_to(ev_data, 'SQL_ASCII') = '\\xff41' from pgq.get_batch_events(%s)"
        assert database.execute(kept, (batch,)) == [(True,)]
    finally:
        postgres.drop_database(name)
        postgres.execute(f'drop role if exists relay_{name}')


# Putting back


def test_an_event_comes_back_as_it_was_and_to_its_consumer_only(shop: Shop) -> None:
    number = shop.bury(exchange=None, routing_key='key', payload=None)
    kept = shop.bury()
    for event_id in (42, 43):
        shop.execute(FAILING, (event_id, TIME))
    assert 'put back 1 dead letter\n' in shop.done('retry', str(number))
    assert shop.ids() == [kept]
    assert shop.execute('select event_id from mikkoo.failing_event') == [(43,)]
    [event] = shop.delivered('mikkoo')
    assert (event[0], event[1]) == (42, datetime.fromisoformat(TIME))
    assert event[3:] == (None, 'key', None, None, 'text/plain', '{"type": "t"}', '{"h": 1}')
    assert shop.delivered('other') == []


def test_by_a_filter(shop: Shop) -> None:
    ids = [shop.bury(event_id=number, age=number * 60) for number in range(4)]
    shop.done('retry', '--older-than', '90s', '--yes')
    assert shop.ids() == ids[:2]
    assert sorted(event[0] for event in shop.delivered('mikkoo')) == [2, 3]
    assert 'no dead letter matches' in shop.done('retry', '--queue', 'nope')


def test_ten_thousand(shop: Shop) -> None:
    """In the order of their events, and with one tick."""
    shop.execute("""
        insert into mikkoo.dead_letter (queue, consumer, event_id, event_time, event_txid, attempts, payload,
            reason_code, reason, first_failed_at)
        select 'invoices', 'mikkoo', n, now(), 7, 1, repeat('x', 200), 'refused', 'r', now()
        from generate_series(1, 10000) n
    """)
    began = time.monotonic()
    assert 'put back 10,000 dead letters' in shop.done('retry', '--all', '--yes')
    assert time.monotonic() - began < 60  # 20 s are reasonable
    assert shop.ids() == []
    assert [event[0] for event in shop.delivered('mikkoo')] == list(range(1, 10001))


def test_of_two_at_once_one_wins(shop: Shop) -> None:
    """Held up by a third that has the row, both have looked and found it there."""
    number = shop.bury()
    waiting = (
        "select count(*) from pg_stat_activity where application_name = 'mikkood dead-letters'"
        " and wait_event_type = 'Lock'"
    )
    holder = shop.database.connect()
    holder.autocommit = False
    try:
        with holder.cursor() as cursor:
            cursor.execute('select from mikkoo.dead_letter for update')
        rivals = [
            subprocess.Popen(
                shop.command('retry', str(number)),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for _ in range(2)
        ]  # fmt: skip
        until(lambda: shop.execute(waiting) == [(2,)], 30, 'both wait for the row')
    finally:
        holder.close()
    ends = [rival.communicate(timeout=60) for rival in rivals]
    assert sorted(rival.returncode for rival in rivals) == [Exit.OK, Exit.FAILURE]
    assert sum('by somebody else' in said for _, said in ends) == 1
    assert [event[0] for event in shop.delivered('mikkoo')] == [42]


def test_two_that_retry_everything_at_once(shop: Shop) -> None:
    """Neither fails but for what the other was quicker to take; each event comes back once."""
    shop.execute("""
        insert into mikkoo.dead_letter (queue, consumer, event_id, event_time, event_txid, attempts,
            reason_code, reason, first_failed_at)
        select 'invoices', 'mikkoo', n, now(), 7, 1, 'refused', 'r', now() from generate_series(1, 5000) n
    """)
    rivals = [
        subprocess.Popen(
            shop.command('retry', '--all', '--yes'),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [rival.communicate(timeout=60)[1] for rival in rivals]
    assert all(not text or 'by somebody else' in text for text in said), said
    assert shop.ids() == []
    events = shop.delivered('mikkoo') + shop.delivered('mikkoo')
    assert [event[0] for event in events] == list(range(1, 5001))


def test_a_consumer_or_a_queue_that_is_gone(shop: Shop) -> None:
    good, gone, nowhere = shop.bury(), shop.bury(consumer='gone'), shop.bury(queue='nowhere')
    assert 'consumer "gone" is not registered with queue "invoices"' in shop.refused('retry', str(gone))
    said = shop.refused('retry', '--all', '--yes')
    assert 'consumer "gone"' in said and 'no queue "nowhere"' in said and 'nothing was done' in said
    shop.execute("select pgq.unregister_consumer('invoices', 'mikkoo')")
    assert 'consumer "mikkoo"' in shop.refused('retry', str(good))
    shop.done('discard', str(nowhere))
    assert shop.ids() == [good, gone]


def test_an_event_that_is_being_retried_already(shop: Shop) -> None:
    number = shop.bury()
    shop.execute(
        "select pgq.event_retry_raw('invoices', 'mikkoo', now() + interval '1 hour', 42, now(), 1, 'k', 'd',"
        ' null, null, null, null)'
    )
    assert f'not put back: {number}: an event of the same id' in shop.refused('retry', str(number))
    others = [shop.bury() for _ in range(5)]
    done = shop('retry', '--all', '--yes')
    assert done.returncode == Exit.FAILURE and f'not put back: {number}:' in done.stderr
    assert 'put back 5 ' in done.stdout and shop.ids() == [number]
    assert len(shop.delivered('mikkoo')) == len(others)
    shop.execute('delete from pgq.retry_queue')
    twin = shop.bury(event_id=42, event_time='2026-11-21 10:00:00+00')
    done = shop('retry', str(number), str(twin), '--yes')
    assert done.returncode == Exit.FAILURE and f'not put back: {twin}:' in done.stderr
    shop.done('retry', str(twin))
    assert [event[0] for event in shop.delivered('mikkoo')] == [42, 42]


def test_the_right_to_put_back(shop: Shop) -> None:
    number = shop.bury()
    right = 'execute on function pgq.event_retry_raw(text,text,timestamptz,bigint,timestamptz,integer,text,'
    shop.execute(f'revoke {right}text,text,text,text,text) from mikkoo_relay')
    said = shop.refused('retry', str(number))
    grant = said[said.index('GRANT ') : said.index('; or')]
    shop.execute(grant)
    shop.done('retry', str(number))


def test_where_the_relay_has_to_move_them(shop: Shop) -> None:
    """The event is safe in the retry queue; that is said, and is no failure."""
    number = shop.bury()
    shop.execute('revoke execute on function mikkoo.move_retries() from mikkoo_relay')
    done = shop('retry', str(number))
    assert done.returncode == Exit.OK and 'pgqd moves them' in done.stderr
    assert shop.execute('select ev_id from pgq.retry_queue') == [(42,)]


# Discarding, and being asked


def test_discarding(shop: Shop) -> None:
    ids = [shop.bury(event_id=number) for number in (1, 2, 3)]
    for number in (1, 2):
        shop.execute(FAILING, (number, TIME))
    assert 'discarded 1 dead letter\n' in shop.done('discard', str(ids[0]))
    assert shop.ids() == ids[1:]
    assert shop.execute('select event_id from mikkoo.failing_event') == [(2,)]
    assert 'discarded 2 dead letters\n' in shop.done('discard', '--queue', 'invoices', '--yes')
    assert shop.ids() == shop.delivered('mikkoo') == []


@pytest.mark.parametrize('command', ['retry', 'discard'])
def test_without_anybody_to_ask_nothing_is_done(shop: Shop, command: str) -> None:
    shop.bury(), shop.bury()
    assert '--yes' in shop.refused(command, '--all', code=Exit.USAGE)


@pytest.mark.parametrize('command', ['retry', 'discard'])
@pytest.mark.parametrize(('answer', 'agreed'), [('n', False), ('', False), ('\x04', False), ('yes', True)])
def test_it_shows_and_asks(shop: Shop, command: str, answer: str, agreed: bool) -> None:
    ids = [shop.bury(event_id=100 + number) for number in range(12)]
    terminal, theirs = pty.openpty()
    with subprocess.Popen(
        shop.command(command, '--all'), stdin=theirs, stdout=subprocess.PIPE, text=True
    ) as process:
        os.write(terminal, answer.encode() + b'\n')
        shown, _ = process.communicate(timeout=60)
    os.close(terminal)
    os.close(theirs)
    assert ' 111 ' in shown and 'and 2 more' in shown and '[y/N]' in shown
    assert process.returncode == (Exit.OK if agreed else Exit.FAILURE)
    assert shop.ids() == ([] if agreed else ids)


@pytest.mark.parametrize('arguments', [[], ['1', '--all'], ['--all', '--queue', 'invoices']])
@pytest.mark.parametrize('command', ['retry', 'discard'])
def test_what_is_meant_must_be_clear(shop: Shop, command: str, arguments: list[str]) -> None:
    shop.bury()
    assert '--all' in shop.refused(command, *arguments, '--yes', code=Exit.USAGE)


# Databases


@pytest.fixture
def second(postgres: PostgresServer) -> Iterator[Callable[[], Database]]:
    from tests.conftest import Database

    made: list[str] = []

    def make() -> Database:
        made.append(f'second_{os.getpid()}_{len(made)}')
        postgres.create_database(made[-1])
        return Database(postgres, made[-1])

    yield make
    for name in made:
        postgres.drop_database(name)


def test_several_databases(shop: Shop, second: Callable[[], Database], tmp_path: Path) -> None:
    """One of them by two urls; the same number in both."""
    other = second()
    shop.configure(
        invoices=('invoices', shop.database.relay_url),
        again=('orders', shop.database.url + '?application_name=x'),
        far=('far', other.url),
    )
    number = shop.bury()
    [(twin,)] = other.execute(BURY, {**GIVEN, 'queue': 'far'})
    assert number == twin == 1
    answer = json.loads(shop.done('list', '--json'))
    assert answer['total'] == 2
    assert len({letter['database'] for letter in answer['dead_letters']}) == 2
    assert 'give --worker' in shop.refused('show', '1')
    assert 'give --worker' in shop.refused('discard', '1')
    assert json.loads(shop.done('show', '1', '--worker', 'far', '--json'))['queue'] == 'far'
    shop.done('discard', '1', '--worker', 'far')
    assert shop.ids() == [1]
    assert other.execute('select count(*) from mikkoo.dead_letter') == [(0,)]


@pytest.mark.parametrize('action', ['list', 'retry'])
def test_without_mikkoo_sql(shop: Shop, action: str) -> None:
    arguments = [action] if action == 'list' else [action, '--all']
    shop.execute('delete from mikkoo.schema_version where version > 1')
    done = shop(*arguments)
    assert done.returncode == Exit.FAILURE
    assert 'version 1 of mikkoo.sql' in done.stderr and 'mikkood sql | psql' in done.stderr
    shop.execute('drop schema mikkoo cascade')
    done = shop(*arguments)
    assert done.returncode == Exit.FAILURE
    assert 'has no mikkoo.sql' in done.stderr and 'mikkood sql | psql' in done.stderr


def test_a_user_without_rights(shop: Shop) -> None:
    shop.execute(f'revoke mikkoo_relay from relay_{shop.database.name}')
    assert f'GRANT mikkoo_relay TO relay_{shop.database.name};' in shop.refused('list')


def test_no_password_is_shown(shop: Shop) -> None:
    url = f'postgresql://nobody:very-secret@127.0.0.1:{shop.database.server.port}/{shop.database.name}'
    shop.configure(invoices=('invoices', url))
    said = shop.refused('list')
    assert 'nobody' in said and 'very-secret' not in said


def test_a_wrong_configuration(shop: Shop) -> None:
    shop.path.write_text('Application: {workers: {x: {nonsense: 1}}}')
    assert 'nonsense' in shop.refused('list', code=Exit.CONFIG)
