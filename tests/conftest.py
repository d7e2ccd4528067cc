"""Fixtures: real servers, started on first use, stopped by process id however the session ends."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.pgqd import Pgqd
from tests.servers.postgres import PostgresServer
from tests.servers.process import raise_on_signals
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer

if TYPE_CHECKING:
    from psycopg2.extensions import connection

ROLES = ('mikkoo_relay', 'mikkoo_producer', 'mikkoo_auditor')  # made by mikkoo.sql


def pytest_configure() -> None:
    raise_on_signals(lambda number: pytest.exit.Exception(f'signal {number}', 128 + number))


@dataclass(frozen=True)
class Database:
    """A fresh database with PgQ (and mikkoo.sql) on the session's server.

    `url`: as superuser. `relay_url`, `producer_url`, `auditor_url`: as login roles that may do what
    mikkoo_relay, mikkoo_producer and mikkoo_auditor may, and no more.
    """

    server: PostgresServer
    name: str

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    @property
    def relay_url(self) -> str:
        return self.server.url(self.name, f'relay_{self.name}')

    @property
    def producer_url(self) -> str:
        return self.server.url(self.name, f'producer_{self.name}')

    @property
    def auditor_url(self) -> str:
        return self.server.url(self.name, f'auditor_{self.name}')

    def connect(self, user: str = 'postgres') -> connection:
        """A psycopg2 connection in autocommit mode; the caller closes it."""
        return self.server.connect(self.name, user)

    def execute(self, sql: str, parameters: object = None) -> list[tuple[object, ...]]:
        """One statement as superuser, on a connection of its own; its rows."""
        return self.server.execute(sql, parameters, dbname=self.name)


@pytest.fixture(scope='session')
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope='session')
def rabbitmq() -> Iterator[RabbitServer]:
    with RabbitServer(tls=True) as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[Database]:
    made = Database(postgres, f'test_{uuid.uuid4().hex[:12]}')
    logins = {role: role.replace('mikkoo_', '') + f'_{made.name}' for role in ROLES}
    postgres.create_database(made.name)
    for role, login in logins.items():
        made.execute(f'create role {login} login')
        if made.execute('select 1 from pg_roles where rolname = %s', (role,)):
            made.execute(f'grant {role} to {login}')
    yield made
    postgres.start()  # where a test has left it stopped
    postgres.drop_database(made.name)
    for login in logins.values():
        postgres.execute(f'drop role {login}')


@pytest.fixture
def vhost(rabbitmq: RabbitServer) -> Iterator[str]:
    name = f'test_{uuid.uuid4().hex[:12]}'
    rabbitmq.add_vhost(name)
    yield name
    rabbitmq.delete_vhost(name)


@pytest.fixture
def pgqd_factory(postgres: PostgresServer) -> Iterator[Callable[..., Pgqd]]:
    """`pgqd_factory(dbname or url, ticker_period=0.1, ...)`: a started Pgqd, stopped after the test."""
    started: list[Pgqd] = []

    def start(database: str, ticker_period: float = 0.1, **settings: Any) -> Pgqd:
        daemon = Pgqd(postgres, database.rsplit('/', 1)[-1], ticker_period, **settings)
        started.append(daemon)
        daemon.start()
        return daemon

    yield start
    for daemon in started:
        daemon.close()


@pytest.fixture
def proxy_factory() -> Iterator[Callable[[str, int], Proxy]]:
    """`proxy_factory(host, port)`: a Proxy before that address, closed at the end of the test."""
    made: list[Proxy] = []

    def make(host: str, port: int) -> Proxy:
        proxy = Proxy(host, port)
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        proxy.close()
