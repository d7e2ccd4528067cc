"""common.postgres against real servers and broken links."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from mikkoo.common import postgres as postgres_module
from mikkoo.common.errors import DatabaseError, DatabaseLost, Outage, Stopping
from mikkoo.common.postgres import CANCEL_GRACE, LATE_ANSWER, Session
from mikkoo.common.pulse import Pulse
from tests.servers.pooler import Pooler
from tests.servers.process import free_port
from tests.servers.waiting import until

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.servers.postgres import PostgresServer
    from tests.servers.proxy import Proxy, Side

PROMPT = 1.0  # seconds within which a lost link, or a stop, has to be noticed
SLACK = 3  # on every deadline


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    made = Pulse()
    yield made
    made.close()


@pytest.fixture
def connect(pulse: Pulse) -> Iterator[Callable[..., Session]]:
    opened: list[Session] = []

    def make(url: str, **options: Any) -> Session:
        opened.append(Session.connect(url, pulse, application_name='mikkoo worker test', **options))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


@pytest.fixture
def session(database: Database, connect: Callable[..., Session]) -> Session:
    return connect(database.url)


@pytest.fixture
def proxy(postgres: PostgresServer, proxy_factory: Callable[[str, int], Proxy]) -> Proxy:
    return proxy_factory('127.0.0.1', postgres.port)


def through(port: int, database: Database) -> str:
    return f'postgresql://postgres@127.0.0.1:{port}/{database.name}'


def running(database: Database, sql: str) -> bool:
    """Whether a statement like `sql` is under way."""
    return bool(
        database.execute("select 1 from pg_stat_activity where state = 'active' and query = %s", (sql,))
    )


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Do `action` in a thread; its failure is the test's."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        assert not failed


@contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds * SLACK


def test_a_session_is_prepared(session: Session, database: Database) -> None:
    settings = dict(session.fetch('select name, setting from pg_settings'))
    assert settings['search_path'] == 'pg_catalog, pg_temp'
    assert settings['TimeZone'] == 'UTC'
    assert settings['client_encoding'] == 'UTF8'
    assert settings['default_transaction_isolation'] == 'read committed'
    assert settings['idle_in_transaction_session_timeout'] == '0'
    assert settings['statement_timeout'] == '300000'
    assert settings['tcp_user_timeout'] == '30000'
    assert settings['tcp_keepalives_idle'] == '20'
    assert session.one('select pg_backend_pid()') == (session.backend_pid,)
    seen = database.execute(
        'select application_name from pg_stat_activity where pid = %s', (session.backend_pid,)
    )
    assert seen == [('mikkoo worker test',)]
    assert session.server_version >= 130000


def test_settings_of_role_and_database_do_not_get_through(
    database: Database, connect: Callable[..., Session]
) -> None:
    for setting in (
        'default_transaction_isolation to serializable',
        "search_path to 'evil'",
        "idle_in_transaction_session_timeout to '1ms'",
    ):
        database.execute(f'alter database {database.name} set {setting}')
    session = connect(database.url)
    with session.transaction():
        session.execute('create table public.t (i int)')
        assert session.one("select current_setting('transaction_isolation')") == ('read committed',)
    assert session.one("select current_setting('search_path')") == ('pg_catalog, pg_temp',)


def test_rows_arguments_and_no_rows(session: Session) -> None:
    assert session.fetch('select %s::text, %s::int[], null', ('ä%', [1, 2])) == [('ä%', [1, 2], None)]
    assert session.fetch("select '100%'") == [('100%',)]
    assert session.one('select 1 where false') is None
    assert session.fetch('set jit to off') == []


def test_a_transaction_commits_or_rolls_back(session: Session) -> None:
    session.execute('create temp table t (i int)')
    with session.transaction():
        session.execute('insert into t values (1)')
    with pytest.raises(ZeroDivisionError):
        with session.transaction():
            session.execute('insert into t values (2)')
            raise ZeroDivisionError
    assert not session.in_transaction
    assert session.fetch('select i from t') == [(1,)]


def test_a_commit_that_rolled_back_is_no_commit(session: Session) -> None:
    with pytest.raises(DatabaseError, match='rolled back'):
        with session.transaction():
            with pytest.raises(DatabaseError):
                session.execute('select 1 / 0')
    assert session.one('select 1') == (1,)


def test_a_savepoint_undoes_only_its_own(session: Session) -> None:
    session.execute('create temp table t (i int primary key)')
    with session.transaction():
        session.execute('insert into t values (1)')
        with pytest.raises(DatabaseError) as caught:
            with session.savepoint():
                session.execute('insert into t values (2), (2)')
        session.execute('insert into t values (3)')
    assert caught.value.sqlstate == '23505'
    assert session.fetch('select i from t') == [(1,), (3,)]


def test_a_refused_statement_leaves_the_session(session: Session) -> None:
    with pytest.raises(DatabaseError, match='division by zero') as caught:
        session.execute('select 1 / 0')
    assert caught.value.sqlstate == '22012'
    assert not isinstance(caught.value, DatabaseLost)
    assert isinstance(caught.value.__cause__, psycopg2.Error)
    assert session.one('select 1') == (1,)


def test_statement_timeout(database: Database, connect: Callable[..., Session]) -> None:
    session = connect(database.url, statement_timeout=0.2)
    with within(PROMPT), pytest.raises(DatabaseError) as caught:
        session.execute('select pg_sleep(60)')
    assert caught.value.sqlstate == '57014'
    assert session.one('select 1') == (1,)


def test_bytes_that_are_no_text(postgres: PostgresServer, connect: Callable[..., Session]) -> None:
    postgres.execute("create database ascii encoding 'SQL_ASCII' template template0")
    try:
        session = connect(postgres.url('ascii'))
        with pytest.raises(DatabaseError, match='invalid byte sequence'):
            session.fetch(r"select convert_from('\xff', 'SQL_ASCII')")
        assert session.one('select 1') == (1,)
        session.close()
    finally:
        postgres.drop_database('ascii')


def test_notifications(session: Session, database: Database, pulse: Pulse) -> None:
    assert session.notifications() == []
    session.execute('listen bell')
    database.execute("notify bell, 'one'; notify bell, 'two'")
    assert pulse.wait('a bell', 10, read=[session.fileno()])[0]
    assert session.notifications() == [('bell', 'one'), ('bell', 'two')]
    database.execute("notify bell, 'three'")
    until(lambda: session.one('select 1') and session.notifications() == [('bell', 'three')], 10, 'the third')
    assert session.notifications() == []


SLEEP = 'select pg_sleep(21)'


def test_a_stop_cancels_the_statement_and_the_session_lives(
    session: Session, database: Database, pulse: Pulse
) -> None:
    asked: list[float] = []

    def stop() -> None:
        until(lambda: running(database, SLEEP), 10, 'the statement runs')
        asked.append(time.monotonic())
        pulse.stop()

    with meanwhile(stop), pytest.raises(Stopping):
        session.execute(SLEEP)
    assert time.monotonic() - asked[0] < PROMPT * SLACK
    assert not running(database, SLEEP)
    assert not session.closed
    with pulse.grace(30):
        assert session.one('select 1') == (1,)


def test_a_stop_in_a_transaction_rolls_it_back(session: Session, database: Database, pulse: Pulse) -> None:
    database.execute('create table public.t (i int)')

    def stop() -> None:
        until(lambda: running(database, SLEEP), 10, 'the statement runs')
        pulse.stop()

    with meanwhile(stop), pytest.raises(Stopping):
        with session.transaction():
            session.execute('insert into public.t values (1)')
            session.execute(SLEEP)
    assert not session.closed
    assert not session.in_transaction
    assert database.execute('select * from public.t') == []


def test_after_a_stop_no_statement_is_sent(session: Session, pulse: Pulse) -> None:
    pulse.stop()
    with pytest.raises(Stopping):
        session.execute('create table public.never (i int)')
    with pulse.grace(30):
        assert session.one("select to_regclass('public.never')") == (None,)


def test_a_stop_on_a_stalled_link(
    database: Database, proxy: Proxy, connect: Callable[..., Session], pulse: Pulse
) -> None:
    session = connect(through(proxy.port, database))

    def stop() -> None:
        until(lambda: running(database, SLEEP), 10, 'the statement runs')
        proxy.stall()
        pulse.stop()

    with meanwhile(stop), within(CANCEL_GRACE), pytest.raises(Stopping):
        session.execute(SLEEP)
    assert session.closed


def test_a_cut_link_is_noticed_in_mid_statement(
    database: Database, proxy: Proxy, connect: Callable[..., Session]
) -> None:
    session = connect(through(proxy.port, database))

    def cut() -> None:
        until(lambda: running(database, SLEEP), 10, 'the statement runs')
        proxy.cut()

    with meanwhile(cut), within(PROMPT), pytest.raises(DatabaseLost):
        session.execute(SLEEP)
    assert session.closed
    with pytest.raises(DatabaseLost):
        session.execute('select 1')
    with pytest.raises(DatabaseLost):
        session.fileno()


def test_a_silent_server_is_lost(
    database: Database, proxy: Proxy, connect: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, 'SILENCE_TIMEOUT', 0.5)
    session = connect(through(proxy.port, database), statement_timeout=0.5)
    proxy.stall()
    with within(1.0), pytest.raises(DatabaseLost, match='no answer in time'):
        session.execute('select 1')
    assert session.closed


@pytest.fixture
def curious(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at what the server does after a short silence."""
    monkeypatch.setattr(postgres_module, 'LOOK_AFTER', 0.2)
    monkeypatch.setattr(postgres_module, 'LOOK_TIMEOUT', 2.0)


def test_a_database_that_was_made_read_only_is(database: Database, connect: Callable[..., Session]) -> None:
    """An operator, or a provider whose disk is full, has set it for a reason."""
    database.server.execute(f'alter database {database.name} set default_transaction_read_only to on')
    with pytest.raises(DatabaseError, match='read-only transaction'):
        connect(database.url).execute('create table public.t (i int)')


@pytest.mark.usefixtures('curious')
@pytest.mark.parametrize('way', ['client', 'server'])
def test_a_link_that_lets_nothing_through_is_lost_long_before_the_statement_times_out(
    database: Database, proxy: Proxy, connect: Callable[..., Session], way: Side
) -> None:
    """The way to the server is open to others, and the server has nothing to do, or has done it."""
    session = connect(through(proxy.port, database))
    proxy.hold(way)
    with within(0.2 + LATE_ANSWER + PROMPT), pytest.raises(DatabaseLost, match='no answer in time'):
        session.execute('select 1')
    assert session.closed


@pytest.mark.usefixtures('curious')
def test_a_silent_network_is_lost_long_before_the_statement_times_out(
    database: Database, proxy: Proxy, connect: Callable[..., Session]
) -> None:
    session = connect(through(proxy.port, database))
    proxy.stall()
    with within(0.2 + 2.0 + LATE_ANSWER + PROMPT), pytest.raises(DatabaseLost, match='no answer in time'):
        session.execute('select 1')


@pytest.mark.usefixtures('curious')
def test_a_long_statement_is_no_lost_link(session: Session) -> None:
    assert session.one("select 'done' from pg_sleep(2)") == ('done',)


@pytest.mark.usefixtures('curious')
def test_no_room_for_a_look_is_no_lost_link(database: Database, connect: Callable[..., Session]) -> None:
    session = connect(database.relay_url)
    database.execute(f'alter role relay_{database.name} connection limit 1')
    assert session.one("select 'done' from pg_sleep(2)") == ('done',)


def test_a_former_session_is_terminated_with_its_locks(
    database: Database, proxy: Proxy, connect: Callable[..., Session]
) -> None:
    """By its own role, and no other session that has its process id."""
    former = connect(database.relay_url.replace(f':{database.server.port}/', f':{proxy.port}/'))
    assert former.one('select pg_try_advisory_lock(1)') == (True,)
    proxy.hold()
    former.close()
    session = connect(database.relay_url)
    assert session.one('select pg_try_advisory_lock(1)') == (False,)
    backend = former.backend
    assert backend is not None
    assert not session.terminate(replace(backend, started=backend.started - timedelta(microseconds=1)))
    assert session.terminate(backend)
    until(lambda: session.one('select pg_try_advisory_lock(1)') == (True,), 10, 'the lock is free')
    assert not session.terminate(backend)


@pytest.mark.parametrize('statement', [SLEEP, None], ids=['in a statement', 'idle'])
def test_a_terminated_backend_is_noticed(
    session: Session, database: Database, pulse: Pulse, statement: str | None
) -> None:
    def terminate() -> None:
        until(lambda: statement is None or running(database, statement), 10, 'the statement runs')
        database.execute('select pg_terminate_backend(%s)', (session.backend_pid,))

    with meanwhile(terminate), within(PROMPT), pytest.raises(DatabaseLost):
        if statement is not None:
            session.execute(statement)
        while pulse.wait('the end', 10, read=[session.fileno()])[0]:
            session.notifications()
    assert session.closed


@pytest.mark.parametrize('mode', ['immediate', 'fast'])
def test_a_stopped_server_is_noticed(
    session: Session, database: Database, postgres: PostgresServer, connect: Callable[..., Session], mode: str
) -> None:
    def stop() -> None:
        until(lambda: running(database, SLEEP), 10, 'the statement runs')
        postgres.stop(mode)

    with meanwhile(stop), within(PROMPT), pytest.raises(DatabaseLost):
        session.execute(SLEEP)
    with within(PROMPT), pytest.raises(DatabaseLost):
        connect(database.url)
    postgres.start()
    assert connect(database.url).one('select 1') == (1,)


def test_a_connection_that_nobody_answers_has_a_deadline(
    database: Database, proxy: Proxy, connect: Callable[..., Session]
) -> None:
    proxy.stall()
    with within(0.5), pytest.raises(DatabaseLost, match='no answer'):
        connect(through(proxy.port, database), timeout=0.5)


def test_a_stop_while_connecting(
    database: Database, proxy: Proxy, connect: Callable[..., Session], pulse: Pulse
) -> None:
    proxy.stall()
    timer = threading.Timer(0.2, pulse.stop)
    timer.start()
    with within(PROMPT), pytest.raises(Stopping):
        connect(through(proxy.port, database), timeout=60)
    timer.join()


def test_several_hosts_are_tried_within_one_deadline(
    database: Database, postgres: PostgresServer, proxy: Proxy, connect: Callable[..., Session]
) -> None:
    proxy.stall()
    hosts = f'127.0.0.1:{free_port()},127.0.0.1:{proxy.port},127.0.0.1:{postgres.port}'
    url = f'postgresql://postgres@{hosts}/{database.name}?target_session_attrs=read-write'
    with within(1.0):
        session = connect(url, timeout=1.0)
    assert session.where == f'127.0.0.1:{postgres.port}/{database.name}'


def test_several_hosts_of_which_none_will_do(
    database: Database, postgres: PostgresServer, connect: Callable[..., Session]
) -> None:
    dead = free_port()
    hosts = f'127.0.0.1:{dead},127.0.0.1:{postgres.port}'
    with within(PROMPT), pytest.raises(DatabaseError) as caught:
        connect(f'postgresql://postgres@{hosts}/{database.name}?target_session_attrs=standby')
    assert f'127.0.0.1:{dead}' in str(caught.value)
    assert 'hot standby' in str(caught.value)


def test_prefer_standby_takes_a_primary_in_the_end(
    database: Database, postgres: PostgresServer, connect: Callable[..., Session]
) -> None:
    hosts = f'127.0.0.1:{free_port()},127.0.0.1:{postgres.port}'
    session = connect(f'postgresql://postgres@{hosts}/{database.name}?target_session_attrs=prefer-standby')
    assert session.one('select 1') == (1,)


@pytest.mark.parametrize(
    'url',
    [
        'postgresql://nobody:s3cret@127.0.0.1:{port}/{name}',
        'postgresql://postgres:s3cret@127.0.0.1:{dead}/{name}',
        'postgresql://postgres:s3cret@127.0.0.1:x/{name}',
        'postgresql//postgres:s3cret@127.0.0.1/{name}',
        'postgresql://postgres:s3cret@127.0.0.1:{port}/{name}?nonsense=s3cret',
        'postgresql://postgres:s3cret@a,b,c:1,2/{name}',
    ],
)
def test_no_error_tells_a_password(
    database: Database, postgres: PostgresServer, connect: Callable[..., Session], url: str
) -> None:
    with pytest.raises(DatabaseError) as caught:
        connect(url.format(port=postgres.port, dead=free_port(), name=database.name))
    error: BaseException | None = caught.value
    while error is not None:
        assert 's3cret' not in str(error)
        error = error.__cause__


def test_a_refused_login_is_told_from_a_lost_server(
    database: Database, postgres: PostgresServer, connect: Callable[..., Session]
) -> None:
    with pytest.raises(DatabaseError, match='role "nobody" does not exist') as caught:
        connect(postgres.url(database.name, 'nobody'))
    assert not isinstance(caught.value, DatabaseLost)
    with pytest.raises(DatabaseLost, match='refused'):
        connect(f'postgresql://postgres@127.0.0.1:{free_port()}/x')


def test_a_transaction_pooler_is_refused(database: Database, connect: Callable[..., Session]) -> None:
    with Pooler(database.server.port) as pooler:
        with pytest.raises(DatabaseError, match='transaction pooler') as caught:
            connect(through(pooler.port, database))
        assert isinstance(caught.value, Outage)


def test_a_transaction_pooler_that_switches_later_is_refused(
    database: Database, connect: Callable[..., Session]
) -> None:
    with Pooler(database.server.port, switching=False) as pooler:
        session = connect(through(pooler.port, database))
        assert session.one('select 1') == (1,)
        pooler.switching = True
        with pytest.raises(DatabaseError, match='transaction pooler'):
            session.execute('select 1')
        assert session.closed


def test_plain_psycopg2_beside_a_session_is_untouched(session: Session, database: Database) -> None:
    assert psycopg2.extensions.get_wait_callback() is None
    plain = database.connect()
    try:
        with plain.cursor() as cursor:
            cursor.execute('create temp table t (i int)')
            cursor.copy_expert('copy t from stdin', io.StringIO('1\n2\n'))
            cursor.execute('select count(*) from t')
            assert cursor.fetchone() == (2,)
    finally:
        plain.close()
    assert session.one('select 1') == (1,)


def test_closing_twice(session: Session) -> None:
    session.close()
    session.close()
    session.rollback()
    assert session.closed
